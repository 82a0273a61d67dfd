"""Image classifiers that explain themselves while they train: a PyTorch Lightning extension."""

from lightning_xai.attribution import GradCAM, GradCAMPlus, GradCAMPlusPlus, GuidedGradient, InputGradient
from lightning_xai.explain import explain
from lightning_xai.scores import (
    centered,
    label,
    log_sigmoid,
    log_softmax,
    post_softmax,
    pre_softmax,
    predicted,
    second_best,
    sigmoid,
)
from lightning_xai.types import Attribution

__all__ = [
    "Attribution",
    "GradCAM",
    "GradCAMPlus",
    "GradCAMPlusPlus",
    "GuidedGradient",
    "InputGradient",
    "centered",
    "explain",
    "label",
    "log_sigmoid",
    "log_softmax",
    "post_softmax",
    "pre_softmax",
    "predicted",
    "second_best",
    "sigmoid",
]
