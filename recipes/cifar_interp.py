"""Does the training term help from scratch? Converged networks, some arms of ``term_effect.py``, over seeds.

    python recipes/cifar_interp.py --device cpu --epochs 16 --batch-size 64   # generated images, whose object is known
    python recipes/cifar_interp.py --data DIR --device cuda --seeds 3         # CIFAR-10, see common/data/cifar.py

``term_effect.py`` fine-tunes every arm from one converged network; here plain training, the setting of Torres Figueroa
et al. (2024, https://arxiv.org/abs/2404.15024) and two others start from random weights, all with the same batches per
seed. A weight of the term comes in over a fifth of the steps: statistics and teacher of an untrained network say
nothing yet. On a GPU ResNet-18 with a 3 x 3 stem is trained in bfloat16, elsewhere the network of ``term_effect.py``.

Output: one JSON file for each finished network, and tables as ``term_effect.py`` makes them. Stopped, it goes on from
there; all arms of a seed come before the next seed, and more ``--seeds`` add to it. CIFAR-10 was not run to its end.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_xai as xai
from common.data.cifar import resnet18_for_small_images
from common.measured import save_measurement
from common.options import device_option, option, parsed
from common.run import save_tables, show
from common.training import Loss
from papers.interpretable_gradients.arms import PAPER, batches, file_name, loss_of, trained
from papers.interpretable_gradients.effect import measured
from papers.interpretable_gradients.effect_report import finished, tables, verdict
from papers.interpretable_gradients.tasks import Images, Task, task

ARMS = {
    "generated": {"plain": 0.0, PAPER: 7.5e-3, "cosine, -loss, BN training": 0.1, "mirrored CAM": 0.032},
    "cifar10": {"plain": 0.0, PAPER: 7.5e-3, "cosine, -loss, BN training": 0.032, "mirrored CAM": 0.1},
}
"""Arms of each task and their strengths; by the confidence of the first the others are compared. From scratch a network
bears less than the 1 that ``term_effect.py`` found from a converged one: the term at 1 kept it from learning."""
RATE = 0.2
"""Learning rate at its height."""


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    data: Path | None = option(None, "folder with CIFAR-10, or for its download; nothing: generated images")
    device: str = device_option()
    epochs: int = option(24, "how often each image is seen")
    batch_size: int = option(512, "images of a step")
    seeds: int = option(5, "networks of each arm")
    results: Path = option(Path("runs/cifar_interp"), "folder of a file for each network")
    numbers: Path | None = option(None, "file for what the tables say, as recipes/results keeps it for the texts")
    fast_dev_run: bool = option(False, "few images and steps, to try the script")


def augmented(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images (N,C,H,W), each shifted by up to four pixels and perhaps mirrored, on their device."""
    n, _, height, width = images.shape
    rows, columns = torch.randint(9, (2, n, 1), device=images.device)
    rows = rows + torch.arange(height, device=images.device)
    columns = columns + torch.arange(width, device=images.device)
    columns = torch.where(torch.rand(n, 1, device=images.device) < 0.5, columns, columns.flip(1))
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    numbers = torch.arange(n, device=images.device)[:, None, None]
    return padded[numbers, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # channels_last


def task_of(settings: Settings, device: torch.device) -> Task:
    """Data on the device, and the network that is trained there."""
    found = task("generated" if settings.data is None else "cifar10", settings.data, settings.fast_dev_run)
    parts: dict[str, Any] = {name: on(getattr(found, name), device) for name in ("train", "validation", "test")}
    if settings.data is not None:
        parts["augment"] = augmented
        parts |= {"network": resnet18_for_small_images, "layer": "layer4"} if device.type == "cuda" else {}
    return replace(found, **parts)


def on(images: Images, device: torch.device) -> Images:
    """The images on a device."""
    masks = None if images.masks is None else images.masks.to(device)
    return Images(images.images.to(device), images.labels.to(device), masks)


def from_scratch(task: Task, arm: str, strength: float, seed: int, epochs: int, size: int) -> nn.Module:
    """A converged network; the seed settles weights, order and augmentation."""
    torch.manual_seed(seed)
    device, steps = task.train.images.device, epochs * (len(task.train.images) // size)
    network: Any = task.network().to(device)
    network.to(memory_format=torch.channels_last)
    weight = xai.LinearWarmup(strength, max(1, steps // 5))
    loss = in_bfloat16(loss_of(task, arm, weight)) if device.type == "cuda" else loss_of(task, arm, weight)
    order = batches(task.train, task.augment, seed, steps, size)
    return trained(network, order, loss, steps, RATE, 3 * steps // 10)


def in_bfloat16(loss: Loss) -> Loss:
    """The loss, computed in mixed precision."""

    def mixed(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return loss(model, images, labels, step)

    return mixed


def row_of(
    task: Task, arm: str, strength: float, seed: int, settings: Settings, wanted: float | None
) -> dict[str, Any]:
    """All that is reported of one network, from its file where there is one."""
    path = settings.results / f"{task.name}_{file_name(arm, strength)}_{settings.epochs}_epochs_seed{seed}.json"
    if not path.exists():
        begun = time.monotonic()
        size = min(settings.batch_size, len(task.train.images) // 2)
        network = from_scratch(task, arm, strength, seed, settings.epochs, size)
        about = {"task": task.name, "arm": arm, "strength": strength, "seed": seed, "epochs": settings.epochs}
        about |= {"batch_size": size, "seconds": round(time.monotonic() - begun, 1)}
        row = about | measured(network, task, None, wanted)
        save_measurement(path, [row], task.train.images.device)
        print(f"{arm}, seed {seed}: accuracy {row['accuracy']:.2f} %, {row['seconds']} s: {path}", flush=True)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"][0]
    return found


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the experiment; the measurements of every network."""
    settings = parsed(Settings, __doc__, argv)
    if settings.fast_dev_run:
        settings = replace(settings, seeds=min(settings.seeds, 2), epochs=1)
    one, found = task_of(settings, torch.device(settings.device)), []
    for seed in range(settings.seeds):
        wanted = None
        for arm, strength in ARMS[one.name].items():
            found.append(row_of(one, arm, strength, seed, settings, wanted))
            wanted = found[-1]["mean log-probability"] if wanted is None else wanted
    values = finished(settings.results, one.name)
    summary, shown = verdict(values), tables(values)
    print(summary)
    for table in shown:
        show(table)
    if settings.numbers:
        save_tables(settings.numbers, summary, shown)
    return found


if __name__ == "__main__":
    main()
