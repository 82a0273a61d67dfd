"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace."""

from lightning_xai.attribution.cam import GradCAM, GradCAMPlus, GradCAMPlusPlus
from lightning_xai.attribution.controls import CenteredGaussian, FakeCAM, Random
from lightning_xai.attribution.from_callable import FromCallable
from lightning_xai.attribution.gradient import GuidedGradient, InputGradient, InputXGradient
from lightning_xai.attribution.paths import IntegratedGradients, SmoothGrad

__all__ = [
    "CenteredGaussian",
    "FakeCAM",
    "FromCallable",
    "GradCAM",
    "GradCAMPlus",
    "GradCAMPlusPlus",
    "GuidedGradient",
    "InputGradient",
    "InputXGradient",
    "IntegratedGradients",
    "Random",
    "SmoothGrad",
]
