"""What recipes report beside their means: intervals, and the versions that made the numbers."""

from __future__ import annotations

import platform

import numpy as np
import pytorch_lightning as pl
import timm
import torch
import torchmetrics
import torchvision
from scipy.stats import bootstrap


def interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean and bootstrap 95 % interval over images."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": mean, "low": mean, "high": mean}
    found = bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(seed))
    return {"mean": mean, "low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    modules = (torch, torchvision, timm, pl, torchmetrics)
    found = {module.__name__: str(module.__version__) for module in modules}
    return found | {"python": platform.python_version(), "machine": platform.machine()}
