"""Class activation maps: activations of a layer, weighted by channel.

Activations and their gradients are (N,D,h,w), weights (N,D), maps (N,h,w).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_xai.attribution.base import GradientCAM, LayerMaps
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace
from lightning_xai.types import OneLayer


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """The class activation map before its ReLU, ``sum_k w_k A_k`` (Lerma and Lucas 2022 eq. 2).

    Example:
        >>> weighted_sum(torch.ones(1, 2, 1, 1), torch.tensor([[1.0, 2.0]]))
        tensor([[[3.]]])
    """
    return (activations * weights[:, :, None, None]).sum(1)  # autocast would take a matrix product to half precision


def class_weights(model: nn.Module, activations: Tensor, logits: Tensor) -> Tensor:
    """The weights of the linear layer that turns globally averaged activations into logits.

    Found by what it does and not by its name or kind: among all modules with a ``weight`` (K,D) or (K,D,1,1), the one
    for which ``logits = weight mean_ij(A_ij) + bias``, on these images and for all K classes, up to the square root
    of the logits' machine precision. Where the averaged activations are the logits themselves (a network that ends in
    one map for each class, such as SqueezeNet), the weights are the identity.

    Args:
        model: The classifier.
        activations: Activations (N,D,h,w) in one of its passes.
        logits: Logits (N,K) of the same pass.

    Returns:
        Weights (K,D).

    Raises:
        ValueError: If nothing in the model does this.

    Example:
        >>> head = nn.Linear(2, 3)
        >>> activations = torch.rand(1, 2, 4, 4)
        >>> torch.equal(class_weights(head, activations, head(activations.mean((2, 3)))), head.weight)
        True
    """
    pooled, k = activations.mean((2, 3)), logits.shape[1]
    for weight, bias in _linear_layers(model, k, pooled):
        expected = F.linear(pooled, weight.to(pooled), None if bias is None else bias.to(pooled))
        tolerance = torch.finfo(logits.dtype).eps ** 0.5 * logits.abs().amax()
        if (expected - logits).abs().amax() <= tolerance:
            return weight
    raise ValueError(
        "`layer` of CAM expected to be followed by global average pooling and one linear layer and nothing else, "
        f"got no module whose weight ({k}, {pooled.shape[1]}) turns the layer's averaged activations into the logits. "
        "Use GradCAM, which is defined for every layer and is CAM / (h w) where CAM exists."
    )


def _linear_layers(model: nn.Module, k: int, pooled: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weights (K,D) and biases that may be the head."""
    if pooled.shape[1] == k:
        yield torch.eye(k, dtype=pooled.dtype, device=pooled.device), None
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor) and weight.shape in ((k, pooled.shape[1]), (k, pooled.shape[1], 1, 1)):
            yield weight.flatten(1), bias if isinstance(bias, Tensor) and bias.shape == (k,) else None


@dataclass(frozen=True)
class CAM(LayerMaps):
    """Class activation mapping: channels weighted by the linear head's weights of the class (`class_weights`).

    ``M_ij = sum_k w_k^c A_ij^k``, Zhou et al., "Learning Deep Features for Discriminative Localization", 2016, eq. 2,
    https://arxiv.org/abs/1512.04150. For networks in which global average pooling and one linear layer follow the
    layer (ResNet, MobileNetV2, Inception, EfficientNet, SqueezeNet's class maps); an error elsewhere. The
    class is all that is chosen: there is no score. The raw weights of the class see a vector that is added to all rows
    of the head, which changes no probability; `GradCAM` with the score ``centered`` does not. No backward pass.

    Attributes:
        layer: As for `GradCAM`.
        relu: Whether to keep the positive part only, as the other methods do (Torres Figueroa et al. 2024 eq. 1).
            Without, the mean of a map (at the layer's size) is the logit less the bias.

    Example:
        >>> from lightning_xai import explain
        >>> head = nn.Linear(1, 2, bias=False)
        >>> head.weight.data = torch.tensor([[2.0], [-1.0]])
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        >>> explain(model, torch.tensor([[[[0.0, 3.0]]]]), 0, attributions=CAM("0"))
        tensor([[[0., 6.]]])
    """

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        return [self._map(trace, targets, layer) for layer in self.layers()]

    def _map(self, trace: Trace, targets: Tensor, layer: OneLayer) -> Tensor:
        activations = at_least_float32(trace.activation(layer))
        weights = class_weights(trace.model, activations, trace.logits).to(activations)
        if len(weights) == 1:  # one logit: as in pre_softmax, target 0 is its negative
            weights = torch.cat([-weights, weights])
        return weighted_sum(activations, weights[targets])


def gradcam_weights(gradients: Tensor) -> Tensor:
    """Channel weights of Grad-CAM: the mean gradient (Selvaraju et al. 2017 eq. 1).

    Example:
        >>> gradcam_weights(torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[1.]])
    """
    return gradients.mean((2, 3))


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    """Grad-CAM: channels weighted by their mean gradient (`gradcam_weights`).

    Selvaraju et al., "Grad-CAM", 2017, https://arxiv.org/abs/1610.02391. One backward pass down to the layer.

    Attributes:
        layer: Dotted name, module, several of them, or None for the last layer with a spatial output. The maps of
            several layers are each divided by their largest magnitude and averaged.
        score: The number that is explained.
        relu: Whether to keep the positive part only, as the paper does.

    Raises:
        ValueError: If ``layer`` is an empty sequence.

    Example:
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GradCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w), see `gradcam_weights`."""
        return weighted_sum(activations, gradcam_weights(gradients))


def gradcam_plus_weights(gradients: Tensor) -> Tensor:
    """Channel weights of Grad-CAM+: the mean positive gradient (Lerma and Lucas 2022, eq. 3).

    Example:
        >>> gradcam_plus_weights(torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[1.5000]])
    """
    return gradients.relu().mean((2, 3))


@dataclass(frozen=True)
class GradCAMPlus(GradientCAM):
    """Grad-CAM+: channels weighted by their mean positive gradient (`gradcam_plus_weights`).

    Lerma and Lucas, "Grad-CAM++ is Equivalent to Grad-CAM With Positive Gradients", 2022, eq. 3,
    https://arxiv.org/abs/2205.10838. One backward pass down to the layer. Fields as of `GradCAM`.

    Example:
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GradCAMPlus("1")).shape
        torch.Size([2, 8, 8])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w), see `gradcam_plus_weights`."""
        return weighted_sum(activations, gradcam_plus_weights(gradients))
