"""Confidence metrics: what happens to the probability of a class when only what the map shows is left of the image.

All work on log-probabilities in float64, so that neither a small ``p`` nor a small ``1 - p`` is rounded away. The class
is fixed from the unmasked image and never predicted again; ``p`` is its probability on the image, ``o`` on the masked
image. Compare every number with controls: a map that hides one pixel (Fake-CAM) has next to no drop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.base import Need
from lightning_xai.metrics.sample import Sample


def average_drop(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Share of the confidence that is lost, ``100 max(0, p - o) / p``; where p is 0 nothing can be lost.

    Args:
        scores: Log-probabilities of the class on the images, (N,).
        masked_scores: Log-probabilities of the same class on the masked images, (N,), of the same dtype.

    Returns:
        Drop of each image (N,) in [0, 100] percent, float64; lower is better.

    Raises:
        ValueError: If the scores are no log-probabilities, or differ in shape or dtype.

    Example:
        >>> average_drop(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        tensor([75.0000,  0.0000], dtype=torch.float64)
    """
    before, after = log_probabilities(scores, masked_scores)
    return torch.where(after < before, -100.0 * torch.expm1(after - before), 0.0)


def absolute_drop(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Confidence that is lost, ``100 max(0, p - o)``: a variant of `average_drop` without the denominator.

    pytorch-grad-cam's ``DropInConfidence``, here of probabilities.

    Arguments and errors are those of `average_drop`.

    Returns:
        Drop of each image (N,) in [0, 100] percentage points, float64; lower is better.

    Example:
        >>> absolute_drop(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        tensor([60.0000,  0.0000], dtype=torch.float64)
    """
    before, after = log_probabilities(scores, masked_scores)
    return torch.where(after < before, -100.0 * before.exp() * torch.expm1(after - before), 0.0)


def average_increase(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Whether the confidence grows, ``100 [o > p]``.

    Arguments and errors are those of `average_drop`.

    Returns:
        100 or 0 percent for each image, (N,), float64; higher is better.

    Example:
        >>> average_increase(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        tensor([  0., 100.], dtype=torch.float64)
    """
    before, after = log_probabilities(scores, masked_scores)
    return 100.0 * (after > before).double()


def average_gain(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Share of the missing confidence that is won, ``100 max(0, o - p) / (1 - p)``; where p is 1 nothing can be won.

    Arguments and errors are those of `average_drop`.

    Returns:
        Gain of each image (N,) in [0, 100] percent, float64; higher is better.

    Example:
        >>> average_gain(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        tensor([ 0.0000, 20.0000], dtype=torch.float64)
    """
    before, after = log_probabilities(scores, masked_scores)
    # (o - p) / (1 - p) = 1 - (1 - o) / (1 - p), where each 1 - p is exact in log space.
    return torch.where(after > before, 100.0 * (1.0 - torch.expm1(after) / torch.expm1(before)), 0.0)


def relative_gain(scores: Tensor, masked_scores: Tensor) -> Tensor:
    """Gain as a share of the confidence, ``100 max(0, o - p) / p``: a variant of `average_gain`.

    Arguments and errors are those of `average_drop`.

    Returns:
        Gain of each image (N,) in [0, inf] percent, float64; higher is better. From p = 0 any gain is infinite.

    Example:
        >>> relative_gain(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        tensor([ 0.0000, 20.0000], dtype=torch.float64)
    """
    before, after = log_probabilities(scores, masked_scores)
    return torch.where(after > before, 100.0 * torch.expm1(after - before), 0.0)


class ConfidenceMetric(ImageAverage):
    """What the five metrics below share: the mean of a formula in p and o, in percent of what it says.

    A map that shows nothing (constant, all-zero or not finite) counts with what the baseline alone does. Without images
    the result is NaN. ``update(scores, masked_scores)`` takes log-probabilities (N,) as `masked_scores` returns them.
    Options and attributes are those of `ImageAverage`.

    Attributes:
        formula: The pure function: value of each image (N,) from both log-probabilities.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"masked_scores"})
    formula: ClassVar[Callable[..., Tensor]]

    def measure(self, sample: Sample) -> None:
        """Update with the scores of the images and of the masked images."""
        self.update(sample.scores, sample.masked_scores)

    def update(self, scores: Tensor, masked_scores: Tensor) -> None:
        """Add one batch of log-probabilities (N,) of the images and of the masked images."""
        self.add(self.formula(scores, masked_scores))


class AverageDrop(ConfidenceMetric):
    """Average Drop, ``100/N sum_i max(0, p_i - o_i) / p_i``, in percent of each image's confidence; lower is better.

    From Chattopadhay et al., "Grad-CAM++", WACV 2018; Torres Figueroa et al. 2024 eq. 15, which omits 1/N. Range [0,
    100]; a map that shows nothing drops nearly 100. Alone it rewards showing nearly everything; compare it with
    a Fake-CAM. Options and attributes are those of `ConfidenceMetric`.

    Example:
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        >>> metric.compute()
        tensor(37.5000, dtype=torch.float64)
    """

    higher_is_better = False
    formula = staticmethod(average_drop)


class AbsoluteDrop(ConfidenceMetric):
    """Absolute drop, ``100/N sum_i max(0, p_i - o_i)``, in percentage points; lower is better.

    The variant of `AverageDrop` in pytorch-grad-cam (``DropInConfidence``, there of whatever is explained).
    Range [0, 100]. It weighs images by their confidence: uncertain ones have little to lose. Options and attributes are
    those of `ConfidenceMetric`.
    """

    unit = "points"
    higher_is_better = False
    formula = staticmethod(absolute_drop)


class AverageIncrease(ConfidenceMetric):
    """Average Increase, ``100/N sum_i [o_i > p_i]``, in percent of the images; higher is better.

    From Chattopadhay et al., "Grad-CAM++", WACV 2018, there "increase in confidence"; Torres Figueroa et al. 2024 eq.
    16. Range [0, 100]. It counts increases and does not weigh them; a Fake-CAM reached 52 % in a trial. Options and
    attributes are those of `ConfidenceMetric`.

    Example:
        >>> metric = AverageIncrease()
        >>> metric.update(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True
    formula = staticmethod(average_increase)


class AverageGain(ConfidenceMetric):
    """Average Gain, ``100/N sum_i max(0, o_i - p_i) / (1 - p_i)``, in percent of what was missing; higher is better.

    From Zhang et al., "Opti-CAM", CVIU 248:104101, 2024; Torres Figueroa et al. 2024 eq. 17 divides by p_i instead
    (`RelativeGain`). Range [0, 100]. Images with p = 1 gain 0; in log space that takes a margin of more than 700
    between the logits. Options and attributes are those of `ConfidenceMetric`.

    Example:
        >>> metric = AverageGain()
        >>> metric.update(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.6]).log())
        >>> metric.compute()
        tensor(10.0000, dtype=torch.float64)
    """

    higher_is_better = True
    formula = staticmethod(average_gain)


class RelativeGain(ConfidenceMetric):
    """Relative gain, ``100/N sum_i max(0, o_i - p_i) / p_i``, in percent of each image's confidence; higher is better.

    The variant of `AverageGain` that Torres Figueroa et al. 2024 prints (eq. 17, without its 1/N). Range [0, inf): an
    image with a small p outweighs all others, and p = 0 makes the average infinite. Options and attributes are those of
    `ConfidenceMetric`.
    """

    higher_is_better = True
    plot_upper_bound = None
    formula = staticmethod(relative_gain)


def log_probabilities(scores: Tensor, masked_scores: Tensor, name: str = "masked_scores") -> tuple[Tensor, Tensor]:
    """Scores (N,) before and after masking in float64, checked to be log-probabilities of the same images in one dtype.

    In errors ``name`` is what the caller's second argument is called.
    """
    if scores.ndim != 1 or scores.shape != masked_scores.shape:
        raise ValueError(
            f"`scores` and `{name}` expected one number for each image, (N,) and (N,), "
            f"got {tuple(scores.shape)} and {tuple(masked_scores.shape)}."
        )
    if scores.dtype != masked_scores.dtype:
        raise ValueError(
            f"`scores` and `{name}` expected one dtype, since rounding alone would look like an increase, "
            f"got {scores.dtype} and {masked_scores.dtype}. Compute both from `logits.double()`."
        )
    for argument, values in (("scores", scores), (name, masked_scores)):
        fine = values <= 0
        if not fine.all():
            raise ValueError(
                f"`{argument}` expected log-probabilities in [-inf, 0], got {values[~fine][0].item():.4g}. A share of "
                "a logit means nothing, and a probability has lost 1 - p where it rounds to 1. Use "
                "`lightning_xai.scores.log_softmax`, or `log_sigmoid` for one-logit and multi-label heads."
            )
    return scores.double(), masked_scores.double()
