"""What tests of callbacks share: a LightningModule and a Trainer of either package, and tiny data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from support import random_images, small_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

MEAN, STD = (0.5,) * 3, (0.25,) * 3


def packages() -> list[Any]:
    """Both packages that ship Lightning, as parameters."""
    return [pytest.param(name, id=name) for name in ("pytorch_lightning", "lightning.pytorch")]


def imported(name: str) -> ModuleType:
    """A package that ships Lightning; skips without it."""
    pytest.importorskip(name)
    return importlib.import_module(name)


def confident_net(classes: int = 3) -> nn.Module:
    """A small network whose predictions differ between images and change when pixels are masked."""
    model = small_net(classes)
    with torch.no_grad():
        model.head.weight *= 20
        model.head.bias -= model(random_images(8)).mean(0)
    return model


def loader(n: int = 8, batch_size: int = 4, images: Tensor | None = None, **options: Any) -> DataLoader:
    """Standardised images with labels 0, 1, 2, 0, ..."""
    images = random_images(n) if images is None else images
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 3), batch_size, **options)


def trainer(lightning: ModuleType = pytorch_lightning, **options: Any) -> Any:
    """A Trainer on the CPU without anything that a test did not ask for."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1}
    return lightning.Trainer(**{**quiet, **defaults, **options})


def calls_model(module: Any, images: Tensor) -> Tensor:
    """The usual validation step."""
    return module.model(images)


def classifier(
    lightning: ModuleType = pytorch_lightning,
    step: Callable[[Any, Tensor], Any] = calls_model,
    model: nn.Module | None = None,
) -> Any:
    """A LightningModule around a small network, which treats images of validation and test batches as told.

    Random numbers begin anew here, so that dropout is the same in each test.
    """
    torch.manual_seed(0)

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = (confident_net() if model is None else model).train()
            self.trained = 0

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.trained += 1
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            step(self, batch[0] if isinstance(batch, (list, tuple)) else batch["image"])

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            step(self, batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    return Classifier()


def run_stage(stage: str, trainer: Any, module: Any, data: DataLoader) -> None:
    """``fit``, ``validate`` or ``test``, all on the same data."""
    if stage == "fit":
        trainer.fit(module, data, data)
    else:
        getattr(trainer, stage)(module, data, verbose=False)


class Forwards:
    """Counts the gradient-free passes through a network's first layer, with the number of images in each."""

    def __init__(self, model: Any) -> None:
        self.sizes: list[int] = []
        model.conv1.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, args: tuple[Tensor]) -> None:
        if not module.training:
            self.sizes.append(len(args[0]))
