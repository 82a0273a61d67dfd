"""Finer-CAM: what tells a class from those that the network finds most alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.attribution.base import LayerMaps
from lightning_xai.attribution.cam import GradCAM
from lightning_xai.attribution.sampling import require_count
from lightning_xai.scores import at_least_float32, pre_softmax
from lightning_xai.trace import Trace


@dataclass(frozen=True)
class SimilarClasses:
    """A score: the logit of the class minus the mean logit of those nearest to it, ``z_c - strength mean_d z_d``.

    Attributes:
        n_classes: How many others, as many as there are at most: those whose logits differ least from the target's.
        strength: How much of them is taken off. With 1 a number added to all logits cancels.

    Example:
        >>> SimilarClasses(1)(torch.tensor([[5.0, 4.0, 0.0]]), torch.tensor([0]))
        tensor([1.])
    """

    n_classes: int = 3
    strength: float = 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scores (N,) of logits (N,K), K >= 2, and targets (N,)."""
        if logits.shape[1] < 2:
            raise ValueError(f"`FinerCAM` expected logits of at least 2 classes, got shape {tuple(logits.shape)}.")
        logits, own = at_least_float32(logits), pre_softmax(logits, targets)
        distances = (logits - own[:, None]).detach().abs().scatter(1, targets[:, None], torch.inf)
        nearest = distances.topk(min(self.n_classes, logits.shape[1] - 1), largest=False).indices
        return own - self.strength * logits.gather(1, nearest).mean(1)


@dataclass(frozen=True)
class FinerCAM(LayerMaps):
    """Finer-CAM: Grad-CAM of the difference from the most similar classes (`SimilarClasses`).

    Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation", 2025,
    https://arxiv.org/abs/2501.11309. What the similar classes share leaves the map. The published code weights the
    other classes by their probabilities, which lets their own gradients in; here they count alike. That score is the
    method: there is no other. One backward pass down to the layer.

    Attributes:
        layer: As for `GradCAM`.
        n_classes: How many similar classes.
        strength: How much of them is taken off, ``gamma`` in the paper. With 1 the map does not see what is added to
            all logits.
        relu: Whether to keep the positive part only, as the paper does.

    Raises:
        ValueError: If ``n_classes`` is less than 1, ``layer`` is an empty sequence, or there is one logit.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images = torch.tensor([[[[8.0, 0.0]], [[0.0, 6.0]], [[1.0, 1.0]]]])
        >>> explain(model, images, attributions=FinerCAM("0", n_classes=1, relu=False))
        tensor([[[ 4., -3.]]])
    """

    n_classes: int = 3
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("n_classes", self.n_classes)

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        return GradCAM(self.layer, SimilarClasses(self.n_classes, self.strength)).layer_maps(trace, targets)
