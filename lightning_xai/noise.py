"""Noise that belongs to an image: the same in every batch, position, epoch, process and device."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor


def generators(images: Tensor, seed: int) -> list[torch.Generator]:
    """One source of random numbers for each image, from the seed and the image's content (CRC-32 in float32) alone.

    The global random state is neither read nor changed. Equal images have equal sources.

    Example:
        >>> torch.rand(2, generator=generators(torch.zeros(1, 3, 1, 2), seed=0)[0])
        tensor([0.4098, 0.7763])
    """
    contents = [image.numpy().tobytes() for image in images.detach().float().cpu()]
    return [torch.Generator().manual_seed(zlib.crc32(content, seed)) for content in contents]


def placed_like(drawn: Tensor, images: Tensor) -> Tensor:
    """Numbers drawn on the CPU, on the device and in the dtype of images; nobody waits for a GPU meanwhile.

    Args:
        drawn: The numbers.
        images: Any tensor.

    Returns:
        A tensor of the numbers' shape.

    Example:
        >>> placed_like(torch.ones(2), torch.zeros(1, dtype=torch.float64))
        tensor([1., 1.], dtype=torch.float64)
    """
    pinned = drawn.pin_memory() if images.is_cuda else drawn
    return pinned.to(images.device, non_blocking=True).to(images.dtype)


def noisy_copies(
    images: Tensor, noise_level: float, seed: int, source: Tensor | None = None
) -> Callable[[Tensor | slice], Tensor]:
    """What draws copies of images with Gaussian noise, each image's from a source of its own (`generators`).

    Args:
        images: Images (N,C,H,W).
        noise_level: Standard deviation as a share of each image's range, ``max x - min x``.
        seed: Any integer.
        source: Images (N,C,H,W) whose content seeds the noise in the place of the images' own.

    Returns:
        A function ``numbers of images (M,), or a slice of them -> noisy copies (M,C,H,W)``, to be asked for the images
        in turn, again and again; its calls go on where the one before ended, so that chunks of any size see the same.

    Example:
        >>> draw = noisy_copies(torch.tensor([[[[0.0, 2.0]]]]), noise_level=0.1, seed=0)
        >>> draw(torch.tensor([0, 0])).flatten(1)
        tensor([[-0.2226,  1.9310],
                [-0.5230,  2.3151]])
    """
    sources = cycle(generators(images if source is None else source, seed))  # to read the numbers would wait for a GPU
    deviations = noise_level * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))

    def draw(of: Tensor | slice) -> Tensor:
        chosen = images[of]
        noise = torch.empty(chosen.shape, pin_memory=images.is_cuda)
        for sample in noise:  # one by one: how a larger tensor is filled depends on its size
            sample.normal_(generator=next(sources))
        placed = noise.to(images.device, images.dtype, non_blocking=True)
        return torch.addcmul(chosen, placed, deviations[of, None, None, None])

    return draw
