"""The guided-gradient training term: error functions, schedules of its weight, the loss and the mixin."""

from lightning_xai.regularization.loss import (
    GuidedGradientLoss,
    GuidedGradientTerms,
    class_score_teacher,
    keep_saturated,
    loss_teacher,
    mask_saturated,
    negative_loss_teacher,
    weight_by_error,
)
from lightning_xai.regularization.losses import (
    CenteredSigmoidMaskingLoss,
    CosineLoss,
    HistogramIntersectionLoss,
    L1DistanceLoss,
    L2DistanceLoss,
    SigmoidMaskingLoss,
)
from lightning_xai.regularization.mixin import GuidedGradientMixin
from lightning_xai.regularization.schedules import ConstantWeight, CosineWeight, LinearWarmup, StepWeight

__all__ = [
    "CenteredSigmoidMaskingLoss",
    "ConstantWeight",
    "CosineLoss",
    "CosineWeight",
    "GuidedGradientLoss",
    "GuidedGradientMixin",
    "GuidedGradientTerms",
    "HistogramIntersectionLoss",
    "L1DistanceLoss",
    "L2DistanceLoss",
    "LinearWarmup",
    "SigmoidMaskingLoss",
    "StepWeight",
    "class_score_teacher",
    "keep_saturated",
    "loss_teacher",
    "mask_saturated",
    "negative_loss_teacher",
    "weight_by_error",
]
