"""Training terms: the guided-gradient loss, its errors, schedules and mixin, and the consistency of mirrored maps."""

from lightning_xai.regularization.adaptive import AdaptiveWeight, GradientProducts, GradientShare
from lightning_xai.regularization.alignment import gradient_pair
from lightning_xai.regularization.errors import (
    CenteredSigmoidMaskingLoss,
    CosineLoss,
    HistogramIntersectionLoss,
    L1DistanceLoss,
    L2DistanceLoss,
    SigmoidMaskingLoss,
)
from lightning_xai.regularization.mirror import mirror_consistency
from lightning_xai.regularization.mixin import TERM_NUMBERS, GuidedGradientMixin
from lightning_xai.regularization.schedules import ConstantWeight, LinearWarmup
from lightning_xai.regularization.teachers import (
    class_score_teacher,
    keep_saturated,
    loss_teacher,
    mask_saturated,
    negative_loss_teacher,
    weight_by_error,
)
from lightning_xai.regularization.term import GuidedGradientLoss, GuidedGradientTerms

__all__ = [
    "TERM_NUMBERS",
    "AdaptiveWeight",
    "CenteredSigmoidMaskingLoss",
    "ConstantWeight",
    "CosineLoss",
    "GradientProducts",
    "GradientShare",
    "GuidedGradientLoss",
    "GuidedGradientMixin",
    "GuidedGradientTerms",
    "HistogramIntersectionLoss",
    "L1DistanceLoss",
    "L2DistanceLoss",
    "LinearWarmup",
    "SigmoidMaskingLoss",
    "class_score_teacher",
    "gradient_pair",
    "keep_saturated",
    "loss_teacher",
    "mask_saturated",
    "mirror_consistency",
    "negative_loss_teacher",
    "weight_by_error",
]
