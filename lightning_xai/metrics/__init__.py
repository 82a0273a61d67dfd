"""Faithfulness metrics: a pure function, then its torchmetrics class."""

from lightning_xai.metrics.confidence import (
    AverageDrop,
    AverageGain,
    AverageIncrease,
    average_drop,
    average_gain,
    average_increase,
    masked_scores,
)
from lightning_xai.metrics.masking import (
    Baseline,
    black,
    blurred,
    degenerate,
    masked_images,
    mean_color,
    normalized_masks,
)

__all__ = [
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "Baseline",
    "average_drop",
    "average_gain",
    "average_increase",
    "black",
    "blurred",
    "degenerate",
    "masked_images",
    "masked_scores",
    "mean_color",
    "normalized_masks",
]
