"""Every attribution, as the tests of this folder run it."""

from __future__ import annotations

from typing import Any

import torch
from callbacks.trainers import MEAN, STD

from lightning_xai import attribution
from lightning_xai.attribution import Attribution

STANDARD: dict[str, Any] = {"mean": MEAN, "std": STD}
OPTIONS: dict[str, dict[str, Any]] = {
    "FromCallable": {"function": lambda model, images, targets: images.sum(1)},
    "Shuffled": {"attribution": attribution.GradCAM()},
    "IntegratedGradients": {"n_steps": 4, **STANDARD},
    "RSIGradCAM": {"n_steps": 4, **STANDARD},
    "SmoothGrad": {"n_samples": 3},
    "SmoothGradCAMPlusPlus": {"n_samples": 3},
    "DeepLIFT": STANDARD,
}
_KINDS = {name: getattr(attribution, name) for name in attribution.__all__}
METHODS: dict[str, Attribution] = {
    name: kind(**OPTIONS.get(name, {}))
    for name, kind in _KINDS.items()
    if isinstance(kind, type) and issubclass(kind, Attribution) and not kind.__abstractmethods__
}
"""By class, small where cost can be chosen."""


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two sets of maps (N,H,W), for the range of each expected map."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    size = (expected.amax((1, 2)) - expected.amin((1, 2))).clamp(min=1e-12)
    return float(((found - expected).abs().amax((1, 2)) / size).amax())
