"""Perturbation curves: the probability of a class while pixels leave or enter the image in the order of its map."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_xai.metrics.forwards import asking
from lightning_xai.metrics.sweep import STEPS, Curve, sweep
from lightning_xai.scores import post_softmax
from lightning_xai.types import Score


class PerturbationCurves(NamedTuple):
    """Both curves of each image, for ``MetricCollection([Deletion(), Insertion()]).update(**curves._asdict())``.

    Attributes:
        fractions: Share of the pixels that were perturbed, (S+1,), float64, from 0 to 1.
        deletion_curve: Score of each image's class, (N,S+1), float64, from the image to the baseline.
        insertion_curve: Score of each image's class, (N,S+1), float64, from the baseline to the image.
    """

    fractions: Tensor
    deletion_curve: Tensor
    insertion_curve: Tensor


def deletion_curve(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    steps: int = STEPS,
    score: Score = post_softmax,
    tolerance: float = 0.0,
    batch_size: int | None = None,
) -> Curve:
    """Scores while the most relevant pixels are replaced by the baseline, from the image to the baseline alone.

    Petsiuk et al., "RISE", BMVC 2018 (https://arxiv.org/abs/1806.07421), there with 224 pixels a step and a black
    baseline. Step k of S replaces ``ceil(k HW / S)`` pixels, the most relevant first. Cost: at most
    ``steps + 1`` forwards of N images; `perturbation_curves` gives insertion too and shares the ends.

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
        tolerance: Between neighbouring points whose scores differ by less a straight line is drawn and no point is
            computed, down from four stretches of the curve; 0 to compute them all.
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
    options: Any = {"steps": steps, "score": score, "tolerance": tolerance, "batch_size": batch_size}
    path = sweep(asking(predict), images, maps, targets, **options)
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
    tolerance: float = 0.0,
    batch_size: int | None = None,
) -> Curve:
    """Scores while the most relevant pixels enter the baseline, from the baseline alone to the image.

    Petsiuk et al., "RISE", BMVC 2018 (https://arxiv.org/abs/1806.07421), there from the `blurred` image. Arguments,
    steps, order, cost and errors are those of `deletion_curve`; the baseline stands where pixels are missing.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> curve = insertion_curve(classifier, images, images[:, 0], torch.tensor([0]), baseline=0 * images, steps=2)
        >>> curve.probabilities
        tensor([[0.5000, 0.8808, 0.9526]], dtype=torch.float64)
    """
    options: Any = {"steps": steps, "score": score, "tolerance": tolerance, "batch_size": batch_size}
    path = sweep(asking(predict), images, maps, targets, **options)
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
    tolerance: float = 0.0,
    batch_size: int | None = None,
) -> PerturbationCurves:
    """Deletion and insertion, whose shared ends are computed once.

    Cost: at most ``2 (steps - 1) + 2`` forwards of N images, one more where insertion starts from another baseline, as
    in the paper, which deletes to black and inserts into the blurred image. Other arguments as of `deletion_curve`.

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
    options: Any = {"steps": steps, "score": score, "tolerance": tolerance, "batch_size": batch_size}
    path = sweep(asking(predict), images, maps, targets, **options)
    masked = baseline.to(images).expand_as(images)
    start = masked if insertion_baseline is None else insertion_baseline.to(images).expand_as(images)
    ends = path.at(images), path.at(masked)
    fractions, deletion = path.curve(images, masked, ends)
    before = ends[1] if insertion_baseline is None else path.at(start)
    return PerturbationCurves(fractions, deletion, path.curve(start, images, (before, ends[0])).probabilities)


def curve_area(fractions: Tensor, curves: Tensor) -> Tensor:
    """Area (N,) under each curve by the trapezoidal rule on the true fractions: it does not grow with the steps.

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
