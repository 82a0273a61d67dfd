"""Masked images: what a map shows of an image, and what stands where it shows nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_xai.metrics.forwards import Ask, asking, check_maps, scores_of
from lightning_xai.scores import at_least_float32, log_softmax
from lightning_xai.types import Score

_ROUNDING = 64.0
"""Ranges below this many spacings of floats are rounding: upsampling a constant map was seen to leave 21."""


def degenerate(maps: Tensor) -> Tensor:
    """Which maps show nothing: constant after ReLU (all-zero included), or not finite.

    Constant means up to rounding, as upsampling leaves it. Such images stay in every metric, with nothing shown; this
    function is there to count them.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> degenerate(torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]], [[-1.0, -2.0]], [[torch.nan, 1.0]]]))
        tensor([False,  True,  True,  True])
    """
    _, low, high = _rectified(maps)
    rounding = _ROUNDING * torch.finfo(high.dtype).eps * high
    # Comparisons with NaN are false; -inf alone passes the ReLU as an innocent 0.
    return ~(high - low > rounding)[:, 0, 0] | ~maps.isfinite().flatten(1).all(1)


def normalized_masks(maps: Tensor) -> Tensor:
    """Maps as masks: ReLU, then min-max for each image.

    Args:
        maps: Maps (N,H,W) at image resolution; normalising before upsampling would give other masks.

    Returns:
        Masks (N,H,W) in [0, 1], float32 or better: 1 where the image is shown. A map that is `degenerate` gives
        zeros: nothing is shown.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> normalized_masks(torch.tensor([[[-3.0, 1.0, 2.0]], [[7.0, 7.0, 7.0]]]))
        tensor([[[0.0000, 0.5000, 1.0000]],
                [[0.0000, 0.0000, 0.0000]]])
    """
    positive, low, high = _rectified(maps)
    return ((positive - low) / (high - low)).masked_fill(degenerate(maps)[:, None, None], 0.0)


def masked_images(images: Tensor, maps: Tensor, baseline: Tensor) -> Tensor:
    """What the maps show of the images, ``x * m + baseline * (1 - m)`` with ``m`` from `normalized_masks`.

    Args:
        images: Images (N,C,H,W).
        maps: Maps (N,H,W), as attributions return them.
        baseline: What stands where the mask is 0, in the images' space, broadcastable to (N,C,H,W).

    Returns:
        Images (N,C,H,W) of the images' dtype.

    Raises:
        ValueError: If the maps do not belong to the images.

    Example:
        >>> masked_images(torch.ones(1, 1, 1, 3), torch.tensor([[[0.0, 1.0, 4.0]]]), torch.tensor(-1.0))
        tensor([[[[-1.0000, -0.5000,  1.0000]]]])
    """
    expected = (len(images), *images.shape[2:])
    if maps.shape != expected:
        raise ValueError(
            f"`maps` expected one map for each image at its resolution, {expected}, got {tuple(maps.shape)}. "
            "Upsample maps of a layer with `torch.nn.functional.interpolate`."
        )
    masks = normalized_masks(maps)[:, None]
    return (images * masks + baseline * (1 - masks)).to(images.dtype)


def masked_scores(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    score: Score = log_softmax,
    batch_size: int | None = None,
) -> Tensor:
    """Log-probability of each image's class when only what the map shows is left: one forward for all metrics.

    The scores of the unmasked images, with which metrics compare these, are ``score(logits.double(), targets)``.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K).
        images: Images (N,C,H,W).
        maps: Maps (N,H,W), turned into masks by `normalized_masks`; or those of several methods, (M,N,H,W).
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where the map hides the image, as a `Baseline` returns it.
        score: The log-probability; ``log_sigmoid`` for one-logit and multi-label heads.
        batch_size: Most images in one forward, of whatever method; None for all.

    Returns:
        Log-probabilities (N,) or (M,N) in [-inf, 0], float64, computed from the logits in float64.

    Raises:
        ValueError: If maps, targets or logits do not belong to the images.

    Example:
        >>> images, maps = torch.ones(1, 1, 1, 2), torch.tensor([[[0.0, 1.0]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> masked_scores(classifier, images, maps, torch.tensor([0]), baseline=torch.tensor(0.0)).exp()
        tensor([0.7311], dtype=torch.float64)
    """
    check_maps(images, maps, targets)
    data = asking(predict), images, maps, targets
    return asked_masked_scores(*data, baseline=baseline, score=score, batch_size=batch_size)


def asked_masked_scores(
    ask: Ask, images: Tensor, maps: Tensor, targets: Tensor, *, baseline: Tensor, score: Score, batch_size: int | None
) -> Tensor:
    """`masked_scores` of a classifier that takes more than images."""
    n, flat, behind = len(images), maps.flatten(0, -3), baseline.expand_as(images)
    of = torch.arange(len(flat), device=images.device) % max(1, n)

    def masked(some: Tensor) -> Tensor:
        return masked_images(images[of[some]], flat[some], behind[of[some]])

    return scores_of(ask, masked, of, targets, score=score, batch_size=batch_size).view(maps.shape[:-2])


def _rectified(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if maps.ndim != 3:
        raise ValueError(f"`maps` expected shape (N,H,W), got {tuple(maps.shape)}.")
    positive = at_least_float32(maps).relu()
    return positive, positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
