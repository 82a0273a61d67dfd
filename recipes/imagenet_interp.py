"""Train a classifier with the guided-gradient term beside one without it, and compare how they explain themselves.

    python recipes/imagenet_interp.py                                    # generated images
    python recipes/imagenet_interp.py --data DIR --model resnet50 --pretrained --preset paper
    python recipes/imagenet_interp.py --data DIR --model resnet50 --weights FILE --epochs 0       # evaluation only

Torres Figueroa et al., "A Learning Paradigm for Interpretable Gradients" (2024, https://arxiv.org/abs/2404.15024).

Data: nothing (images generated from a seed), a folder ``train/<class>/*``, ``val/<class>/*`` as of ImageNet,
``cifar10`` or ``imagenette`` (downloaded by torchvision), or WebDataset shards; unreadable files are left out, by name.
Hardware and time: generated images, 2 CPU cores, 4 minutes. ``--accelerator``, ``--devices``, ``--precision`` and
``--strategy`` are the Trainer's, on as many machines as it has.
Output: tables on the screen, and a run folder with ``report.html``, ``results.json``, ``maps.png``, and for each
network checkpoints, logs and ``model.safetensors``. Interrupted, it goes on with ``--resume`` as if it had not been.

Expected (generated images, three pairs of networks, torch 2.14, x86-64; 95 % intervals over pairs and images):

                            plain               guided              guided - plain, paired
    accuracy                89.4 [84.2, 93.8]   89.5 [84.6, 93.6]   0.1 [-1.8, 2.0]
    average drop, Grad-CAM  53.1 [48.1, 59.2]   56.6 [51.5, 62.0]   3.5 [1.8, 5.0]

Every pair goes on from one trained network. term_effect.py asks whether the term helps.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import argparse
import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import lightning_xai as xai
from common.data.images import Batch, ImageData, image_data
from common.networks import classifier_of, save_weights
from common.options import DataOptions, ModelOptions, RunOptions, adapted, option, parsed
from common.run import Run, is_first_process
from common.training import RandomStates, TrainerOptions, checkpoint_in, forget_after, of_all_processes, say
from lightning_xai import regularization
from lightning_xai.networks import load_weights
from papers.interpretable_gradients.side_by_side import report
from papers.interpretable_gradients.term import ATTRIBUTIONS, SCHEDULES, Methods, TermOptions, attributions_of

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
PRESETS: dict[str, dict[str, Any]] = {
    # small enough for 4 minutes on 2 CPU cores, large enough for maps that can be right or wrong
    "generated": {
        "model": "resnet10t", "model_options": ["channels=(16, 32, 48, 64)", "stem_width=8", "output_stride=8"],
        "optimizer": "adamw", "lr": 1e-3, "lr_schedule": "onecycle", "batch_size": 64, "epochs": 1, "seeds": 3,
        "start_epochs": 16, "start_lr": 1e-2, "lambda_": 1.0, "schedule": "constant", "n_explained": 256,
        "image_size": 64,
    },
    # fine-tuning of a network that is already good
    "finetune": {
        "model": "resnet50", "optimizer": "adam", "lr": 1e-5, "lr_schedule": "constant", "batch_size": 64, "epochs": 1,
        "lambda_": 7.5e-3, "schedule": "constant", "n_explained": 1000, "image_size": 224,
    },
    # section 6.3.1 of the paper; lambda as reported for the published version
    "paper": {
        "model": "resnet50", "optimizer": "adam", "lr": 1e-5, "lr_schedule": "plateau", "batch_size": 100, "epochs": 5,
        "teacher": "loss", "lambda_": 7.5e-3, "schedule": "constant", "n_explained": 1000, "image_size": 224,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Training and explanations."""

    preset: str | None = option(None, "settings to start from; default: generated or finetune", choices=PRESETS)
    optimizer: str = option("adam", "sgd has momentum 0.9", choices=OPTIMIZERS)
    lr: float = option(1e-5, "learning rate")
    lr_schedule: str = option("constant", "plateau: of the loss", choices=["constant", "onecycle", "plateau"])
    epochs: int = option(1, "0: evaluate only")
    start_epochs: int = option(0, "of plain training before, from which every network starts")
    start_lr: float = option(1e-2, "learning rate of these")
    seeds: int = option(1, "networks of each kind; each pair sees the images in an order of its own")
    max_steps: int = option(-1, "stop after so many steps")
    compare: bool = option(True, "with lambda = 0 too")
    attributions: tuple[str, ...] = option(tuple(ATTRIBUTIONS), "methods", choices=ATTRIBUTIONS, nargs="+")
    n_explained: int = option(1000, "images in the final table")
    n_followed: int = option(8, "images drawn; four of them in each epoch")
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    term: TermOptions = TermOptions()
    trainer: TrainerOptions = TrainerOptions()
    run: RunOptions = RunOptions(Path("runs/imagenet_interp"))


class Classifier(xai.GuidedGradientMixin, pl.LightningModule):
    """A network trained with the guided-gradient term of the given weight."""

    def __init__(self, model: nn.Module, weight: float, num_classes: int, settings: Settings) -> None:
        super().__init__()
        self.model, self.weight, self.settings = model, weight, settings
        self.interpretability = settings.term.loss(weight)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.hits: list[bool] = []
        self.skipped: set[str] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,K)."""
        return self.model(images)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and labels; the names of files that could not be read are kept."""
        images, labels, skipped = batch
        self.skipped.update(skipped)
        return images, labels

    def on_fit_start(self) -> None:
        """Schedule the term, unless its weight sets itself; only the Trainer knows the number of steps."""
        if not isinstance(self.interpretability.weight, regularization.AdaptiveWeight):
            steps = int(self.trainer.estimated_stepping_batches)
            self.interpretability.weight = SCHEDULES[self.settings.term.schedule](self.weight, steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classification loss plus lambda times the term."""
        images, labels = self.read(batch)
        loss, _ = self.guided_gradient_loss(images, labels, model=self.model)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy and loss; the explanations are the callbacks' business."""
        images, labels = self.read(batch)
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("val/accuracy", self.accuracy, prog_bar=True, batch_size=len(images))
        self.log("val/loss", F.cross_entropy(logits, labels), sync_dist=True, batch_size=len(images))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Whether each image is classified rightly."""
        images, labels = self.read(batch)
        self.hits += (self(images).argmax(1) == labels).tolist()

    def configure_optimizers(self) -> Any:
        """As the command line says."""
        settings, options = self.settings, {"momentum": 0.9} if self.settings.optimizer == "sgd" else {}
        optimizer = OPTIMIZERS[settings.optimizer](self.parameters(), settings.lr, **options)
        if settings.lr_schedule == "constant":
            return optimizer
        if settings.lr_schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        steps = int(self.trainer.estimated_stepping_batches)
        onecycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": onecycle, "interval": "step"}}


def train_and_test(
    settings: Settings, data: ImageData, network: nn.Module, methods: Methods, weight: float, folder: Path
) -> dict[str, Any]:
    """Train a network, or go on with it, and measure it.

    Returns:
        For each image whether it is right; the values of each metric, by attribution; names of unreadable files.
    """
    pl.seed_everything(settings.run.seed, workers=True, verbose=False)
    module = Classifier(network, weight, len(data.classes), settings)
    standard: dict[str, Any] = {"mean": data.mean, "std": data.std}
    few = settings.run.fast_dev_run
    metrics = [kind(keep_values=True) for kind in (xai.AverageDrop, xai.AverageIncrease, xai.AverageGain)]
    integrity = xai.ModelIntegrity(settings.model.layer, **standard)
    checkpoint, step = checkpoint_in(folder)
    forget_after(folder, step)
    loggers = settings.trainer.loggers(folder, f"{settings.run.run.name}-{folder.name}", step or None)
    if settings.epochs:
        watching: list[Callback] = [
            xai.SaliencyMaps(methods, n_images=min(4, settings.n_followed), class_names=data.classes, **standard),
            xai.Faithfulness(methods, metrics, n_images=min(64, settings.n_explained), controls={}, **standard),
            integrity,
            RandomStates(),
            ModelCheckpoint(folder / "checkpoints", filename="{epoch}", save_last=True),
        ]
        length = {"max_epochs": settings.epochs, "max_steps": settings.max_steps}
        settings.trainer.trainer(loggers, watching, few=few, **length).fit(module, data, ckpt_path=checkpoint)
    faithfulness = xai.Faithfulness(methods, metrics, n_images=settings.n_explained, control_images=None, **standard)
    # after training, the last validation has checked these weights already
    tested = [faithfulness] if settings.epochs else [faithfulness, integrity]
    settings.trainer.trainer(loggers, tested, few=few).test(module, data, verbose=False)
    states: dict[str, Any] = dict(faithfulness.states[0])
    parts = of_all_processes((module.hits, module.skipped))
    if is_first_process():
        save_weights(network, folder / "model.safetensors")
    return {
        "correct": [hit for hits, _ in parts for hit in hits],
        "values": {name: {key: one.values.tolist() for key, one in kept.items()} for name, kept in states.items()},
        "skipped": sorted(set().union(*(names for _, names in parts))),
    }


def prepared(settings: Settings) -> tuple[Settings, ImageData, nn.Module, Methods]:
    """Data, the initial network and the methods, so that a bad command line fails before anything is written."""
    run, steps = settings.run, settings.max_steps if settings.epochs else 0
    data = image_data(settings.data, settings.model, seed=run.seed, small=run.fast_dev_run, steps=steps)
    if not data.trainable and settings.epochs:
        say("There are no training images: the network is evaluated only.")
        settings = adapted(settings, epochs=0)
    pl.seed_everything(run.seed, workers=True, verbose=False)
    network = classifier_of(settings.model, len(data.classes))
    if settings.term.lambda_ and settings.epochs:  # one step on a copy: what the term refuses is refused now
        images, labels = torch.zeros(2, 3, data.image_size, data.image_size), torch.zeros(2, dtype=torch.long)
        term = settings.term.loss(settings.term.lambda_)
        term(copy.deepcopy(network).eval(), images, labels, F.cross_entropy, 0)
    rectifiers = settings.term.rectifiers
    methods = attributions_of(settings.attributions, settings.model.layer, network, data.image_size, rectifiers)
    return settings, data, network, methods


def usual(known: argparse.Namespace) -> dict[str, Any]:
    """The preset of a command line; another network than the preset's gets none of its options."""
    preset = known.preset or ("finetune" if known.data else "generated")
    values = {"preset": preset, **PRESETS[preset]}
    return {name: value for name, value in values.items() if name != "model_options" or not known.model}


BAD_COMMAND_LINE = (ValueError, TypeError, LookupError, AttributeError, OSError, ImportError, RuntimeError)
FREE = {"devices", "accelerator", "num_nodes", "strategy", "workers"}  # may change when a run is resumed


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; returns the values of ``results.json`` (nothing on ranks other than zero)."""
    settings = parsed(Settings, __doc__, argv, usual)
    try:
        settings, data, start, methods = prepared(settings)
    except (*BAD_COMMAND_LINE, pickle.UnpicklingError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    run = Run(settings.run, settings, free=FREE)
    weights = {"plain": 0.0, "guided": settings.term.lambda_} if settings.epochs else {"given": 0.0}
    if not settings.compare:
        weights.pop("plain", None)

    def arm(settings: Settings, name: str, weight: float) -> tuple[nn.Module, dict[str, Any]]:
        """A network trained from the start, and what was measured of it; a finished one is read."""
        network, folder = copy.deepcopy(start), run.folder / name
        if run.has(name):
            load_weights(network, folder / "model.safetensors")
        else:
            say(f"\n{name}: lambda = {weight:g}")
        data.seed = settings.run.seed
        return network, run.part(name, lambda: train_and_test(settings, data, network, methods, weight, folder))

    if settings.start_epochs and settings.epochs:
        start, _ = arm(adapted(settings, epochs=settings.start_epochs, lr=settings.start_lr), "start", 0.0)
    networks: dict[str, nn.Module] = {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in weights}
    for seed in range(settings.seeds):
        of_seed = adapted(settings, seed=settings.run.seed + seed)
        for name, weight in weights.items():
            network, measured = arm(of_seed, name if not seed else f"{name}-{seed}", weight)
            networks.setdefault(name, network)
            found[name].append(measured)
    return report(run, networks, found, data, methods, settings.n_followed) if is_first_process() else {}


if __name__ == "__main__":
    main()
