"""Image classifiers that explain themselves while they train: a PyTorch Lightning extension."""

from lightning_xai.attribution import (
    CAM,
    CLRP,
    LRP,
    SGLRP,
    Attribution,
    DeepLIFT,
    FromCallable,
    GradCAM,
    GradCAMPlus,
    GradCAMPlusPlus,
    GuidedGradCAM,
    GuidedGradient,
    HiResCAM,
    InputGradient,
    InputXGradient,
    IntegratedGradients,
    LayerCAM,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
)
from lightning_xai.callbacks import Faithfulness, ModelIntegrity, SaliencyMaps
from lightning_xai.explain import explain
from lightning_xai.integrity import Fingerprint, center_logits, compare_models, inspect_model
from lightning_xai.metrics import (
    ADCC,
    ROAD,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Deletion,
    EnergyInBox,
    Insertion,
    PointingGame,
)
from lightning_xai.regularization import GuidedGradientLoss, GuidedGradientMixin, LinearWarmup
from lightning_xai.show import show
from lightning_xai.types import Tokens

__version__ = "0.1.0"

__all__ = [
    "ADCC",
    "CAM",
    "CLRP",
    "LRP",
    "ROAD",
    "SGLRP",
    "Attribution",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "DeepLIFT",
    "Deletion",
    "EnergyInBox",
    "Faithfulness",
    "Fingerprint",
    "FromCallable",
    "GradCAM",
    "GradCAMPlus",
    "GradCAMPlusPlus",
    "GuidedGradCAM",
    "GuidedGradient",
    "GuidedGradientLoss",
    "GuidedGradientMixin",
    "HiResCAM",
    "InputGradient",
    "InputXGradient",
    "Insertion",
    "IntegratedGradients",
    "LayerCAM",
    "LinearWarmup",
    "ModelIntegrity",
    "PointingGame",
    "SaliencyMaps",
    "ScoreCAM",
    "SmoothGrad",
    "Tokens",
    "XGradCAM",
    "center_logits",
    "compare_models",
    "explain",
    "inspect_model",
    "show",
]
