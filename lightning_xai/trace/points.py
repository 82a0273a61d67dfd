"""Where the term is taken: at the image, or at the output of an inner layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lightning_xai.trace.guided import guided
from lightning_xai.trace.hooks import forward_hooks
from lightning_xai.trace.modes import evaluation_mode
from lightning_xai.trace.rectifiers import Rectifiers


def pass_from_image(model: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the images as a leaf of their graph.

    Args:
        model: Calls the classifier, and finds the logits in what it gives.
        images: Images (N,C,H,W); neither written to nor made to require gradients.

    Returns:
        Logits (N,K) and the leaf (N,C,H,W).

    Example:
        >>> import torch
        >>> logits, leaf = pass_from_image(nn.Flatten(), torch.ones(1, 1, 1, 2))
        >>> torch.autograd.grad(logits.square().sum(), leaf)[0]
        tensor([[[[2., 2.]]]])
    """
    leaf = images.detach().requires_grad_()
    return model(leaf.clone()), leaf  # a copy, so that operations in place find no leaf


def pass_from_layer(model: Callable[[Tensor], Tensor], images: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits, and the output of a layer with its graph on both sides.

    Args:
        model: Calls the classifier, and finds the logits in what it gives.
        images: Images (N,C,H,W).
        layer: A module that is called once in a pass and gives (N,D,h,w).

    Returns:
        Logits (N,K) and activations (N,D,h,w).

    Raises:
        ValueError: If the layer is called another number of times, or gives something else.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten())
        >>> logits, activations = pass_from_layer(model, torch.ones(1, 1, 1, 1), model[0])
        >>> torch.autograd.grad(logits.sum(), activations)[0].shape
        torch.Size([1, 2, 1, 1])
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, kwargs: object, output: Tensor) -> Tensor:
        # below a frozen backbone nothing is recorded: the graph then starts here
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1].clone()  # a copy, so that operations in place leave the kept one alone

    with forward_hooks([layer], keep):
        logits = model(images)
    if len(kept) != 1 or kept[0].ndim != 4:
        raise ValueError(
            "`layer` expected a module that is called once in a pass and gives (N,D,h,w), got "
            f"{type(layer).__name__} with outputs {[tuple(one.shape) for one in kept]}."
        )
    return logits, kept[0]


def require_rectifiers_after(
    model: nn.Module,
    images: Tensor,
    layer: nn.Module,
    rectifiers: Rectifiers = "relu",
    call: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Refuse layers after which the guided gradient is nearly the plain one, by a pass of the first image.

    Args:
        model: The classifier.
        images: Images (N,C,H,W).
        layer: The layer.
        rectifiers: What counts as one, see `guided`.
        call: Calls the classifier, and finds the logits in what it gives; None where it gives them alone.

    Raises:
        ValueError: If too few rectifiers lie between the layer and the logits.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten())
        >>> require_rectifiers_after(model, torch.ones(1, 1, 1, 1), model[0])
    """

    def cut(module: nn.Module, args: object, kwargs: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()  # operations in place find no leaf

    with evaluation_mode(model), forward_hooks([layer], cut):
        logits = (call or model)(images[:1])
    try:
        with guided(logits, rectifiers):
            pass
    except ValueError as error:
        raise ValueError(f"`layer` expected rectifiers after it. {error} Take an earlier layer.") from None
