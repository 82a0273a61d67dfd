"""Honest trainings under `ModelIntegrity(action="raise")`: does it let them through?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from common.data.cifar import MEAN, STD
from common.training import bare_trainer
from lightning_xai import GradCAM, InputGradient, ModelIntegrity, SaliencyMaps
from papers.logit_shift.honest import TRAININGS, Images, SmallNet, task


class Training(pl.LightningModule):
    """A small network in one of the honest trainings."""

    def __init__(self, classes: int, training: str) -> None:
        super().__init__()
        self.net, (self.loss, self.make) = SmallNet(classes), TRAININGS[training]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,32,32) to logits (N,K)."""
        return self.net(images)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss."""
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """One pass, which the callback hears."""
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """That of the training."""
        return self.make(self.parameters())


def guarded(train: Images, val: Images, classes: int, seed: int, epochs: int) -> dict[str, Any]:
    """One training with validations and checkpoints, and what the callback said.

    Args:
        train: Images of ten classes to train on.
        val: Images to validate on; the probes are taken of them.
        classes: Number of classes.
        seed: Of the task, the weights and the kind of training.
        epochs: How many.

    Returns:
        The error that ended it, None for none; how many validations were checked, their verdicts and largest suspicion.
    """
    training, findings = list(TRAININGS)[seed % len(TRAININGS)], []
    integrity = ModelIntegrity(action="raise")
    shown = SaliencyMaps({"cam": GradCAM(), "gradient": InputGradient()}, mean=MEAN, std=STD)  # whose maps are checked
    keep = LambdaCallback(on_validation_end=lambda trainer, module: findings.append(integrity.finding))
    pl.seed_everything(seed, verbose=False)
    first, second = (TensorDataset(*task(images, classes, seed)) for images in (train, val))
    error = None
    with tempfile.TemporaryDirectory() as folder:
        trainer = bare_trainer(
            max_epochs=epochs,
            accelerator="cpu",
            enable_checkpointing=True,
            callbacks=[integrity, shown, keep, ModelCheckpoint(Path(folder))],
            default_root_dir=folder,
        )
        try:
            loader = DataLoader(first, batch_size=64, shuffle=True)
            trainer.fit(Training(classes, training), loader, DataLoader(second, batch_size=64))
        except RuntimeError as raised:
            error = str(raised)
    found = [one for one in findings if one is not None]
    return {
        "classes": classes,
        "training": training,
        "seed": seed,
        "error": error,
        "checks": len(found),
        "verdicts": sorted({one.verdict.name for one in found}),
        "suspicion": max((one.inspection.suspicion for one in found), default=0.0),
    }
