"""Whether a classifier's raw logits can be explained: checks that notice edits that make them lie, and a repair.

Which edits are found, by `inspect_model` alone and with the fingerprint of the trusted model. All leave every
prediction on the probes as it is. `tests/integrity/test_table.py` holds a test of each row.

=================================================================  ===================  ==========================
edit                                                               alone                with a fingerprint
=================================================================  ===================  ==========================
a large number added to all logits, in the graph or the rows       logit shift          logit shift
the same on images of some classes, if a tenth of the probes is    logit shift          logit shift
a smaller one that moves a raw map of a probe that was clean       maps differ          logit shift
one too small to move a map                                        clean                logit shift
one that is computed from the image, or before the layer           at the image, layer  logit shift at that layer
one that brings raw maps nearer to the centred ones                clean                logit shift
a number taken off classes without probability                     maps differ          changed
a backward pass that acts on the gradient of one class alone       false gradient       logit shift, code named
a hook that turns the gradients of all scores alike                listed, not judged   changed, hooks named
one that acts on a trigger that no probe shows                     by nobody            code differs
one that acts where a callback listens, or on other batches        `inspect_trace`      code differs
other weights with the same answers on the probes                  by nobody            parameters named
=================================================================  ===================  ==========================

A check is a pass of its own, made as `explain` makes one, which a model may tell from others by its batch, or by the
forward that stands in for the model's while a callback listens. `inspect_trace` judges the very pass that maps are made
of. By nobody, in short: zero-sum or per-class edits of what the model answers elsewhere, and triggers that no probe
pulls, where there is no fingerprint; with one, that parameters or code differ is said, not what they do. Whoever runs
code in this very process can forge all of it.
"""

from lightning_xai.integrity.checking import OneClassError, inspect_model, inspect_trace
from lightning_xai.integrity.comparison import ModelComparison
from lightning_xai.integrity.digest import Digest
from lightning_xai.integrity.evidence import for_model
from lightning_xai.integrity.figures import FIGURES, figure_named
from lightning_xai.integrity.final_layer import with_edited_rows
from lightning_xai.integrity.fingerprint import Fingerprint, compare_models
from lightning_xai.integrity.inspection import Inspection
from lightning_xai.integrity.locating import locate_shift
from lightning_xai.integrity.maps import AT_LAYER
from lightning_xai.integrity.measures import common_mode_share, mean_row_share
from lightning_xai.integrity.repair import CenteredLogits, center_logits
from lightning_xai.integrity.verdict import Threshold, Verdict, calibrated_threshold

__all__ = [
    "AT_LAYER",
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
