"""Taps: what layers give during a pass, for modules and checks that need more of it than the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_xai.trace.layers import forward_hooks
from lightning_xai.trace.listening import predict
from lightning_xai.types import ForwardContext


@contextmanager
def tapped(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer in the passes made inside, with their graph, in the order of its calls.

    The pass itself is unchanged. What is kept are copies, which in-place operations after the layer do not reach. A
    hook that was there before, such as that of a trace, acts first: gradients with respect to the activation that the
    trace keeps go through the tap.

    Args:
        layer: The module.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.ReLU())
        >>> with tapped(model[0]) as outputs:
        ...     _ = model(torch.tensor([[-1.0, 2.0]]))
        >>> outputs
        [tensor([[-1.,  2.]])]
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, kwargs: object, output: Tensor) -> None:
        outputs.append(output.clone())

    with forward_hooks([layer], keep):
        yield outputs


@dataclass
class AffineCall:
    """The last call of a linear or convolutional layer in a pass.

    Attributes:
        module: The layer; None before any call.
        output: A detached copy of what it gave.
    """

    module: nn.Linear | nn.Conv2d | None = None
    output: Tensor | None = None


@contextmanager
def last_affine_call(model: nn.Module) -> Iterator[AffineCall]:
    """Which linear or convolutional layer is called last in the passes made inside, and what it gives.

    The passes themselves are unchanged.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
        >>> with last_affine_call(model) as call:
        ...     _ = model(torch.ones(1, 1, 2, 2))
        >>> call.module
        Linear(in_features=4, out_features=2, bias=True)
    """
    call = AffineCall()

    def keep(module: nn.Linear | nn.Conv2d, args: object, kwargs: object, output: Tensor) -> None:
        call.module, call.output = module, output.detach().clone()  # an in-place ReLU may follow

    with forward_hooks((one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv2d))), keep):
        yield call


def spatial_layers(model: nn.Module, images: Tensor, context: ForwardContext = nullcontext) -> list[str]:
    """The layers with a spatial output, in the order in which they finish, found by one gradient-free pass.

    Args:
        model: The classifier.
        images: Images (N,C,H,W), of which the first is passed.
        context: Context to run the model in.

    Returns:
        Dotted names of the modules that give (N,D,h,w) of more than one position.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> spatial_layers(model, torch.zeros(1, 1, 8, 8))
        ['0', '1']
    """
    names = {module: name for name, module in model.named_modules() if name}
    found: dict[str, None] = {}

    def note(module: nn.Module, args: object, kwargs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.pop(names[module], None)  # a module that is used again counts where it finishes last
            found[names[module]] = None

    with forward_hooks(names, note):
        predict(model, images[:1], context)
    return list(found)
