"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace."""

from lightning_xai.attribution.cam import GradCAM, GradCAMPlus, GradCAMPlusPlus
from lightning_xai.attribution.controls import CenteredGaussian, FakeCAM, Random
from lightning_xai.attribution.gradient import GuidedGradient, InputGradient

__all__ = [
    "CenteredGaussian",
    "FakeCAM",
    "GradCAM",
    "GradCAMPlus",
    "GradCAMPlusPlus",
    "GuidedGradient",
    "InputGradient",
    "Random",
]
