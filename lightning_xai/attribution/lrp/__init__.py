"""Layer-wise relevance propagation: rules, what operations hand on, and the methods."""

from lightning_xai.attribution.lrp.conservation import conservation_error
from lightning_xai.attribution.lrp.methods import CLRP, LRP, SGLRP, NormalizedCLRP, Rules
from lightning_xai.attribution.lrp.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
    lossless,
    negated_z_plus,
    z_plus,
)
from lightning_xai.attribution.lrp.seeds import ScoreGradient, absolute_target_logit, is_reversed
from lightning_xai.attribution.lrp.sums import by_sign, in_proportion

__all__ = [
    "CLRP",
    "LRP",
    "SGLRP",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "NormalizedCLRP",
    "Rules",
    "ScoreGradient",
    "WSquare",
    "ZBox",
    "absolute_target_logit",
    "by_sign",
    "conservation_error",
    "in_proportion",
    "is_reversed",
    "lossless",
    "negated_z_plus",
    "z_plus",
]
