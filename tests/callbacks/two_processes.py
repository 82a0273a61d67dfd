"""A program that `test_ddp.py` runs: Lightning starts it a second time, and both processes work on the same cases.

Usage: python two_processes.py FOLDER. Each process writes FOLDER/rank_<i>.json with what it logged in each case.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from callbacks.trainers import MEAN, STD, Forwards, classifier, loader, trainer
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import CSVLogger
from support import random_images
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_xai import (
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Faithfulness,
    GradCAM,
    GuidedGradientLoss,
    GuidedGradientMixin,
    ModelIntegrity,
    SaliencyMaps,
)
from lightning_xai.regularization import ConstantWeight

METHODS = {"gradcam": GradCAM("conv2")}
PARALLEL = {"strategy": "ddp", "devices": 2, "precision": "64-true"}


def images_with_nan() -> Tensor:
    """Seven images; the second process gets 1, 3, 5 and a copy of 0, and its first batch is lost."""
    images = random_images(7)
    images[[1, 3]] = torch.nan
    return images


CASES: dict[str, dict[str, Any]] = {
    "all": {"n_images": None, "images": random_images(7)},
    "first 3": {"n_images": 3, "images": random_images(7)},
    "first 1": {"n_images": 1, "images": random_images(7)},
    "nan": {"n_images": None, "images": images_with_nan()},
    "one batch": {"n_images": None, "images": random_images(7)[:4], "limit_val_batches": 1},
    "a stream": {"n_images": None, "images": random_images(5)},
}
"""The images that are measured, and how; of the first three and of "one batch" the data are seven."""


class Stream(IterableDataset):
    """All images come to the first process; the second has no batch."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return ((image, i % 3) for i, image in enumerate(self.images) if not torch.distributed.get_rank())


def measured(n_images: int | None) -> Faithfulness:
    """All three metrics of one method."""
    metrics = [AverageDrop(), AverageIncrease(), AverageGain()]
    return Faithfulness(METHODS, metrics, mean=MEAN, std=STD, controls={}, n_images=n_images, classifier="model")


def validated(name: str, n_images: int | None, images: Tensor, **options: Any) -> dict[str, Any]:
    """What one case logs, and the sizes of all passes that this process made."""
    module = classifier()
    forwards = Forwards(module.model)
    data = loader(batch_size=2, images=random_images(7) if options else images)
    callbacks: list[Any] = [measured(n_images)]
    if name == "a stream":
        callbacks += [ModelIntegrity(), SaliencyMaps(METHODS, mean=MEAN, std=STD, classifier="model")]
        data, options = DataLoader(Stream(images), 2), {"logger": CSVLogger(sys.argv[1], "stream")}
    running = trainer(callbacks=callbacks, **options, **PARALLEL)
    running.validate(module, data, verbose=False)
    return {"logged": {key: value.item() for key, value in running.callback_metrics.items()}, "passes": forwards.sizes}


class Regularized(GuidedGradientMixin, LightningModule):
    """Trains with the guided-gradient term."""

    def __init__(self) -> None:
        super().__init__()
        self.model = classifier().model
        self.interpretability = GuidedGradientLoss(weight=ConstantWeight(0.1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.guided_gradient_loss(*batch, model=self.model)[0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self.model(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fitted(folder: Path) -> dict[str, Any]:
    """Two epochs with both callbacks, pictures and the term."""
    module = Regularized()
    forwards = Forwards(module.model)
    drawn = SaliencyMaps(METHODS, mean=MEAN, std=STD, n_images=3)
    logger = CSVLogger(folder, name="", version="run")
    running = trainer(callbacks=[measured(None), drawn], logger=logger, max_epochs=2, **PARALLEL)
    running.fit(module, loader(8, 2), loader(7, 2))
    if running.is_global_zero:
        torch.save(module.model.state_dict(), folder / "model.pt")
    weights = sum(parameter.double().sum().item() for parameter in module.parameters())
    logged = {key: value.item() for key, value in running.callback_metrics.items()}
    return {"logged": logged, "weights": weights, "rank": running.global_rank, "passes": forwards.sizes}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|DistributedSampler).*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    results = {name: validated(name, **case) for name, case in CASES.items()}
    results["fit"] = fitted(folder)
    (folder / f"rank_{results['fit']['rank']}.json").write_text(json.dumps(results))
