"""Whether a classifier's raw logits can be explained: edits that make them lie, checks that notice, and a repair."""

from lightning_xai.integrity.attacks import (
    Attack,
    EnergyShift,
    LogitShift,
    NetworkShift,
    PositionShift,
    RandomShift,
    RowEdit,
    ShiftedLogits,
    TriggeredShift,
    UniformShift,
    WorstCaseShift,
)
from lightning_xai.integrity.inspection import Inspection, inspect_model, inspect_trace
from lightning_xai.integrity.measures import common_mode_share, mean_row_share, rank_correlation
from lightning_xai.integrity.repair import CenteredLogits, center_logits
from lightning_xai.integrity.verdict import Threshold, Verdict, calibrated_threshold

__all__ = [
    "Attack",
    "CenteredLogits",
    "EnergyShift",
    "Inspection",
    "LogitShift",
    "NetworkShift",
    "PositionShift",
    "RandomShift",
    "RowEdit",
    "ShiftedLogits",
    "Threshold",
    "TriggeredShift",
    "UniformShift",
    "Verdict",
    "WorstCaseShift",
    "calibrated_threshold",
    "center_logits",
    "common_mode_share",
    "inspect_model",
    "inspect_trace",
    "mean_row_share",
    "rank_correlation",
]
