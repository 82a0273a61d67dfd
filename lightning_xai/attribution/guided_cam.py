"""Guided Grad-CAM: where Grad-CAM looks, in the detail of the guided gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_xai.attribution.cam import GradCAM
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.trace import Rectifiers, Trace


@dataclass(frozen=True)
class GuidedGradCAM(GradCAM):
    """Guided Grad-CAM: the upsampled map of Grad-CAM times the guided gradient of the image, pixel by pixel.

    Selvaraju et al., "Grad-CAM", 2017, section 3.2, https://arxiv.org/abs/1610.02391. For rectifier networks. The maps
    of several layers are fused before the product. One backward pass down to the layer and one guided one through the
    whole network.

    Attributes:
        layer: As for `GradCAM`.
        score: The number that is explained, by both factors.
        reduce: How colour channels of the guided gradient become one map: `channel_sum` (signed) or `channel_max`.
        relu: Whether to keep the positive part of Grad-CAM only, as the paper does.
        rectifiers: As for `GuidedGradient`.

    Raises:
        ValueError: If ``rectifiers`` is neither ``"relu"`` nor ``"all"``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GuidedGradCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    reduce: Callable[[Tensor], Tensor] = channel_sum
    rectifiers: Rectifiers = "relu"
    needs_image_gradient = True

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed where ``reduce`` is."""
        guided = self.reduce(trace.image_gradient(self.score, targets, rectifiers=self.rectifiers))
        return super().__call__(trace, targets) * guided
