"""Noise that belongs to an image: the same in every batch, position, epoch, process and device."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def generators(images: Tensor, seed: int) -> list[torch.Generator]:
    """One source of random numbers for each image, from the seed and the image's content (CRC-32 in float32) alone.

    The global random state is neither read nor changed. Equal images have equal sources.

    Args:
        images: Images (N,C,H,W).
        seed: Any integer; another seed gives other numbers.

    Returns:
        N generators on the CPU, since devices draw differently.

    Example:
        >>> torch.rand(2, generator=generators(torch.zeros(1, 3, 1, 2), seed=0)[0])
        tensor([0.4098, 0.7763])
    """
    contents = [image.numpy().tobytes() for image in images.detach().float().cpu()]
    return [torch.Generator().manual_seed(zlib.crc32(content, seed)) for content in contents]


def gaussian_noise(images: Tensor, n_samples: int, seed: int) -> Tensor:
    """Standard normal noise for each image.

    Args:
        images: Images (N,C,H,W).
        n_samples: Number of samples S; the first ones are the same for any S.
        seed: Any integer.

    Returns:
        Noise (S,N,C,H,W), on the device of the images, float32 or better.

    Example:
        >>> gaussian_noise(torch.zeros(2, 3, 4, 4), n_samples=5, seed=0).shape
        torch.Size([5, 2, 3, 4, 4])
    """
    shape = n_samples, *images.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=source) for source in generators(images, seed)], dim=1)
    return noise.to(images.device, torch.promote_types(images.dtype, torch.float32))
