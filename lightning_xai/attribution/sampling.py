"""What methods share that look at many images made from each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_xai.kinds import require_count, require_number
from lightning_xai.noise import placed_like
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace
from lightning_xai.types import Score

Samples: TypeAlias = Callable[[Tensor, "Tensor | slice"], Tensor]
"""Makes images: ``(which sample, of which image) -> images (M,C,H,W)``.

Numbers (M,), or those of one sample of all images as ``(1,)`` and a slice, which copies nothing.
"""


def mean_gradient(
    trace: Trace, score: Score, targets: Tensor, samples: Samples, weights: Tensor, batch_size: int | None
) -> Tensor:
    """The weighted sum, over samples of each image, of the gradient of its score.

    Samples are made, run and forgotten in chunks; each costs one forward pass and one backward pass to the image.

    Args:
        trace: One forward pass of N images.
        score: The number that is explained.
        targets: Class to explain for each image, (N,).
        samples: Makes the samples of a chunk. It is asked for those of all images, in turn, before the next of any.
        weights: Weight of each sample, (S,).
        batch_size: How many samples run at once; None for N.

    Returns:
        Gradients (N,C,H,W), float32 or better.
    """
    n = len(targets)
    total = torch.zeros_like(at_least_float32(trace.images))
    weights = placed_like(weights, total)
    for rows in torch.arange(len(weights) * n, device=total.device).split(batch_size or n):
        each = None if len(rows) == n else rows % n  # one sample of all images needs no copies
        steps, of = (rows[:1] // n, slice(None)) if each is None else (rows // n, each)
        # one expression: a name for the trace would keep its graph while the next one is made
        images = samples(steps, of).to(trace.images.dtype)
        gradients = trace.rerun(images, rows=each, once=True).image_gradient(score, targets[of])
        shares = weights[steps, None, None, None]
        total.addcmul_(gradients, shares) if each is None else total.index_add_(0, each, gradients * shares)
    return total


def require_batch_size(batch_size: int | None) -> None:
    """Check how many images are to run at once."""
    require_count("batch_size", batch_size, none="as many as there are images")


def require_noise_level(noise_level: float) -> None:
    """Check a standard deviation of noise."""
    require_number("noise_level", noise_level)
    if not noise_level >= 0:
        raise ValueError(f"`noise_level` expected a share of the image's range, 0 or more, got {noise_level}.")
