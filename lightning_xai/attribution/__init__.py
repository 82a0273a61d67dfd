"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace."""

from lightning_xai.attribution.cam import CAM, GradCAM, GradCAMPlus
from lightning_xai.attribution.cam_plus_plus import GradCAMPlusPlus, SmoothGradCAMPlusPlus, alpha_distribution
from lightning_xai.attribution.controls import CenteredGaussian, Edges, FakeCAM, Random, Shuffled
from lightning_xai.attribution.elementwise_cam import HiResCAM, LayerCAM, XGradCAM
from lightning_xai.attribution.from_callable import FromCallable
from lightning_xai.attribution.gradient import GuidedGradient, InputGradient, InputXGradient
from lightning_xai.attribution.guided_cam import GuidedGradCAM
from lightning_xai.attribution.paths import IntegratedGradients, SmoothGrad
from lightning_xai.attribution.rsi_cam import RSIGradCAM
from lightning_xai.attribution.score_cam import ScoreCAM

__all__ = [
    "CAM",
    "CenteredGaussian",
    "Edges",
    "FakeCAM",
    "FromCallable",
    "GradCAM",
    "GradCAMPlus",
    "GradCAMPlusPlus",
    "GuidedGradCAM",
    "GuidedGradient",
    "HiResCAM",
    "InputGradient",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCAM",
    "RSIGradCAM",
    "Random",
    "ScoreCAM",
    "Shuffled",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "XGradCAM",
    "alpha_distribution",
]
