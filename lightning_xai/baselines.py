"""Standardised images: back to pixels, the check that they are standardised as said, and baselines for masked ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lightning_xai.standard import Standard, standard_of

Baseline: TypeAlias = Callable[[Tensor, Sequence[float], Sequence[float]], Tensor]
"""What stands where nothing is shown: ``(images (N,C,H,W), mean (C), std (C)) -> tensor``.

The images are standardised, ``(pixels - mean) / std`` with pixels in [0, 1]; so is the tensor, of any shape that
broadcasts to theirs.
"""

# What check_standardized allows. Measured on batches of 16 photographs: one in six pixels or more lie further than
# a quarter outside [0, 1] under the statistics of another convention, at most one in ten after noise with a standard
# deviation of 0.2 on white backgrounds, none after resizing.
_TOLERANCE = 0.25
_SHARE_OUTSIDE = 0.15


def black(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixel value 0, as in the papers, which multiply the image itself with the mask.

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


def to_pixels(images: Tensor, mean: Standard, std: Sequence[float] | None = None) -> Tensor:
    """Undo the standardisation of images, to look at them.

    Args:
        images: Standardised images (N,C,H,W), C = 1 or 3.
        mean: Mean of each channel, C numbers, or what says both (`Standard`).
        std: Standard deviation of each channel, C numbers.

    Returns:
        Pixels (N,3,H,W) in [0, 1], float32; values outside are clamped, grey is repeated in three channels.

    Raises:
        ValueError: If the images, mean and std do not have the same number of channels, 1 or 3.

    Example:
        >>> to_pixels(torch.tensor([-1.0, 0.0, 9.0]).view(1, 1, 1, 3), mean=[0.5], std=[0.25])[0, :, 0]
        tensor([[0.2500, 0.5000, 1.0000],
                [0.2500, 0.5000, 1.0000],
                [0.2500, 0.5000, 1.0000]])
    """
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        raise ValueError(
            f"`images` expected shape (N, C, H, W) with C = 1 or 3 for pictures, got shape {tuple(images.shape)}."
        )
    return _unstandardized(images, *standard_of(mean, std)).clamp(0, 1).expand(-1, 3, -1, -1)


def check_standardized(images: Tensor, mean: Standard, std: Sequence[float] | None = None) -> None:
    """Notice images that cannot have been standardised with this mean and std.

    Two rules, made to stay silent on augmented images (noise, the ringing of a resize, erased patches):

    - More than 15 % of the un-standardised values lie further than 0.25 outside [0, 1]: other statistics, values up
      to 255, images standardised twice.
    - The given values fill [0, 1] or [-1, 1] as pixels do (they reach within 5 % of both ends and never pass them),
      while mean and std would make that 0.6 or less of the brightness range: images that were never standardised.

    Data sets whose statistics are close (CIFAR and ImageNet) cannot be told apart. Call it on a batch rather than
    on one image.

    Args:
        images: Images (N,C,H,W) as the model gets them, C any number.
        mean: Mean of each channel, C numbers, or what says both (`Standard`).
        std: Standard deviation of each channel, C numbers.

    Raises:
        ValueError: If the images do not match, with the range found and the range expected.

    Example:
        >>> pixels = torch.linspace(0, 1, 48).view(1, 3, 4, 4)
        >>> check_standardized((pixels - 0.5) / 0.25, mean=[0.5] * 3, std=[0.25] * 3)
        >>> check_standardized(pixels, mean=[0.5] * 3, std=[0.25] * 3)
        Traceback (most recent call last):
        ...
        ValueError: `images` expected to be standardised with mean [0.5, 0.5, 0.5] and std [0.25, 0.25, 0.25], got ...
    """
    mean, std = standard_of(mean, std)
    pixels = _unstandardized(images, mean, std)
    outside = ((pixels < -_TOLERANCE) | (pixels > 1 + _TOLERANCE)).float().mean().item()
    if outside > _SHARE_OUTSIDE or _never_standardized(images, pixels):
        raise ValueError(
            f"`images` expected to be standardised with mean {list(mean)} and std {list(std)}, got values in "
            f"[{images.min():.3g}, {images.max():.3g}], which would be pixels in [{pixels.min():.3g}, "
            f"{pixels.max():.3g}] instead of [0, 1]. Pass the `mean` and `std` that the data's normalisation uses, or "
            "mean 0 and std 1 for images in [0, 1]."
        )


def _unstandardized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = images.shape[1] if images.ndim == 4 else None
    if channels is None or len(mean) != channels or len(std) != channels:
        raise ValueError(
            "`images` expected shape (N, C, H, W) and one `mean` and `std` for each channel, "
            f"got shape {tuple(images.shape)}, {len(mean)} means and {len(std)} deviations."
        )
    scale, shift = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (std, mean))
    return images.float() * scale + shift


def _never_standardized(images: Tensor, pixels: Tensor) -> bool:
    low, high = images.min().item(), images.max().item()
    filled = any(
        bottom <= low < bottom + 0.05 * (1 - bottom) and 1 - 0.05 * (1 - bottom) < high <= 1 for bottom in (0, -1)
    )
    return filled and (pixels.max() - pixels.min()).item() <= 0.6


def _standardized(color: Sequence[float], images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = images.shape[1]
    if not len(color) == len(mean) == len(std) == channels:
        raise ValueError(
            f"`mean`, `std` and the colour expected one number for each of the {channels} channels, "
            f"got {len(mean)}, {len(std)} and {len(color)}."
        )
    values = [(c - m) / s for c, m, s in zip(color, mean, std, strict=True)]
    return images.new_tensor(values)[:, None, None]
