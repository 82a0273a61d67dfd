"""The shift that moves Grad-CAM most at a given share of the gradient: the hardest one to find."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_xai.scores import at_least_float32, centered, predicted
from lightning_xai.trace import Capture, find_layer, name_of, run
from papers.logit_shift.attacks import Attack, ShiftedLogits


@dataclass(frozen=True, eq=False)
class WorstCaseShift(Attack):
    """The shift that moves the raw-logit Grad-CAM most at a given share of the common-mode gradient.

    ``t = K sum_k u_k sum_ij A_k(i,j)``: Grad-CAM averages gradients over positions, so that one which varies with the
    position is wasted. It adds ``K sum_k u_k A_k`` to the map; ``u`` is the unit vector for which that varies most over
    the positions, relative to the variation of the clean map and on average over the probes: the first principal axis
    of the activations, signed against the clean map. ``K`` follows from the share.

    Attributes:
        layer: The explained layer.
        images: Probes (N,C,H,W) for which the shift is worst.
        share: ``|g_cm|^2 / (|g_cm|^2 + |g_c|^2)`` of the median probe, in (0,1).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> altered = WorstCaseShift("1", torch.rand(4, 1, 5, 5), share=0.5)(model)
        >>> altered.shift.direction.shape
        torch.Size([3])
    """

    layer: str | nn.Module
    images: Tensor = field(repr=False)
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"`share` expected a number in (0, 1), got {self.share}.")

    def __call__(self, model: nn.Module) -> ShiftedLogits:
        """An altered copy; one pass of the probes."""
        module = find_layer(model, self.layer)
        trace = run(model, self.images, Capture({self.layer: module}))
        with trace.computing():
            gradients = at_least_float32(trace.gradient(centered, predicted(trace.logits), of=self.layer))
            activations = at_least_float32(trace.activation(self.layer))
            budget = gradients.square().sum((1, 2, 3)).median() * self.share / (1 - self.share)
            strength = (budget / gradients[0, 0].numel()).sqrt()  # |K u|^2 at each of the positions
            direction = strength * worst_direction(activations, gradients)
        return ShiftedLogits(copy.deepcopy(model), _ChannelSum(direction), name_of(model, module))


class _ChannelSum(nn.Module):
    direction: Tensor

    def __init__(self, direction: Tensor) -> None:
        super().__init__()
        self.register_buffer("direction", direction)

    def forward(self, values: Tensor, images: Tensor) -> Tensor:
        return values.sum((2, 3)) @ self.direction.to(values.dtype)


def worst_direction(activations: Tensor, gradients: Tensor) -> Tensor:
    """Unit weights (D,) of the channels (N,D,h,w) that change Grad-CAM's map most, against the map.

    Example:
        >>> activations = torch.tensor([[[[0.0, 1.0]], [[0.0, 3.0]]]])
        >>> worst_direction(activations, torch.ones(1, 2, 1, 2))
        tensor([-0.3162, -0.9487])
    """
    varying = (activations - activations.mean((2, 3), keepdim=True)).flatten(2)
    maps = torch.einsum("ndp,nd->np", varying, gradients.mean((2, 3)))
    norms = maps.norm(dim=1)
    kept = norms > 0  # a flat map has no order that could be changed
    varying, maps = varying[kept] / norms[kept, None, None], maps[kept]
    axis = torch.linalg.eigh(torch.einsum("ndp,nep->de", varying, varying)).eigenvectors[:, -1]
    along = torch.einsum("ndp,d,np->", varying, axis, maps)
    return axis if along <= 0 else -axis
