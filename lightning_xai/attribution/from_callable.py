"""Anybody's method as an attribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_xai.attribution.base import Attribution, upsample
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace


@dataclass(frozen=True)
class FromCallable(Attribution):
    """A function of the model, the images and the targets, other libraries' methods included.

    The function gets the model in evaluation mode, gradients enabled, and a copy of the images that requires gradients.
    The model is as before afterwards, whatever the function leaves behind: gradients of parameters, modes, hooks,
    replaced modules or parameters. Values that it writes into parameters stay. It costs what the function costs.

    Attributes:
        function: ``(model, images (N,C,H,W), targets (N,)) -> maps``, a tensor (N,H,W) or, with any number D of
            channels, (N,D,H,W). Smaller maps are resized bilinearly.
        reduce: How channels become one map: `channel_sum` (signed; one
            channel stays as it is) or `channel_max`.

    Example:
        >>> import torch
        >>> from lightning_xai import explain
        >>> def saliency(model, images, targets):
        ...     scores = model(images).gather(1, targets[:, None])
        ...     return torch.autograd.grad(scores.sum(), images)[0].abs()
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
        >>> explain(model, torch.ones(1, 1, 1, 2), 0, attributions=FromCallable(saliency))
        tensor([[[1., 2.]]])

        So do methods of captum; ``recipes/benchmarks/peers.py`` has more, and those of pytorch-grad-cam:

        >>> from captum.attr import Occlusion
        >>> def occlusion(model, images, targets):
        ...     return Occlusion(model).attribute(images, (1, 1, 1), target=targets)
        >>> explain(model, torch.ones(1, 1, 1, 2), 0, attributions=FromCallable(occlusion))
        tensor([[[ 1., -2.]]])
    """

    function: Callable[[nn.Module, Tensor, Tensor], Tensor]
    reduce: Callable[[Tensor], Tensor] = channel_sum

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed where the function's are."""
        maps, images = trace.call(self.function, targets), trace.images
        _check(maps, len(images))
        maps = at_least_float32(maps) if maps.ndim == 3 else self.reduce(maps)
        return maps if maps.shape[1:] == images.shape[2:] else upsample(maps, images)


def _check(maps: object, n: int) -> None:
    if not isinstance(maps, Tensor):
        raise TypeError(
            f"`function` expected to return a tensor, got {type(maps).__name__}. Convert it: `torch.as_tensor(maps)`."
        )
    if maps.ndim not in (3, 4) or len(maps) != n:
        raise ValueError(
            f"`function` expected to return maps (N, H, W) or (N, D, H, W) with N = {n}, got {tuple(maps.shape)}."
        )
