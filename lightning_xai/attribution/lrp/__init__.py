"""Layer-wise relevance propagation: rules, what operations hand on, and the methods."""

from lightning_xai.attribution.lrp.methods import (
    CLRP,
    LRP,
    SGLRP,
    NormalizedCLRP,
    Rules,
    ScoreGradient,
    absolute_target_logit,
    is_reversed,
)
from lightning_xai.attribution.lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, negated_z_plus, z_plus

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
    "is_reversed",
    "negated_z_plus",
    "z_plus",
]
