"""What a user gives, checked before a model runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_xai.kinds import fits
from lightning_xai.trace.calling import Calling, is_image_batch, kind_of


def require_model(model: nn.Module, calling: Calling | None = None) -> None:
    """Check a model, and how it is to be called.

    Raises:
        TypeError: If they are something else.
        ValueError: If parameters have no values.

    Example:
        >>> require_model(nn.ReLU())
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` expected a torch.nn.Module, got {type(model).__name__}.")
    if calling is not None and not isinstance(calling, Calling):
        raise TypeError(f"`calling` expected a Calling, got {type(calling).__name__}.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "`model` expected parameters with values, got some on the meta device. Load its weights first."
        )


def require_images(images: Tensor) -> None:
    """Check a batch of images.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another form, no images, or no finite values.

    Example:
        >>> require_images(torch.ones(1, 3, 2, 2))
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"`images` expected a tensor, got {type(images).__name__}.")
    if not fits(images, Tensor) or not is_image_batch(images) or images.dtype.itemsize < 2 or not images.numel():
        raise ValueError(
            "`images` expected a batch (N, C, H, W) of a floating dtype with at least one image, "
            f"got {kind_of(images)}."
        )
    if not torch.stack(torch.aminmax(images.detach())).isfinite().all():  # NaN is both, and no copy is made
        raise ValueError(f"`images` expected finite values, got NaN or infinity in images {not_finite(images)}.")


def not_finite(values: Tensor) -> list[int]:
    """The first ten rows with NaN or infinity."""
    return (~values.detach().isfinite().flatten(1).all(1)).nonzero()[:10, 0].tolist()
