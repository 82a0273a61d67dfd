"""Converged trainings on a GPU: data, augmentation and steps on the device, a file for each finished network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.cifar import resnet18_for_small_images
from common.measured import save_measurement
from papers.interpretable_gradients import arms
from papers.interpretable_gradients.arms import batches
from papers.interpretable_gradients.tasks import Images
from papers.interpretable_gradients.training import Classifier, Scale, Setting, measured, quiet

RATE = 0.2
"""Learning rate at its height, for batches of 512."""


def augmented(images: Tensor) -> Tensor:
    """Images (N,C,H,W), each shifted by up to four pixels and perhaps mirrored, on their device."""
    n, _, height, width = images.shape
    rows, columns = torch.randint(9, (2, n, 1), device=images.device)
    rows = rows + torch.arange(height, device=images.device)
    columns = columns + torch.arange(width, device=images.device)
    columns = torch.where(torch.rand(n, 1, device=images.device) < 0.5, columns, columns.flip(1))
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    numbers = torch.arange(n, device=images.device)[:, None, None]
    return padded[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # channels_last


def trained(setting: Setting, seed: int, epochs: int, batch_size: int, data: Images) -> Classifier:
    """ResNet-18 with a 3 x 3 stem after some epochs in bfloat16; the seed settles weights, order and augmentation."""
    torch.manual_seed(seed)
    steps = epochs * (len(data.images) // batch_size)
    device = data.images.device
    module = Classifier(setting, Scale(0, steps, batch_size, 0, 0), resnet18_for_small_images())
    module.to(device).to(memory_format=torch.channels_last)

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return module.interpretability(model, images, labels, F.cross_entropy, step).loss

    given = batches(data, lambda images, _: augmented(images), seed, steps, batch_size)
    arms.trained(module.network, given, loss, steps, RATE, warm=3 * steps // 10)
    return module


def finished(
    setting: Setting,
    seed: int,
    folder: Path,
    splits: dict[str, tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    epochs: int,
    batch_size: int,
    scale: Scale,
) -> bool:
    """Train, measure on test images and write one file, unless an earlier run did; whether there was work.

    The file is ``cifar_<setting>_<epochs>_epochs_seed<seed>.json``.
    """
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in str(setting))
    path = folder / f"cifar_{name}_{epochs}_epochs_seed{seed}.json"
    if path.exists():
        return False
    data = Images(*(one.to(device) for one in splits["train"]))
    begun = time.monotonic()
    with quiet():
        module = trained(setting, seed, epochs, batch_size, data)
        took = time.monotonic() - begun
        found = measured(module, scale, *splits["test"], None, layer="layer4")
    row: dict[str, Any] = {"setting": str(setting), "seed": seed, "epochs": epochs, "batch_size": batch_size}
    row |= {"seconds": round(took, 1), "accuracy": found["accuracy"], "train_images": len(data.images)}
    rows = [row | {"map": name, **values} for name, values in found["maps"].items()]
    rows.append(row | {"map": None, **found["gradients"]})
    save_measurement(path, rows, device)
    print(f"{setting}, seed {seed}: accuracy {found['accuracy']:.2f} %, {took:.0f} s: {path}", flush=True)
    return True
