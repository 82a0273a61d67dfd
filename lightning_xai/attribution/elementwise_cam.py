"""Class activation maps that use the gradient of each unit, and not of each channel alone.

Activations and their gradients are (N,D,h,w), weights (N,D), maps (N,h,w).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_xai.attribution.base import GradientCAM
from lightning_xai.attribution.cam import weighted_sum


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """The map of HiResCAM before its ReLU, ``sum_k g_ij^k A_ij^k``.

    Example:
        >>> import torch
        >>> hirescam(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[[ 3., -2.]]])
    """
    return (gradients * activations).sum(1)


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """The map of LayerCAM before its ReLU, ``sum_k ReLU(g_ij^k) A_ij^k``.

    Example:
        >>> import torch
        >>> layercam(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[[3., 0.]]])
    """
    return (gradients.relu() * activations).sum(1)


def xgradcam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channel weights of XGrad-CAM: the gradient averaged with the activations as weights, ``sum g A / sum A``.

    Activations of a channel that sum to zero have no average; its weight is 0. In a channel that is zero everywhere no
    weight would matter; in signed layers a sum near zero gives a large weight, as the formula has it.

    Example:
        >>> import torch
        >>> xgradcam_weights(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[2.0, -2.0]]]]))
        tensor([[-1.]])
    """
    total = activations.sum((2, 3))
    empty = total == 0
    return ((gradients * activations).sum((2, 3)) / total.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """HiResCAM: each unit weighted by its own gradient (`hirescam`).

    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
    2020, https://arxiv.org/abs/2011.08891. Where a linear function of the activations follows the layer, the map
    without ReLU sums to the score less its bias; where it is global average pooling and a linear layer, HiResCAM and
    Grad-CAM are one. One backward pass down to the layer. Fields as of `GradCAM`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=HiResCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w), see `hirescam`."""
        return hirescam(activations, gradients)


@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    """LayerCAM: each unit weighted by its own positive gradient (`layercam`).

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions on Image
    Processing, 2021. Meant for shallow layers as well, whose maps are finer. One backward pass down to the layer.
    Fields as of `GradCAM`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=LayerCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w), see `layercam`."""
        return layercam(activations, gradients)


@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    """XGrad-CAM: channels weighted by the gradient where they are active (`xgradcam_weights`).

    Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", 2020,
    https://arxiv.org/abs/2008.02312. The map without ReLU sums to what the map of `HiResCAM` sums to. One
    backward pass down to the layer. Fields as of `GradCAM`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=XGradCAM("1")).shape
        torch.Size([2, 8, 8])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w), see `xgradcam_weights`."""
        return weighted_sum(activations, xgradcam_weights(activations, gradients))
