"""What trainings share: where they log, their Trainer, and what a resumed one needs to be the same training."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from common.options import option
from lightning_xai import GuidedGradientLoss
from lightning_xai.files import write_whole

LOGGERS: dict[str, Callable[[Path, str, int | None], Logger]] = {
    # A resumed run gets a folder of its own: the logger deletes what it finds in one that it uses again. Every row is
    # written at once, so that a process that is killed has logged what it did.
    "csv": lambda folder, name, step: CSVLogger(
        folder, name="", version=f"csv_{next_attempt(folder)}", flush_logs_every_n_steps=1
    ),
    "tensorboard": lambda folder, name, step: TensorBoardLogger(
        folder, name="", version="tensorboard", purge_step=step
    ),
    "wandb": lambda folder, name, step: WandbLogger(name=name, project="lightning_xai", save_dir=folder),
    "mlflow": lambda folder, name, step: MLFlowLogger("lightning_xai", run_name=name, save_dir=str(folder / "mlflow")),
}


Loss = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""What a step lowers: ``(model, images (N,C,H,W), labels (N,), step) -> ()``."""


def plain(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
    """Cross-entropy alone."""
    return F.cross_entropy(model(images), labels)


def with_term(term: GuidedGradientLoss) -> Loss:
    """Cross-entropy and the training term."""
    return lambda model, images, labels, step: term(model, images, labels, F.cross_entropy, step).loss


@dataclass(frozen=True)
class TrainerOptions:
    """The Trainer."""

    logger: tuple[str, ...] = option(("csv",), "where to log; several are fine", choices=LOGGERS)
    precision: str = option("32-true", "as of the Trainer, bf16-mixed say")
    accelerator: str = option("auto", "as of the Trainer")
    strategy: str = option("auto", "as of the Trainer, ddp say")
    devices: str = option("auto", "as of the Trainer")
    num_nodes: int = option(1, "as of the Trainer")

    def loggers(self, folder: Path, name: str, step: int | None = None) -> list[Logger]:
        """The loggers asked for, that of a run resumed at a step."""
        return [LOGGERS[one](folder, name, step) for one in self.logger]

    def trainer(
        self, loggers: Sequence[Logger], callbacks: Sequence[Callback], *, few: bool, **options: Any
    ) -> pl.Trainer:
        """A Trainer; with ``few``, of two batches of everything and one epoch."""
        if few:
            options |= {
                "max_epochs": 1,
                **dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 2),
            }
        return pl.Trainer(
            accelerator=self.accelerator,
            strategy=self.strategy,
            devices=self.devices,
            num_nodes=self.num_nodes,
            precision=self.precision,  # type: ignore[arg-type]
            logger=list(loggers),
            callbacks=list(callbacks),
            enable_checkpointing=any(isinstance(one, pl.callbacks.ModelCheckpoint) for one in callbacks),
            enable_model_summary=False,
            log_every_n_steps=1 if few else 10,
            **options,
        )


def bare_trainer(**options: Any) -> pl.Trainer:
    """A Trainer that keeps nothing and says nothing, unless it is told to."""
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(**{**dict.fromkeys(silent, False), **options})


class Validated(pl.LightningModule):
    """A network whose validation step is one forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,K)."""
        return self.network(images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The pass that explanations share."""
        self(batch[0])


class RandomStates(Callback):
    """Keeps torch's random states in checkpoints: flips and crops go on as if the training had not been interrupted."""

    def state_dict(self) -> dict[str, Any]:
        """Of the CPU and of each GPU."""
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the first batch is drawn."""
        torch.set_rng_state(state_dict["cpu"].cpu())
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([one.cpu() for one in state_dict["cuda"]])


def checkpoint_in(folder: Path) -> tuple[Path | None, int]:
    """The last checkpoint of an interrupted training and the number of its step; None and 0 where it left none.

    Raises:
        SystemExit: If the file is damaged.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not path.exists():
        return None, 0
    try:
        return path, int(torch.load(path, "cpu", mmap=True, weights_only=True)["global_step"])
    except (RuntimeError, OSError, KeyError, EOFError, pickle.UnpicklingError) as error:
        told = str(error).splitlines()[0]
        raise SystemExit(f"--resume expected a checkpoint in {path}, which is damaged ({told}). Remove it.") from error


@rank_zero_only
def forget_after(folder: Path, step: int) -> None:
    """Take out of earlier logs what a training that is resumed at a step will log again, tests among it."""
    for path in folder.glob("csv_*/metrics.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            # a row that was cut off has no step
            kept = [row for row in rows if (row["step"] or "x").isdigit() and int(row["step"]) < step]
            heads = list(rows.fieldnames or [])
        told = io.StringIO(newline="")
        writer = csv.DictWriter(told, heads)
        writer.writeheader()
        writer.writerows(row for row in kept if not any(key.startswith("test/") and row[key] for key in heads))
        write_whole(path, told.getvalue())


def next_attempt(folder: Path) -> int:
    """One above the highest number of a log, so that no earlier one is in the way, whichever are still there."""
    return max((int(path.name.removeprefix("csv_")) for path in folder.glob("csv_*")), default=-1) + 1


def of_all_processes(mine: Any) -> list[Any]:
    """What each process has, by rank."""
    if not dist.is_initialized():
        return [mine]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


@rank_zero_only
def say(text: str) -> None:
    """Print at once, one time for all processes."""
    print(text, flush=True)
