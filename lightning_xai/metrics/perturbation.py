"""Perturbation curves: the probability of a class while pixels leave or enter the image in the order of its map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_xai.metrics.forwards import check_maps, scores_of
from lightning_xai.metrics.masking import degenerate
from lightning_xai.scores import post_softmax
from lightning_xai.types import Score

STEPS = 8


class Curve(NamedTuple):
    """One curve for each image, ``Deletion().update(*curve)``.

    Attributes:
        fractions: Share of the pixels that were perturbed, (S+1,), float64, from 0 to 1.
        probabilities: Score of each image's class at these shares, (N,S+1), float64.

    Example:
        >>> Curve(torch.tensor([0.0, 1.0]), torch.tensor([[0.9, 0.1]])).fractions
        tensor([0., 1.])
    """

    fractions: Tensor
    probabilities: Tensor


class PerturbationCurves(NamedTuple):
    """Both curves of each image, for ``MetricCollection([Deletion(), Insertion()]).update(**curves._asdict())``.

    Attributes:
        fractions: Share of the pixels that were perturbed, (S+1,), float64, from 0 to 1.
        deletion_curve: Score of each image's class, (N,S+1), float64, from the image to the baseline.
        insertion_curve: Score of each image's class, (N,S+1), float64, from the baseline to the image.

    Example:
        >>> curves = PerturbationCurves(torch.tensor([0.0, 1.0]), torch.ones(1, 2), torch.ones(1, 2))
        >>> list(curves._asdict())
        ['fractions', 'deletion_curve', 'insertion_curve']
    """

    fractions: Tensor
    deletion_curve: Tensor
    insertion_curve: Tensor


def featureless(maps: Tensor) -> Tensor:
    """Which maps put pixels into no order: constant (up to rounding, whatever the sign), or not finite.

    Metrics that use the signed order of pixels treat such maps as constant ones; this function is there to count them.
    For metrics that take the ReLU of a map there is `degenerate`.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Whether each map is featureless, (N,), bool.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> featureless(torch.tensor([[[0.0, 1.0]], [[-1.0, -2.0]], [[0.5, 0.5]], [[torch.nan, 1.0]]]))
        tensor([False, False,  True,  True])
    """
    return degenerate(maps) & degenerate(-maps)


def relevance_ranks(maps: Tensor) -> Tensor:
    """Place of each pixel when pixels are sorted by relevance, 0 for the most relevant one.

    The signed map is sorted: what speaks against the class comes last. Equal pixels are sorted as they are read, row
    by row from the upper left corner; so are all pixels of a map that is `featureless`.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Ranks (N,H,W) in [0, HW), int64.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> relevance_ranks(torch.tensor([[[0.0, -1.0], [5.0, 0.0]]]))
        tensor([[[1, 3],
                 [0, 2]]])
    """
    maps = maps.detach().masked_fill(featureless(maps)[:, None, None], 0.0)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def deletion_curve(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    steps: int = STEPS,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> Curve:
    """Scores while the most relevant pixels are replaced by the baseline, from the image to the baseline alone.

    Petsiuk et al., "RISE", BMVC 2018 (https://arxiv.org/abs/1806.07421), there with 224 pixels a step and a black
    baseline. Step k of S replaces ``ceil(k HW / S)`` pixels in the order of `relevance_ranks`. Cost: ``steps +
    1`` forwards of N images; `perturbation_curves` gives insertion too and shares the ends.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where pixels are deleted, as a `Baseline` returns it;
            `black` in the paper.
        steps: Number of steps S, in [1, HW].
        score: What is drawn, a probability unless the metric's range is to be given up.
        batch_size: Most images in one forward; None for N. A larger one joins steps, a smaller one splits them.

    Returns:
        Fractions (S+1,) and scores (N,S+1).

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> curve = deletion_curve(classifier, images, images[:, 0], torch.tensor([0]), baseline=0 * images, steps=2)
        >>> curve.probabilities
        tensor([[0.9526, 0.7311, 0.5000]], dtype=torch.float64)
    """
    path = sweep(predict, images, maps, targets, steps=steps, score=score, batch_size=batch_size)
    return path.curve(images, baseline.to(images).expand_as(images))


def insertion_curve(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    steps: int = STEPS,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> Curve:
    """Scores while the most relevant pixels enter the baseline, from the baseline alone to the image.

    Petsiuk et al., "RISE", BMVC 2018 (https://arxiv.org/abs/1806.07421). Steps, order and cost are those of
    `deletion_curve`.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where pixels are missing; `blurred` in the paper.
        steps: Number of steps S, in [1, HW].
        score: What is drawn, a probability unless the metric's range is to be given up.
        batch_size: Most images in one forward; None for N.

    Returns:
        Fractions (S+1,) and scores (N,S+1).

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> curve = insertion_curve(classifier, images, images[:, 0], torch.tensor([0]), baseline=0 * images, steps=2)
        >>> curve.probabilities
        tensor([[0.5000, 0.8808, 0.9526]], dtype=torch.float64)
    """
    path = sweep(predict, images, maps, targets, steps=steps, score=score, batch_size=batch_size)
    return path.curve(baseline.to(images).expand_as(images), images)


def perturbation_curves(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    insertion_baseline: Tensor | None = None,
    steps: int = STEPS,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> PerturbationCurves:
    """Deletion and insertion, whose shared ends are computed once.

    Cost: ``2 (steps - 1) + 2`` forwards of N images, one more where insertion starts from another baseline.

    Args:
        predict: As for `deletion_curve`, and so are the arguments that are not listed.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where pixels are deleted or missing.
        insertion_baseline: What insertion starts from; None for the same. The paper deletes to black and inserts
            into the blurred image.
        steps: Number of steps S, in [1, HW].
        score: What is drawn, a probability unless the metric's range is to be given up.
        batch_size: Most images in one forward; None for N.

    Returns:
        Fractions (S+1,), deletion curves (N,S+1) and insertion curves (N,S+1).

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> maps, targets = images[:, 0], torch.tensor([0])
        >>> perturbation_curves(classifier, images, maps, targets, baseline=0 * images, steps=2).insertion_curve
        tensor([[0.5000, 0.8808, 0.9526]], dtype=torch.float64)
    """
    path = sweep(predict, images, maps, targets, steps=steps, score=score, batch_size=batch_size)
    masked = baseline.to(images).expand_as(images)
    start = masked if insertion_baseline is None else insertion_baseline.to(images).expand_as(images)
    ends = path.at(images), path.at(masked)
    fractions, deletion = path.curve(images, masked, ends)
    before = ends[1] if insertion_baseline is None else path.at(start)
    return PerturbationCurves(fractions, deletion, path.curve(start, images, (before, ends[0])).probabilities)


def curve_area(fractions: Tensor, curves: Tensor) -> Tensor:
    """Area under each curve by the trapezoidal rule on the true fractions, so that it does not grow with the steps.

    Args:
        fractions: Where the curves are known, (S+1,), increasing from 0 to 1.
        curves: Curves (N,S+1).

    Returns:
        Areas (N,), float64, in [0, 1] for probabilities.

    Raises:
        ValueError: If shapes differ, or the fractions do not increase from 0 to 1.

    Example:
        >>> curve_area(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.5, 0.0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if fractions.ndim != 1 or curves.ndim != 2 or curves.shape[1] != len(fractions):
        raise ValueError(
            f"`fractions` and `curves` expected (S+1,) and (N,S+1), got {tuple(fractions.shape)} and "
            f"{tuple(curves.shape)}."
        )
    if fractions[0] != 0 or fractions[-1] != 1 or not (fractions.diff() > 0).all():
        raise ValueError(f"`fractions` expected to increase from 0 to 1, got {fractions.tolist()}.")
    return torch.trapezoid(curves.double(), fractions.double(), dim=1)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The way from one image to another, pixel by pixel in the order of maps; what `sweep` makes.

    Attributes:
        predict: The classifier.
        targets: Class of each image, (N,).
        ranks: Place of each pixel in the order, (N,H,W) or (M,N,H,W).
        counts: Number of pixels that have been replaced at each point, (S+1,).
        score: What is drawn.
        batch_size: Most images in one forward.
    """

    predict: Callable[[Tensor], Tensor]
    targets: Tensor
    ranks: Tensor
    counts: Tensor
    score: Score
    batch_size: int

    def at(self, images: Tensor) -> Tensor:
        """Scores (N,) of images as they are."""
        return self._scores(lambda some: images[some], self.targets)

    def curve(self, first: Tensor, last: Tensor, ends: tuple[Tensor, Tensor] | None = None) -> Curve:
        """Scores while pixels of some images (N,C,H,W) are replaced by those of others, most relevant first.

        Args:
            first: Where the way begins.
            last: Where it ends.
            ends: Scores (N,) of both, where they are known: two points less to compute.

        Returns:
            The curve of each map.
        """
        ranks, n = self.ranks.flatten(0, -3), len(first)
        points = self.counts if ends is None else self.counts[1:-1]

        def replaced(some: Tensor) -> Tensor:
            # Point by point, and at each the maps of all methods: a pass is filled across both.
            point, of = some // len(ranks), some % len(ranks)
            chosen = (ranks[of] < points[point, None, None])[:, None]
            return torch.where(chosen, last[of % n], first[of % n])

        scores = self._scores(replaced, self.targets.repeat(len(points) * (len(ranks) // max(1, n))))
        curves = scores.view(len(points), *self.ranks.shape[:-2]).movedim(0, -1)
        if ends is not None:
            before, after = (end.expand(curves.shape[:-1])[..., None] for end in ends)
            curves = torch.cat([before, curves, after], dim=-1)
        return Curve(self.counts.double() / self.counts[-1], curves)

    def _scores(self, made: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        return scores_of(self.predict, made, targets, score=self.score, batch_size=self.batch_size)


def sweep(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    steps: int = STEPS,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> Sweep:
    """What deletion and insertion share: the order of the pixels, and how many are replaced at each point.

    Args:
        predict: As for `deletion_curve`, and so are the arguments that are not listed.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W), or those of several methods, (M,N,H,W).
        targets: Class of each image, (N,).
        steps: Number of steps S, in [1, HW].
        score: What is drawn.
        batch_size: Most images in one forward; None for N.

    Returns:
        The way, for any two ends.

    Raises:
        ValueError: If maps or targets do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.zeros(2, 1, 2, 2)
        >>> sweep(lambda images: images, images, images[:, 0], torch.tensor([0, 0]), steps=2).counts
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
    return Sweep(predict, targets, ranks, counts, score, batch_size or max(1, len(images)))
