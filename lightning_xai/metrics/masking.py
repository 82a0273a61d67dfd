"""Masked images: what a map shows of an image, and what stands where it shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lightning_xai.scores import at_least_float32

Baseline: TypeAlias = Callable[[Tensor, Sequence[float], Sequence[float]], Tensor]
"""What stands where nothing is shown: ``(images (N,C,H,W), mean (C), std (C)) -> tensor``.

The images are standardised, ``(pixels - mean) / std`` with pixels in [0, 1]; so is the tensor, of any shape that
broadcasts to theirs.
"""

_ROUNDING = 64.0
"""Ranges below this many spacings of floats are rounding: upsampling a constant map was seen to leave 21."""


def degenerate(maps: Tensor) -> Tensor:
    """Which maps show nothing: constant after ReLU (all-zero included), or not finite.

    Constant means up to rounding, as upsampling leaves it. Such images stay in every metric, with nothing shown; this
    function is there to count them.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Whether each map shows nothing, (N,), bool.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> degenerate(torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]], [[-1.0, -2.0]], [[torch.nan, 1.0]]]))
        tensor([False,  True,  True,  True])
    """
    _, low, high = _rectified(maps)
    rounding = _ROUNDING * torch.finfo(high.dtype).eps * high
    # Comparisons with NaN are false; -inf alone passes the ReLU as an innocent 0.
    return ~(high - low > rounding)[:, 0, 0] | ~maps.isfinite().flatten(1).all(1)


def normalized_masks(maps: Tensor) -> Tensor:
    """Maps as masks: ReLU, then min-max for each image.

    Args:
        maps: Maps (N,H,W) at image resolution; normalising before upsampling would give other masks.

    Returns:
        Masks (N,H,W) in [0, 1], float32 or better: 1 where the image is shown. A map that is :func:`degenerate` gives
        zeros: nothing is shown.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> normalized_masks(torch.tensor([[[-3.0, 1.0, 2.0]], [[7.0, 7.0, 7.0]]]))
        tensor([[[0.0000, 0.5000, 1.0000]],
                [[0.0000, 0.0000, 0.0000]]])
    """
    positive, low, high = _rectified(maps)
    return ((positive - low) / (high - low)).masked_fill(degenerate(maps)[:, None, None], 0.0)


def masked_images(images: Tensor, maps: Tensor, baseline: Tensor) -> Tensor:
    """What the maps show of the images, ``x * m + baseline * (1 - m)`` with ``m`` from :func:`normalized_masks`.

    Args:
        images: Images (N,C,H,W).
        maps: Maps (N,H,W), as attributions return them.
        baseline: What stands where the mask is 0, in the images' space, broadcastable to (N,C,H,W).

    Returns:
        Images (N,C,H,W) of the images' dtype.

    Raises:
        ValueError: If the maps do not belong to the images.

    Example:
        >>> masked_images(torch.ones(1, 1, 1, 3), torch.tensor([[[0.0, 1.0, 4.0]]]), torch.tensor(-1.0))
        tensor([[[[-1.0000, -0.5000,  1.0000]]]])
    """
    expected = (len(images), *images.shape[2:])
    if maps.shape != expected:
        raise ValueError(
            f"`maps` expected one map for each image at its resolution, {expected}, got {tuple(maps.shape)}. "
            "Upsample maps of a layer with `torch.nn.functional.interpolate`."
        )
    masks = normalized_masks(maps)[:, None]
    return (images * masks + baseline * (1 - masks)).to(images.dtype)


def black(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixel value 0, as in the papers, which multiply the image itself with the mask.

    Args:
        images: Standardised images (N,C,H,W).
        mean: Mean by which they were standardised, one number per channel.
        std: Standard deviation by which they were standardised.

    Returns:
        One standardised value per channel, (C,1,1).

    Raises:
        ValueError: If there is not one number per channel.

    Example:
        >>> black(torch.zeros(1, 1, 2, 2), [0.5], [0.25])
        tensor([[[-2.]]])
    """
    return _standardized([0.0] * len(mean), images, mean, std)


def mean_color(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, color: Sequence[float] | None = None
) -> Tensor:
    """The mean colour of the data: 0 in the space of images that were standardised by the data's own mean.

    Images standardised by something else, such as 0.5 for every channel, need the colour:
    ``functools.partial(mean_color, color=(0.485, 0.456, 0.406))``.

    Args:
        images: Standardised images (N,C,H,W).
        mean: Mean by which they were standardised, one number per channel.
        std: Standard deviation by which they were standardised.
        color: Mean colour of the data, pixel values in [0, 1]; None for ``mean``.

    Returns:
        One standardised value per channel, (C,1,1).

    Raises:
        ValueError: If there is not one number per channel.

    Example:
        >>> mean_color(torch.zeros(1, 1, 2, 2), [0.5], [0.25], color=[0.75])
        tensor([[[1.]]])
    """
    return _standardized(mean if color is None else color, images, mean, std)


def blurred(
    images: Tensor, mean: Sequence[float], std: Sequence[float], *, kernel: int = 11, sigma: float = 5.0
) -> Tensor:
    """The images under a Gaussian blur, kernel 11 and sigma 5 as for insertion in RISE (Petsiuk et al., BMVC 2018).

    A blur commutes with standardising. Borders are reflected where RISE pads with zeros, so that no dark frame
    appears; on images smaller than half the kernel the kernel shrinks to what reflection can serve.

    Args:
        images: Standardised images (N,C,H,W).
        mean: Not used.
        std: Not used.
        kernel: Side of the kernel in pixels, odd.
        sigma: Standard deviation of the kernel in pixels.

    Returns:
        Blurred images (N,C,H,W).

    Example:
        >>> image = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0]).view(1, 1, 1, 5)
        >>> blurred(image, [0.0], [1.0], kernel=3, sigma=100.0)
        tensor([[[[0.0000, 1.0000, 1.0000, 1.0000, 0.0000]]]])
    """
    height, width = images.shape[2:]
    # Reflection by (kernel - 1) / 2 pixels needs a side that is longer than that.
    sizes = [min(kernel, 2 * side - 1) for side in (width, height)]
    return gaussian_blur(images, sizes, [sigma, sigma])


def _rectified(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if maps.ndim != 3:
        raise ValueError(f"`maps` expected shape (N,H,W), got {tuple(maps.shape)}.")
    positive = at_least_float32(maps).relu()
    return positive, positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)


def _standardized(color: Sequence[float], images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = images.shape[1]
    if not len(color) == len(mean) == len(std) == channels:
        raise ValueError(
            f"`mean`, `std` and the colour expected one number for each of the {channels} channels, "
            f"got {len(mean)}, {len(std)} and {len(color)}."
        )
    values = [(c - m) / s for c, m, s in zip(color, mean, std, strict=True)]
    return images.new_tensor(values)[:, None, None]
