"""A training that can be stopped in the middle of an epoch and resumed there, and a program that is to be killed.

Usage: python stopped_training.py FOLDER. Checkpoints go to FOLDER/checkpoints, rows of the log to FOLDER/version_<i>;
FOLDER/rows.txt has a line for each row, written before it is logged.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from callbacks.trainers import trainer
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from regularization.plain_training import IMAGES, LABELS, Net, Trained, term
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lightning_xai.regularization import AdaptiveWeight, GradientShare


class StatefulLoader:
    """Batches of four, in an order of its own for each epoch, which a checkpoint continues where it was."""

    def __init__(self) -> None:
        self.given = 0

    def __len__(self) -> int:
        return len(IMAGES) // 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, position = divmod(self.given, len(self))
        order = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(4)[position:]:
            self.given += 1
            yield IMAGES[chosen], LABELS[chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


class RandomState(Callback):
    """Random numbers go on where they were."""

    loaded: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["torch"]

    def on_train_start(self, *arguments: Any) -> None:
        if self.loaded is not None:  # here, since what comes before may draw numbers
            torch.set_rng_state(self.loaded)


class Stoppable(Trained):
    """With momentum; random numbers go on from batch to batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.guided_gradient_loss(*batch)[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def adaptive() -> AdaptiveWeight:
    """A weight that moves often."""
    return AdaptiveWeight(GradientShare(0.3), start=0.1, smoothing=0.5, every_n_steps=3)


def train(
    folder: Path, options: dict[str, Any], resume: Path | None = None, callbacks: tuple[Callback, ...] = (), **more: Any
) -> Stoppable:
    """Of a network that normalises by batch and drops at random; a checkpoint at every third step."""
    torch.manual_seed(0)
    module = Stoppable(Net(nn.BatchNorm2d(6), nn.Dropout2d(0.5), StochasticDepth(0.5, "row")), term(**options))
    kept = ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=3, save_top_k=-1)
    running = trainer(callbacks=[RandomState(), *callbacks, kept], enable_checkpointing=True, **more)
    running.fit(module, StatefulLoader(), ckpt_path=resume)
    return module


class Announced(CSVLogger):
    """Tells of each row before it is logged, in a file that nothing holds back."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with (Path(self.save_dir) / "rows.txt").open("a") as rows:
            rows.write(f"{step}\n")
        super().log_metrics(metrics, step)


class Slow(Callback):
    """Leaves time to be killed in."""

    def on_train_batch_start(self, *arguments: Any) -> None:
        time.sleep(0.1)


def csv_logger(folder: Path) -> CSVLogger:
    """Whatever is logged is on the disk."""
    return Announced(folder, name="", flush_logs_every_n_steps=1)


LONG: dict[str, Any] = {"max_epochs": 5}

if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers).*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    folder = Path(sys.argv[1])
    train(folder, {"weight": adaptive()}, callbacks=(Slow(),), logger=csv_logger(folder), **LONG)
