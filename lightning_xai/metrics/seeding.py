"""Noise that belongs to an image and not to its place in a batch."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def image_generators(images: Tensor, seed: int) -> list[torch.Generator]:
    """One random generator for each image, seeded by its content.

    The seed is the CRC-32 of the image's values in float32, started from ``seed``: noise is the same in every batch,
    position, epoch and process, and the global random state is neither read nor changed. Equal images have equal
    noise. The generators are on the CPU, since devices draw differently.

    Args:
        images: Images (N,C,H,W).
        seed: Any integer; another seed gives other noise.

    Returns:
        N generators on the CPU.

    Example:
        >>> first, second = image_generators(torch.zeros(2, 1, 1, 1), seed=0)
        >>> (torch.rand(1, generator=first) == torch.rand(1, generator=second)).item()
        True
    """
    contents = images.detach().float().cpu().numpy()
    return [torch.Generator().manual_seed(zlib.crc32(image.tobytes(), seed)) for image in contents]
