"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace.

Attention rollout and its gradient-weighted form (Abnar and Zuidema 2020; Chefer et al. 2021) are not among them. They
multiply the attention matrices of all layers, which are no module's output, and which fused kernels never make: a trace
would have to keep what operations compute, and be asked for gradients of all of it at once. They also take for granted
that every layer sees the same tokens and that the head reads one of them, which windows, pooled tokens and means of
patches do not give, and no shape tells. `LRP` follows relevance through attention in all of these.
"""

from lightning_xai.attribution.ablation_cam import AblationCAM
from lightning_xai.attribution.base import Attribution, ScoredAttribution, unit_maximum, upsample
from lightning_xai.attribution.cam import CAM, GradCAM, GradCAMPlus, weighted_sum
from lightning_xai.attribution.cam_plus_plus import (
    GradCAMPlusPlus,
    SmoothGradCAMPlusPlus,
    guarded_alphas,
    literal_alphas,
)
from lightning_xai.attribution.controls import CenteredGaussian, Edges, FakeCAM, Random, Shuffled
from lightning_xai.attribution.deeplift import DeepLIFT
from lightning_xai.attribution.eigen_cam import EigenCAM
from lightning_xai.attribution.elementwise_cam import HiResCAM, LayerCAM, XGradCAM
from lightning_xai.attribution.finer_cam import FinerCAM
from lightning_xai.attribution.from_callable import FromCallable
from lightning_xai.attribution.gradient import GuidedGradient, InputGradient, InputXGradient, channel_max, channel_sum
from lightning_xai.attribution.guided_cam import GuidedGradCAM
from lightning_xai.attribution.lrp import (
    CLRP,
    LRP,
    SGLRP,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    NormalizedCLRP,
    Rules,
    ScoreGradient,
    WSquare,
    ZBox,
    absolute_target_logit,
    by_sign,
    conservation_error,
    in_proportion,
    is_reversed,
    lossless,
    negated_z_plus,
    z_plus,
)
from lightning_xai.attribution.paths import IntegratedGradients, SmoothGrad
from lightning_xai.attribution.rsi_cam import RSIGradCAM
from lightning_xai.attribution.score_cam import ScoreCAM

__all__ = [
    "CAM",
    "CLRP",
    "LRP",
    "SGLRP",
    "AblationCAM",
    "AlphaBeta",
    "Attribution",
    "CenteredGaussian",
    "DeepLIFT",
    "Edges",
    "EigenCAM",
    "Epsilon",
    "FakeCAM",
    "FinerCAM",
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
    "ScoredAttribution",
    "Shuffled",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "WSquare",
    "XGradCAM",
    "ZBox",
    "absolute_target_logit",
    "by_sign",
    "channel_max",
    "channel_sum",
    "conservation_error",
    "guarded_alphas",
    "in_proportion",
    "is_reversed",
    "literal_alphas",
    "lossless",
    "negated_z_plus",
    "unit_maximum",
    "upsample",
    "weighted_sum",
    "z_plus",
]
