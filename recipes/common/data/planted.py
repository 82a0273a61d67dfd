"""Planted evidence: images of which it is known, to the pixel, what decides the class.

The colour of one glyph, a cross at a random place, is the class. Other glyphs carry colours of the same set that say
nothing about it, on noise. So a classifier that is right on new images must look at the cross, and maps can be scored
against the truth, where a photograph has a box around something that its classifier may or may not use. A small
network learns the task in seconds; `GeneratedImages` is the harder one, with textures and boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CLASSES = ("red", "green", "blue", "yellow")
_COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.2], [0.25, 0.35, 1.0], [0.9, 0.85, 0.1]])

_SIDE = 7  # of a glyph, in pixels
_CELL = 10  # least side of the cells among which the glyphs are spread


def _glyphs() -> Tensor:
    """A cross, which decides, then a ring, a diagonal cross and a bar, which do not: (4,7,7), bool."""
    y, x = torch.meshgrid(torch.arange(-3, 4), torch.arange(-3, 4), indexing="ij")
    near, far = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
    return torch.stack([near <= 1, far >= 2, x.abs() == y.abs(), y.abs() <= 1])


class PlantedEvidence(NamedTuple):
    """Images with the pixels that decide their class.

    Attributes:
        images: Images (N,3,H,W) in [0, 1], float32.
        labels: Class of each image, (N,).
        masks: Pixels of the cross, (N,H,W), bool.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor


def planted_evidence(labels: Tensor, *, size: int = 40, seed: int = 0) -> PlantedEvidence:
    """Draw one image for each label.

    Everything but the colour of the cross depends on the seed and on the number of images alone: the same seed with
    other labels gives the same images outside the masks, and the same masks.

    Args:
        labels: Class of each image, (N,), in [0, 4), such as ``torch.arange(n) % len(CLASSES)``.
        size: Height and width in pixels, at least 20.
        seed: Seed; the global random state is neither read nor changed.

    Returns:
        Images, labels and masks.

    Raises:
        ValueError: If the size is below 20: four glyphs would not find room.

    Example:
        >>> planted = planted_evidence(torch.tensor([0, 3]))
        >>> planted.images.shape, planted.masks.sum((1, 2))
        (torch.Size([2, 3, 40, 40]), tensor([33, 33]))
    """
    if size < 2 * _CELL:
        raise ValueError(f"`size` expected at least {2 * _CELL} pixels, got {size}: four glyphs would not find room.")
    generator = torch.Generator().manual_seed(seed)
    n, glyphs = len(labels), _glyphs()
    others = torch.randint(len(CLASSES), (n, len(glyphs) - 1), generator=generator)
    colours = _COLOURS[torch.cat([labels[:, None], others], dim=1)]
    images = 0.5 + 0.15 * torch.randn(n, 3, size, size, generator=generator)
    placed = _placed(glyphs, n, size, generator)
    for glyph in range(len(glyphs)):
        images = torch.where(placed[:, glyph, None], colours[:, glyph, :, None, None], images)
    return PlantedEvidence(images.clamp(0, 1), labels, placed[:, 0])


def _placed(glyphs: Tensor, n: int, size: int, generator: torch.Generator) -> Tensor:
    """Each glyph in a cell of its own, somewhere within it: masks (N,4,H,W)."""
    cells = size // _CELL
    cell = torch.rand(n, cells**2, generator=generator).argsort(1)[:, : len(glyphs)]
    slack = size // cells - _SIDE + 1
    shift = torch.randint(slack, (2, n, len(glyphs)), generator=generator)
    place = torch.stack([cell // cells, cell % cells]) * (size // cells) + shift
    canvas = torch.zeros(n, len(glyphs), size, size, dtype=torch.bool)
    image, glyph, y, x = torch.meshgrid(*(torch.arange(k) for k in (n, len(glyphs), _SIDE, _SIDE)), indexing="ij")
    canvas[image, glyph, place[0][..., None, None] + y, place[1][..., None, None] + x] = glyphs.expand(n, -1, -1, -1)
    return canvas
