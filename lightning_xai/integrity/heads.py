"""Heads whose logits share a lot though nobody edited them, known by their logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lightning_xai.scores import at_least_float32

UNDECIDED = "the predictions are undecided, as those of an untrained or frozen random head"
SIGMOIDS = "the sigmoids of an image's logits sum to about one, as those of a head trained for sigmoids"
UNTRAINED = "the classes' weights share no more than random ones do (1/K), and so do the gradients: an untrained head"
RECTIFIED = "no logit is negative and the smallest are near zero, as where the classes' maps pass a ReLU"
LOG_PROBABILITIES = "the logits are log-probabilities, which depend on all classes"
REFERENCE_CLASS = "a class has the same logit for all images, as where the others are relative to it"
DISTANCES = "no logit is positive, as where they are negative distances"


def innocent_reasons(logits: Tensor) -> tuple[str, ...]:
    """Signs of a head whose raw and centred maps may differ though nobody edited it.

    They explain what is found and excuse nothing: any of them can be imitated by adding a number to all logits, which
    no softmax sees.

    Returns:
        The signs, in words: the median entropy of the softmax is above 0.9 of its maximum; the sum of sigmoids lies in
        [0.5, 2] for 80 % of the images and the median image's mean logit is below minus one standard deviation of its
        logits; no logit is negative and the median image's smallest is under 10 % of the range of its logits;
        probabilities sum to one as they are; a class's logits do not vary; no logit is positive.

    Example:
        >>> import torch
        >>> innocent_reasons(torch.tensor([[3.0, -9.0, -8.0, -9.0, -9.0]]))
        ("the sigmoids of an image's logits sum to about one, as those of a head trained for sigmoids",)
        >>> innocent_reasons(torch.tensor([[9.0, -4.0, -5.0, 5.0], [-4.0, 9.0, 3.0, 1.0]]))
        ()
    """
    logits = at_least_float32(logits)
    classes = logits.shape[1]
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1) / math.log(max(classes, 2))
    smallest, largest = logits.aminmax(dim=1)
    sigmoids, level = logits.sigmoid().sum(1), (logits.mean(1) / logits.std(1)).median()
    about_one = ((sigmoids >= 0.5) & (sigmoids <= 2)).double().mean()
    normalised = bool((logits.logsumexp(1).abs() <= 1e-3).all())
    signs = {
        UNDECIDED: entropy.median() > 0.9,
        SIGMOIDS: about_one >= 0.8 and level < -1 and not normalised,
        RECTIFIED: smallest.min() >= 0 and (smallest / (largest - smallest)).median() < 0.1,
        LOG_PROBABILITIES: normalised,
        REFERENCE_CLASS: len(logits) > 1 and (logits.std(0) <= 1e-6 * logits.std()).any(),
        DISTANCES: largest.max() <= 0 and not normalised,
    }
    return tuple(sign for sign, shows in signs.items() if shows)


def looks_untrained(shares: Sequence[float], mean_row: float | None, classes: int) -> bool:
    """Whether all that is shared is what random weights share, ``1/K``, as in the first steps of training.

    Returns:
        True if the mean row lies within half of ``1/K`` around it, and no share of gradients is above ``2/K``.

    Example:
        >>> looks_untrained([0.11, 0.09], mean_row=0.1, classes=10), looks_untrained([0.5], mean_row=0.1, classes=10)
        (True, False)
    """
    expected = 1 / classes
    near = mean_row is not None and 0.5 * expected <= mean_row <= 1.5 * expected
    return near and all(share <= 2 * expected for share in shares)


def check_logits(logits: Tensor) -> None:
    """Refuse logits of which no share can be taken.

    Raises:
        ValueError: If they are not finite, or there is one class only.
    """
    if not logits.isfinite().all():
        raise ValueError("`model` expected to give finite logits, got NaN or infinity.")
    if logits.shape[1] < 2:
        raise ValueError(
            f"`model` expected to give logits of at least 2 classes for a softmax, got shape {tuple(logits.shape)}. "
            "A shift of one logit changes its sigmoid: compare predictions instead."
        )
