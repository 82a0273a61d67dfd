"""What the callbacks add to a validation epoch, in units of a plain one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_xai as xai
from common.measured import seconds_of
from common.training import Validated

STANDARD: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def callbacks() -> dict[str, list[Callback]]:
    """What is added to validation, by name; nothing first."""
    metrics = [xai.AverageDrop(), xai.AverageGain()]
    gradcam = {"gradcam": xai.GradCAM()}
    return {
        "plain": [],
        "Grad-CAM maps of 8 images": [xai.SaliencyMaps(gradcam, n_images=8, **STANDARD)],
        "faithfulness of Grad-CAM, 128 images": [
            xai.Faithfulness(gradcam, metrics, n_images=128, controls={}, **STANDARD)
        ],
        "integrity": [xai.ModelIntegrity(**STANDARD)],
    }


def validations(
    name: str, make: Callable[[], nn.Module], rounds: int, device: torch.device, bfloat16: bool, small: bool
) -> list[dict[str, Any]]:
    """Seconds of validation epochs with each of the callbacks, every one after a plain epoch; rows in long form."""
    torch.manual_seed(0)
    n, size, batch = (8, 32, 4) if small else (2048, 224, 64)
    # pixels in [0, 1], standardised: the callbacks check that
    images = torch.rand(n, 3, size, size).sub(0.45).div(0.225).to(device)
    loader: DataLoader[Any] = DataLoader(TensorDataset(images, torch.zeros(n, dtype=torch.long, device=device)), batch)
    module = Validated(make())
    found: dict[str, list[tuple[float, float]]] = {}
    for i in range(rounds + 1):
        for added, some in callbacks().items():
            base, took = (seconds_of(partial(_epoch, module, loader, device, bfloat16, one)) for one in ([], some))
            if i:  # the first round warms up
                found.setdefault(added, []).append((took / base, took))
    return [
        {
            "network": name,
            "validation": added,
            "images": n,
            "rounds": len(pairs),
            "median": statistics.median(ratio for ratio, _ in pairs),
            "seconds": statistics.median(seconds for _, seconds in pairs),
        }
        for added, pairs in found.items()
    ]


def _epoch(module: Validated, loader: Any, device: torch.device, bfloat16: bool, some: list[Callback]) -> None:
    trainer = pl.Trainer(
        accelerator=device.type if device.type == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if bfloat16 else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=some,
    )
    trainer.validate(module, loader, verbose=False)
