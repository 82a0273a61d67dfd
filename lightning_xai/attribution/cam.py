"""Class activation maps: activations of a layer, weighted by what the gradient says of each channel."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.scores import at_least_float32, centered
from lightning_xai.trace import Trace, layers_of
from lightning_xai.trace.layers import OneLayer
from lightning_xai.types import Attribution, Layer, Score


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """The class activation map before its ReLU, ``sum_k w_k A_k`` (paper 003 eq. 2).

    Args:
        activations: Activations (N,D,h,w).
        weights: One weight for each channel, (N,D).

    Returns:
        Signed maps (N,h,w).

    Example:
        >>> weighted_sum(torch.ones(1, 2, 1, 1), torch.tensor([[1.0, 2.0]]))
        tensor([[[3.]]])
    """
    return torch.einsum("ndhw,nd->nhw", activations, weights)


def gradcam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel weights of Grad-CAM: the mean gradient (Selvaraju et al. 2017 eq. 1).

    Args:
        activations: Activations (N,D,h,w), not used.
        gradients: Gradients of the score with respect to them, (N,D,h,w).

    Returns:
        Weights (N,D).

    Example:
        >>> gradcam_weights(torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[1.]])
    """
    return gradients.mean((2, 3))


def gradcam_plus_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel weights of Grad-CAM+: the mean positive gradient (Lerma and Lucas 2022, paper 003 eq. 3).

    Args:
        activations: Activations (N,D,h,w), not used.
        gradients: Gradients of the score with respect to them, (N,D,h,w).

    Returns:
        Weights (N,D), non-negative.

    Example:
        >>> gradcam_plus_weights(torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[1.5000]])
    """
    return gradients.relu().mean((2, 3))


def gradcam_plus_plus_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel weights of Grad-CAM++, ``sum_ij alpha_ij ReLU(g_ij)``, in the form that cannot blow up.

    ``alpha_ij = 1 / (2 + g_ij sum_ab A_ab)``: the numerator and denominator of Chattopadhay et al. 2018 eq. 19 divided
    by ``g_ij^2`` (paper 003 eq. 13), used only where ``g_ij > 0``, since elsewhere ReLU(g) is 0 whatever alpha is. With
    non-negative activations alpha then lies in (0, 1/2]. For signed layers the denominator can reach zero; where it
    falls below 1 alpha is held at 1.

    Args:
        activations: Activations (N,D,h,w).
        gradients: Gradients of the score with respect to them, (N,D,h,w).

    Returns:
        Weights (N,D), non-negative.

    Example:
        >>> gradcam_plus_plus_weights(torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[0.3750]])
    """
    positive = gradients.relu()
    denominator = 2 + positive * activations.sum((2, 3), keepdim=True)
    return (positive / denominator.clamp(min=1)).sum((2, 3))


@dataclass(frozen=True)
class _GradientCAM(Attribution):
    """ReLU of a layer's activations weighted by channel, at image size; what the weights are is the subclass's."""

    layer: Layer = None
    score: Score = centered
    relu: bool = True

    @abstractmethod
    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """One weight for each channel, (N,D), from activations and gradients (N,D,h,w)."""

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), non-negative unless ``relu`` is off."""
        maps = [self._map(trace, targets, layer) for layer in layers_of(self)]
        return maps[0] if len(maps) == 1 else torch.stack([unit_maximum(one) for one in maps]).mean(0)

    def _map(self, trace: Trace, targets: Tensor, layer: OneLayer) -> Tensor:
        activations = at_least_float32(trace.activation(layer))
        gradients = at_least_float32(trace.gradient(self.score, targets, of=layer))
        maps = weighted_sum(activations, self.weights(activations, gradients))
        return upsample(maps.relu() if self.relu else maps, trace.images)


@dataclass(frozen=True)
class GradCAM(_GradientCAM):
    """Grad-CAM: channels weighted by their mean gradient (:func:`gradcam_weights`).

    Selvaraju et al., "Grad-CAM", 2017, https://arxiv.org/abs/1610.02391. One backward pass down to the layer.

    Attributes:
        layer: Dotted name, module, several of them, or None for the last layer with a spatial output. The maps of
            several layers are each divided by their largest magnitude and averaged.
        score: The number that is explained.
        relu: Whether to keep the positive part only, as the paper does.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GradCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See :func:`gradcam_weights`."""
        return gradcam_weights(activations, gradients)


@dataclass(frozen=True)
class GradCAMPlus(_GradientCAM):
    """Grad-CAM+: channels weighted by their mean positive gradient (:func:`gradcam_plus_weights`).

    Lerma and Lucas, "Grad-CAM++ is Equivalent to Grad-CAM With Positive Gradients", 2022, eq. 3,
    https://arxiv.org/abs/2205.10838. One backward pass down to the layer.

    Attributes:
        layer: As for :class:`GradCAM`.
        score: The number that is explained.
        relu: Whether to keep the positive part only; with non-negative activations nothing else is there.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GradCAMPlus("1")).shape
        torch.Size([2, 8, 8])
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See :func:`gradcam_plus_weights`."""
        return gradcam_plus_weights(activations, gradients)


@dataclass(frozen=True)
class GradCAMPlusPlus(_GradientCAM):
    """Grad-CAM++: channels weighted by sums of positive gradients (:func:`gradcam_plus_plus_weights`).

    Chattopadhay et al., "Grad-CAM++", 2018, eq. 19, https://arxiv.org/abs/1710.11063, in its stable form. One
    backward pass down to the layer. The weights depend on the scale of the score, so that log- and post-softmax give
    different maps here.

    Attributes:
        layer: As for :class:`GradCAM`.
        score: The number that is explained.
        relu: Whether to keep the positive part only; with non-negative activations nothing else is there.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GradCAMPlusPlus("1")).shape
        torch.Size([2, 8, 8])
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """See :func:`gradcam_plus_plus_weights`."""
        return gradcam_plus_plus_weights(activations, gradients)


def upsample(maps: Tensor, images: Tensor) -> Tensor:
    """Bilinear resizing of maps to the size of the images.

    Args:
        maps: Maps (N,h,w).
        images: Images (N,C,H,W), for their size.

    Returns:
        Maps (N,H,W).

    Example:
        >>> upsample(torch.ones(1, 2, 2), torch.zeros(1, 3, 4, 4)).shape
        torch.Size([1, 4, 4])
    """
    return F.interpolate(maps[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def unit_maximum(maps: Tensor) -> Tensor:
    """Each map divided by its largest magnitude; an all-zero map stays so.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Maps (N,H,W) in [-1, 1].

    Example:
        >>> unit_maximum(torch.tensor([[[2.0, -4.0]]]))
        tensor([[[ 0.5000, -1.0000]]])
    """
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)
