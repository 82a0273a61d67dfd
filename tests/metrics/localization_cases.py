"""Maps and masks for the localisation metrics, and what all of them are to do with images that show nothing."""

from __future__ import annotations

import torch
from metrics.contract import Batch

NAN = float("nan")


def maps_and_masks(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed maps (n,6,7) in quarters, so that there are ties and zeros, and random masks."""
    generator = torch.Generator().manual_seed(seed)
    maps = (4 * torch.randn(n, 6, 7, generator=generator, dtype=torch.float64)).round() / 4
    return maps, torch.rand(n, 6, 7, generator=generator) < 0.3


def batch_of(n: int, seed: int) -> Batch:
    """Maps and masks; the first map is empty, and so is the last mask."""
    maps, masks = maps_and_masks(n, seed)
    maps[0], masks[-1] = 0.0, False
    return {"maps": maps, "boxes": masks}


def shows_nothing(one: list[list[float]]) -> bool:
    """All of a map's pixels have one value after ReLU."""
    return len({max(value, 0.0) for row in one for value in row}) == 1


DEGENERATE = {
    "all-zero": torch.zeros(1, 4, 4),
    "constant": torch.ones(1, 4, 4),
    "constant up to rounding": torch.full((1, 4, 4), 0.1) + 1e-8 * torch.arange(16.0).view(1, 4, 4),
    "negative": -torch.arange(1.0, 17.0).view(1, 4, 4),
    "one NaN": torch.where(torch.arange(16) == 0, NAN, torch.arange(16.0)).view(1, 4, 4),
    "all NaN": torch.full((1, 4, 4), NAN),
    "infinite": torch.where(torch.arange(16) == 0, torch.inf, torch.arange(16.0)).view(1, 4, 4),
}
"""Maps that show nothing; a mask of all pixels would make each of them a hit."""
