"""The maps that checks look at, made by the path by which users' maps are made."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_xai.attribution import Attribution
from lightning_xai.explain import attribute
from lightning_xai.integrity.measures import class_weighted_maps
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace
from lightning_xai.types import OneLayer, Score

AT_LAYER = ("Grad-CAM", "HiResCAM")
"""The maps that are always made, at the layer."""


def signed_maps(
    trace: Trace, layer: OneLayer, targets: Tensor, score: Score, methods: Mapping[str, Attribution]
) -> dict[str, Tensor]:
    """Grad-CAM and HiResCAM at a layer, and what the methods make, of one score and before any ReLU.

    Each score has a sweep of its own from the logits, as in `explain`: a model whose backward pass acts on the gradient
    of one class alone shows in no other.

    Raises:
        ValueError: If a method explains no score, or has the name of a map at the layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_xai.scores import centered
        >>> from lightning_xai.trace import Capture, run
        >>> model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> trace = run(model, torch.ones(1, 2, 3, 3), Capture({"0": model[0]}))
        >>> sorted(signed_maps(trace, "0", torch.tensor([0]), centered, {}))
        ['Grad-CAM', 'HiResCAM']
    """
    if taken := sorted(set(methods) & set(AT_LAYER)):
        raise ValueError(f"`attributions` expected other names than {taken}, which are those of the maps at the layer.")
    gradients = at_least_float32(trace.gradient(score, targets, of=layer))
    scored = {name: method.with_score(score).without_relu() for name, method in methods.items()}
    return class_weighted_maps(trace.activation(layer), gradients) | attribute(trace, targets, scored)
