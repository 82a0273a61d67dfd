"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace."""

from lightning_xai.attribution.cam import CAM, GradCAM, GradCAMPlus
from lightning_xai.attribution.cam_plus_plus import GradCAMPlusPlus, SmoothGradCAMPlusPlus, alpha_distribution
from lightning_xai.attribution.controls import CenteredGaussian, Edges, FakeCAM, Random, Shuffled
from lightning_xai.attribution.deeplift import DeepLIFT
from lightning_xai.attribution.elementwise_cam import HiResCAM, LayerCAM, XGradCAM
from lightning_xai.attribution.from_callable import FromCallable
from lightning_xai.attribution.gradient import GuidedGradient, InputGradient, InputXGradient
from lightning_xai.attribution.guided_cam import GuidedGradCAM
from lightning_xai.attribution.paths import IntegratedGradients, SmoothGrad
from lightning_xai.attribution.relevance import CLRP, LRP, SGLRP, NormalizedCLRP, Rules, ScoreGradient
from lightning_xai.attribution.rsi_cam import RSIGradCAM
from lightning_xai.attribution.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, z_plus
from lightning_xai.attribution.score_cam import ScoreCAM

__all__ = [
    "CAM",
    "CLRP",
    "LRP",
    "SGLRP",
    "AlphaBeta",
    "CenteredGaussian",
    "DeepLIFT",
    "Edges",
    "Epsilon",
    "FakeCAM",
    "Flat",
    "FromCallable",
    "Gamma",
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
    "NormalizedCLRP",
    "RSIGradCAM",
    "Random",
    "Rules",
    "ScoreCAM",
    "ScoreGradient",
    "Shuffled",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "WSquare",
    "XGradCAM",
    "ZBox",
    "alpha_distribution",
    "z_plus",
]
