"""Eigen-CAM: what a layer's activations have in common, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.attribution.base import LayerMaps
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace


def first_component(activations: Tensor) -> Tensor:
    """Activations projected on their first principal component, that which the most of their square lies on.

    ``A v`` for the positions (h w, D) of each image, with ``v`` the eigenvector of ``A^T A`` to the largest eigenvalue.
    Its sign, which the decomposition leaves open, is the one in which the map's sum is positive.

    Args:
        activations: Activations (N,D,h,w).

    Returns:
        Maps (N,h,w).

    Example:
        >>> first_component(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]]))
        tensor([[[5., 0.]]])
    """
    positions = activations.flatten(2).mT
    few = positions.shape[1] < positions.shape[2]  # the smaller of the two matrices of products has the same values
    values, vectors = torch.linalg.eigh(positions @ positions.mT if few else positions.mT @ positions)
    largest = vectors[:, :, -1]
    maps = largest * values[:, -1:].clamp(min=0).sqrt() if few else (positions @ largest[:, :, None])[:, :, 0]
    signed = torch.where(maps.sum(1, keepdim=True) < 0, -maps, maps)
    return signed.unflatten(1, activations.shape[2:])


@dataclass(frozen=True)
class EigenCAM(LayerMaps):
    """Eigen-CAM: the layer's activations on their first principal component (`first_component`).

    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", 2020, eq. 4,
    https://arxiv.org/abs/2008.00299. It knows neither class nor score: the map shows what stands out in the image, and
    is the same for every target. No backward pass.

    Attributes:
        layer: As for `GradCAM`.
        relu: Whether to keep the positive part only; behind a rectifier nothing else is there.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]]), attributions=EigenCAM("0"))
        tensor([[[5., 0.]]])
    """

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        return [first_component(at_least_float32(trace.activation(layer))) for layer in self.layers()]
