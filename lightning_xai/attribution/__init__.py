"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace.

| method | paper | passes | score or seed |
|---|---|---|---|
| `GradCAM`, `GradCAMPlus`, `GradCAMPlusPlus` | Selvaraju et al. 2017; Lerma and Lucas 2022; Chattopadhay et al. 2018 | forward, backward to the layer | any |
| `HiResCAM`, `LayerCAM`, `XGradCAM` | Draelos and Carin 2020; Jiang et al. 2021; Fu et al. 2020 | the same | any |
| `CAM` | Zhou et al. 2016 | forward | the class; pooling and linear head only |
| `ScoreCAM`, `AblationCAM` | Wang et al. 2020; Desai and Ramaswamy 2020 | a forward for each live channel | any |
| `FinerCAM` | Zhang et al. 2025 | forward, backward to the layer | the logit less those of similar classes |
| `EigenCAM` | Muhammad and Yeasin 2020 | forward | none: one map whatever the class |
| `SmoothGradCAMPlusPlus`, `RSIGradCAM` | Omeiza et al. 2019; Lucas et al. 2022 | one for each sample or step | any |
| `GuidedGradCAM` | Selvaraju et al. 2017 | forward, backward to image and layer | any |
| `InputGradient`, `InputXGradient`, `GuidedGradient` | Simonyan et al. 2014; Shrikumar et al. 2016; Springenberg et al. 2015 | forward, backward to the image | any |
| `SmoothGrad`, `IntegratedGradients` | Smilkov et al. 2017; Sundararajan et al. 2017 | both for each sample or step | any |
| `DeepLIFT` | Shrikumar et al. 2017, rescale rule | both of twice the batch | any |
| `LRP`, `CLRP`, `SGLRP`, `NormalizedCLRP` | Bach et al. 2015; Gu et al. 2018; Iwana et al. 2019 | forward, backward by rules | a seed of its own each |
| `FromCallable` | anybody's `(model, images, targets) -> maps` | its own | its own |
| `Random`, `CenteredGaussian`, `Edges`, `Shuffled`, `FakeCAM` | controls | none | none |

With `pre_softmax` every method of a score sees what is added to all logits; with a zero-sum score, the default of all,
none does. `LRP` sees it unless its seed is `ScoreGradient(centered)`. Methods with one score share their backward pass
to a layer; LRP, CLRP and SGLRP share their forward pass.

Attention rollout and its gradient-weighted form (Abnar and Zuidema 2020; Chefer et al. 2021) are not among them. They
multiply the attention matrices of all layers, which are no module's output, and which fused kernels never make: a trace
would have to keep what operations compute, and be asked for gradients of all of it at once. They also take for granted
that every layer sees the same tokens and that the head reads one of them, which windows, pooled tokens and means of
patches do not give, and no shape tells. `LRP` follows relevance through attention in all of these.
"""  # noqa: E501

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
