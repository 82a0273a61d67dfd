"""Whether a classifier's raw logits can be explained: checks that notice edits that make them lie, and a repair."""

from lightning_xai.integrity.comparison import ModelComparison
from lightning_xai.integrity.digest import Digest
from lightning_xai.integrity.evidence import for_model
from lightning_xai.integrity.figures import FIGURES, figure_named
from lightning_xai.integrity.final_layer import with_edited_rows
from lightning_xai.integrity.fingerprint import Fingerprint, compare_models
from lightning_xai.integrity.inspection import Inspection, OneClassError, inspect_model, inspect_trace
from lightning_xai.integrity.locating import locate_shift
from lightning_xai.integrity.measures import common_mode_share, mean_row_share
from lightning_xai.integrity.repair import CenteredLogits, center_logits
from lightning_xai.integrity.verdict import Threshold, Verdict, calibrated_threshold

__all__ = [
    "FIGURES",
    "CenteredLogits",
    "Digest",
    "Fingerprint",
    "Inspection",
    "ModelComparison",
    "OneClassError",
    "Threshold",
    "Verdict",
    "calibrated_threshold",
    "center_logits",
    "common_mode_share",
    "compare_models",
    "figure_named",
    "for_model",
    "inspect_model",
    "inspect_trace",
    "locate_shift",
    "mean_row_share",
    "with_edited_rows",
]
