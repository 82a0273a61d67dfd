"""Faithfulness metrics: a pure function, then its torchmetrics class."""

from lightning_xai.metrics.confidence import (
    AbsoluteDrop,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    RelativeGain,
    absolute_drop,
    average_drop,
    average_gain,
    average_increase,
    masked_scores,
    relative_gain,
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
    "AbsoluteDrop",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "Baseline",
    "RelativeGain",
    "absolute_drop",
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
    "relative_gain",
]
