"""Ablation-CAM: channels weighted by what the score loses without each of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_xai.attribution.base import LayerMaps, ScoredAttribution
from lightning_xai.attribution.cam import weighted_sum
from lightning_xai.attribution.sampling import require_batch_size
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace
from lightning_xai.types import OneLayer


@dataclass(frozen=True)
class AblationCAM(ScoredAttribution, LayerMaps):
    """Ablation-CAM: channels weighted by how far the score falls where the channel is zero.

    ``w_k = y - y_k``, Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization", 2020, eq. 4. The paper divides by ``y``, which is one number for all channels, and
    turns the map around where it is negative: that is left out. No gradient is taken. One forward pass for each channel
    that is not zero everywhere.

    Attributes:
        layer: As for `GradCAM`; each layer's channels are taken away by themselves.
        score: The number that is explained.
        batch_size: How many images run at once; None for as many as there are images. On a GPU larger is faster.
        relu: Whether to keep the positive part only, as the paper does.

    Raises:
        ValueError: If ``batch_size`` is less than 1, or ``layer`` is an empty sequence.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.tensor([[[[3.0, 5.0]], [[1.0, 1.0]]]]), 0, attributions=AblationCAM("0"))
        tensor([[[5.5000, 9.5000]]])
    """

    batch_size: int | None = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_batch_size(self.batch_size)

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        return [self._map(trace, targets, layer) for layer in self.layers()]

    def _map(self, trace: Trace, targets: Tensor, layer: OneLayer) -> Tensor:
        activations = at_least_float32(trace.activation(layer))
        alive = activations.abs().amax((2, 3)) > 0
        scores = self.score(trace.logits, targets)
        losses = scores.new_zeros(alive.shape)
        for of, channel in (pairs.unbind(1) for pairs in alive.nonzero().split(self.batch_size or len(targets))):
            without = self.score(trace.logits_without(layer, channel, rows=of), targets[of])
            losses = losses.index_put((of, channel), scores[of] - without)
        return weighted_sum(activations, losses)
