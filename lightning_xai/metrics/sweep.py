"""The order of pixels by relevance, and the way from one image to another in that order."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_xai.metrics.forwards import Ask, check_maps, scores_of
from lightning_xai.metrics.masking import degenerate
from lightning_xai.scores import post_softmax
from lightning_xai.types import Score

STEPS = 16
"""Steps of a curve, where none are named."""
COARSE = 4
"""Stretches at whose ends a curve is always computed."""


class Curve(NamedTuple):
    """One curve for each image, ``Deletion().update(*curve)``.

    Attributes:
        fractions: Share of the pixels that were perturbed, (S+1,), float64, from 0 to 1.
        probabilities: Score of each image's class at these shares, (N,S+1), float64.
    """

    fractions: Tensor
    probabilities: Tensor


def featureless(maps: Tensor) -> Tensor:
    """Which maps put pixels into no order: constant (up to rounding, whatever the sign), or not finite.

    Metrics that use the signed order of pixels treat such maps as constant ones; this function is there to count them.
    For metrics that take the ReLU of a map there is `degenerate`.

    Example:
        >>> featureless(torch.tensor([[[0.0, 1.0]], [[-1.0, -2.0]], [[0.5, 0.5]], [[torch.nan, 1.0]]]))
        tensor([False, False,  True,  True])
    """
    return degenerate(maps) & degenerate(-maps)


def relevance_ranks(maps: Tensor) -> Tensor:
    """Place (N,H,W) of each pixel when pixels are sorted by relevance, 0 for the most relevant one.

    The signed map is sorted: what speaks against the class comes last. Equal pixels are sorted as they are read, row
    by row from the upper left corner; so are all pixels of a map that is `featureless`.

    Example:
        >>> relevance_ranks(torch.tensor([[[0.0, -1.0], [5.0, 0.0]]]))
        tensor([[[1, 3],
                 [0, 2]]])
    """
    maps = maps.detach().masked_fill(featureless(maps)[:, None, None], 0.0)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The way from one image to another, pixel by pixel in the order of maps; what `sweep` makes.

    Attributes:
        ask: The classifier.
        targets: Class of each image, (N,).
        ranks: Place of each pixel in the order, (N,H,W) or (M,N,H,W).
        counts: Number of pixels that have been replaced at each point, (S+1,).
        score: What is drawn.
        tolerance: Scores that differ by less than this have a straight line between them.
        batch_size: Most images in one forward.
    """

    ask: Ask
    targets: Tensor
    ranks: Tensor
    counts: Tensor
    score: Score
    tolerance: float
    batch_size: int

    def at(self, images: Tensor) -> Tensor:
        """Scores (N,) of images as they are."""
        return self._scores(lambda some: images[some], torch.arange(len(images), device=images.device))

    def curve(self, first: Tensor, last: Tensor, ends: tuple[Tensor, Tensor] | None = None) -> Curve:
        """Scores while pixels of some images (N,C,H,W) are replaced by those of others, most relevant first.

        With ``ends``, the scores (N,) of both, there are two points less to compute.
        """
        n_maps, n_points = self.ranks.shape[:-2].numel(), len(self.counts)
        values = torch.full((n_maps, n_points), torch.nan, dtype=torch.float64, device=self.counts.device)
        known = torch.zeros_like(values, dtype=torch.bool)
        if ends is not None:
            known[:, [0, -1]] = True
            values[:, 0], values[:, -1] = (end.repeat(n_maps // max(1, len(first))) for end in ends)

        # First at a few points of all maps, then in the middle of every stretch whose ends differ, and of its halves.
        coarse = sorted({round(i * (n_points - 1) / COARSE) for i in range(COARSE + 1)})
        wanted, stretches = torch.zeros_like(known), list(pairwise(coarse))
        wanted[:, coarse] = True
        while wanted.any() or stretches:
            point, of = (wanted & ~known).T.nonzero(as_tuple=True)
            values[of, point] = self._replaced(first, last, of, self.counts[point])
            known |= wanted
            stretches = [(low, high) for low, high in stretches if high - low > 1]
            wanted = torch.zeros_like(known)
            for low, high in stretches:
                wanted[:, (low + high) // 2] = known[:, low] & known[:, high] & self._bends(values, low, high)
            stretches = [half for low, high in stretches for half in pairwise((low, (low + high) // 2, high))]
        fractions = self.counts.double() / self.counts[-1]
        return Curve(fractions, values.view(*self.ranks.shape[:-2], n_points))

    def _bends(self, values: Tensor, low: int, high: int) -> Tensor:
        """Which curves (M,) differ at the ends of a stretch; its middle is laid on the straight line at first."""
        middle = (low + high) // 2
        share = (self.counts[middle] - self.counts[low]) / (self.counts[high] - self.counts[low]).double()
        rise = values[:, high] - values[:, low]
        values[:, middle] = values[:, low] + share * rise
        return ~(rise.abs() < self.tolerance)  # not `>=`, which NaN never is

    def _replaced(self, first: Tensor, last: Tensor, of: Tensor, counts: Tensor) -> Tensor:
        """Scores (J,) of the images of some maps with so many pixels replaced; passes are filled across both."""
        ranks, rows = self.ranks.flatten(0, -3), of % max(1, len(first))

        def replaced(some: Tensor) -> Tensor:
            chosen = (ranks[of[some]] < counts[some, None, None])[:, None]
            return torch.where(chosen, last[rows[some]], first[rows[some]])

        return self._scores(replaced, rows)

    def _scores(self, made: Callable[[Tensor], Tensor], of: Tensor) -> Tensor:
        return scores_of(self.ask, made, of, self.targets, score=self.score, batch_size=self.batch_size)


def sweep(
    ask: Ask,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    steps: int = STEPS,
    score: Score = post_softmax,
    tolerance: float = 0.0,
    batch_size: int | None = None,
) -> Sweep:
    """What deletion and insertion share: the order of the pixels, and how many are replaced at each point.

    Arguments and errors are those of `deletion_curve`; maps may be those of several methods, (M,N,H,W).

    Example:
        >>> images = torch.zeros(2, 1, 2, 2)
        >>> sweep(lambda images, of: images, images, images[:, 0], torch.tensor([0, 0]), steps=2).counts
        tensor([0, 2, 4])
    """
    check_maps(images, maps, targets)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` expected 1 or more, or None for all images, got {batch_size}.")
    pixels = images.shape[2] * images.shape[3]
    if not 1 <= steps <= pixels:
        raise ValueError(f"`steps` expected a number in [1, {pixels}], the number of pixels, got {steps}.")
    # Rounded up in whole numbers.
    counts = -(-torch.arange(steps + 1, device=images.device) * pixels // steps)
    ranks = relevance_ranks(maps.flatten(0, -3)).view(maps.shape)
    return Sweep(ask, targets, ranks, counts, score, tolerance, batch_size or max(1, len(images)))
