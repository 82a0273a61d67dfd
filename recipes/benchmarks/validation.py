"""What the callbacks add to a validation epoch, in units of a plain one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_xai as xai
from common.measured import quartiles, seconds_of
from common.training import Validated, bare_trainer

STANDARD: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def callbacks() -> dict[str, list[Callback]]:
    """What is added to validation, by name, with the README's two methods; what is not said is left at its default."""
    methods = {"gradcam": xai.GradCAM(), "gradient": xai.InputGradient()}
    gradcam, two = {"gradcam": xai.GradCAM()}, [xai.AverageDrop(), xai.AverageGain()]
    three, curves = [*two, xai.AverageIncrease()], [xai.Insertion(), xai.Deletion()]
    return {
        "nothing": [],
        "SaliencyMaps": [xai.SaliencyMaps(methods, **STANDARD)],
        "Faithfulness": [xai.Faithfulness(methods, two, **STANDARD)],
        "Faithfulness of one CAM": [xai.Faithfulness(gradcam, three, **STANDARD)],
        "Faithfulness of one CAM, with curves": [xai.Faithfulness(gradcam, [*three, *curves], **STANDARD)],
        "ModelIntegrity": [xai.ModelIntegrity(**STANDARD)],
        "the three": [
            xai.SaliencyMaps(methods, **STANDARD),
            xai.Faithfulness(methods, two, **STANDARD),
            xai.ModelIntegrity(**STANDARD),
        ],
    }


@dataclass(frozen=True)
class Data:
    """Images of one validation."""

    n_images: int
    image_size: int
    batch_size: int
    device: torch.device
    bfloat16: bool = False

    def loader(self) -> DataLoader[Any]:
        """Pixels in [0, 1], standardised: the callbacks check that."""
        images = torch.rand(self.n_images, 3, self.image_size, self.image_size).sub(0.45).div(0.225).to(self.device)
        labels = torch.zeros(self.n_images, dtype=torch.long, device=self.device)
        return DataLoader(TensorDataset(images, labels), self.batch_size)


def validations(
    name: str, make: Callable[[], nn.Module], rounds: int, data: Data, only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Seconds of validation epochs with each of the callbacks, every one after a plain epoch; rows in long form.

    What is added does not grow with the number of images: ``passes`` says how many more images the network could have
    classified meanwhile, and ``ratio_of_2000`` what becomes of a validation of 2,000 images.
    """
    torch.manual_seed(0)
    loader, module = data.loader(), Validated(make())
    chosen = {added: some for added, some in callbacks().items() if not only or added in only}
    if not chosen:
        raise SystemExit(f"--only expected some of {', '.join(callbacks())}, got {', '.join(only)}.")
    found: dict[str, list[tuple[float, float]]] = {added: [] for added in chosen}
    with TemporaryDirectory() as folder:
        seconds_of(partial(_epoch, module, loader, data, [], folder))  # warms up
        for _ in range(rounds):
            for added, some in chosen.items():
                base, took = (seconds_of(partial(_epoch, module, loader, data, one, folder)) for one in ([], some))
                found[added].append((base, took))
    return [
        {"network": name, "validation": added, "images": data.n_images, "image_size": data.image_size, "rounds": rounds}
        | _figures(pairs, data.n_images)
        for added, pairs in found.items()
    ]


def _figures(pairs: list[tuple[float, float]], n: int) -> dict[str, float]:
    low, median, high = quartiles([took / base for base, took in pairs])
    passes = (median - 1) * n
    figures = {"low": low, "median": median, "high": high, "passes": passes, "ratio_of_2000": 1 + passes / 2000}
    seconds = statistics.median(took for _, took in pairs)
    return {name: round(value, 3) for name, value in figures.items()} | {"seconds": round(seconds, 3)}


def _epoch(module: Validated, loader: Any, data: Data, some: list[Callback], folder: str) -> None:
    trainer = bare_trainer(
        accelerator="cpu" if data.device.type == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if data.bfloat16 else "32-true",
        logger=CSVLogger(folder),  # somebody looks
        callbacks=some,
    )
    trainer.validate(module, loader, verbose=False)
