"""Faithfulness metrics: a pure function, then its torchmetrics class."""

from lightning_xai.metrics.boxes import Boxes, box_masks
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
from lightning_xai.metrics.energy_pointing import EnergyPointingAccuracy, energy_pointing
from lightning_xai.metrics.localization import EnergyInBox, PointingGame, energy_in_box, pointing_game
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
    "Boxes",
    "EnergyInBox",
    "EnergyPointingAccuracy",
    "PointingGame",
    "RelativeGain",
    "absolute_drop",
    "average_drop",
    "average_gain",
    "average_increase",
    "black",
    "blurred",
    "box_masks",
    "degenerate",
    "energy_in_box",
    "energy_pointing",
    "masked_images",
    "masked_scores",
    "mean_color",
    "normalized_masks",
    "pointing_game",
    "relative_gain",
]
