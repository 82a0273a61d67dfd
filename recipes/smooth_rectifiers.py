"""Does the guided rule at GELU and SiLU behave as at ReLU? Their maps beside each other, in networks of one origin.

    python recipes/smooth_rectifiers.py                     # 7 minutes on a shared CPU core
    python recipes/smooth_rectifiers.py --out recipes/results/smooth_rectifiers.json
    python recipes/smooth_rectifiers.py --fast-dev-run      # seconds

The papers have the guided rule for ReLU alone; ``rectifiers="all"`` takes it to smooth rectifiers. For each seed a
small network with ReLU learns the generated images (`common/data/generated.py`: one object decides the class, two
others of the same textures mislead). Its rectifiers are swapped for GELU and for SiLU, and all three are trained on for
as long, ReLU too. Then the maps of unseen images that all three get right are compared: the guided gradient, the plain
one, and the box as a share of the image, which a map that knows nothing gets.

pointing: share of the images whose map peaks in the object's box. energy: share of the map's sum in the box.
randomised: rank correlation of a map with that of the same network with random weights, one layer after the other from
the top, mean over the layers; what stays did not come from the weights. agreement: rank correlation with the guided map
of the ReLU network. cosine: of gradient and guided gradient. Maps are the largest magnitude over the channels.

Expected (means of 3 seeds, lowest to highest; 280 images, accuracy 44 to 45 %; the box is 12 % of the image):

                 pointing                 energy                   randomised               agreement
    ReLU guided  0.75 [0.67, 0.86]        0.39 [0.35, 0.41]        0.62 [0.60, 0.65]        1
         plain   0.69 [0.64, 0.73]        0.28 [0.27, 0.30]        0.40 [0.35, 0.45]        0.74 [0.71, 0.77]
    GELU guided  0.78 [0.67, 0.88]        0.40 [0.37, 0.41]        0.72 [0.71, 0.75]        0.96 [0.95, 0.96]
         plain   0.74 [0.73, 0.76]        0.30 [0.28, 0.31]        0.52 [0.47, 0.56]        0.75 [0.73, 0.77]
    SiLU guided  0.77 [0.69, 0.86]        0.40 [0.37, 0.41]        0.71 [0.70, 0.73]        0.93 [0.93, 0.94]
         plain   0.72 [0.65, 0.76]        0.30 [0.28, 0.31]        0.50 [0.47, 0.54]        0.73 [0.72, 0.76]

So the rule does at GELU and SiLU what it does at ReLU, its weakness included: maps that depend less on the weights than
plain gradients, a little less still than with ReLU.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import lightning_xai as xai
from common.data.generated import CLASSES, MEAN, STD, GeneratedImages
from common.measured import machine, save_measurement
from common.options import option, parsed
from common.planted_network import fitted
from lightning_xai.attribution import channel_max
from lightning_xai.metrics import energy_in_box, gradient_alignment, parameter_randomization, pointing_game
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import centered
from lightning_xai.trace import Capture, run

RECTIFIERS: dict[str, Callable[[], nn.Module]] = {"ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU}
METHODS = {
    "guided": xai.GuidedGradient(reduce=channel_max, rectifiers="all"),
    "plain": xai.InputGradient(reduce=channel_max),
}


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    out: Path | None = option(None, "file for the numbers, as JSON")
    fast_dev_run: bool = option(False, "one small seed, to try the script")


@dataclass(frozen=True)
class Scale:
    """How much is trained and explained: images, epochs with ReLU, epochs after the swap, explained and randomised."""

    train: int = 2048
    epochs: int = 10
    more: int = 3
    explained: int = 256
    randomised: int = 32
    seeds: int = 3


SMALL = Scale(train=64, epochs=1, more=1, explained=16, randomised=2, seeds=1)
SIZE = 48


def network() -> nn.Sequential:
    """Four convolutions with ReLU, pooling and a linear head."""

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    body = [*block(3, 16, 1), *block(16, 32, 2), *block(32, 48, 2), *block(48, 64, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))


def swapped(model: nn.Sequential, rectifier: Callable[[], nn.Module]) -> nn.Sequential:
    """A copy with other rectifiers and the same weights."""
    return nn.Sequential(*(rectifier() if isinstance(one, nn.ReLU) else copy.deepcopy(one) for one in model))


def drawn(n: int, split: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised images, labels and boxes."""
    data = GeneratedImages(n, seed=seed, split=split, size=SIZE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (data.images / 255 - mean) / std, data.labels, data.boxes


def trained_on(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> nn.Module:
    """After some epochs of AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), rate)
    return fitted(model, images, labels, optimizer, epochs=epochs, batch_size=64)


def networks(scale: Scale, seed: int) -> dict[str, nn.Module]:
    """One network with ReLU, and what becomes of it with each of the rectifiers."""
    torch.manual_seed(seed)
    images, labels, _ = drawn(scale.train, "train", seed)
    origin = network()
    trained_on(origin, images, labels, scale.epochs, 3e-3)
    found = {}
    for name, rectifier in RECTIFIERS.items():
        torch.manual_seed(seed)  # the same order of the images
        found[name] = trained_on(swapped(origin, rectifier), images, labels, scale.more, 1e-3)
    return found


def measured(scale: Scale, seed: int) -> list[dict[str, Any]]:
    """A row for each rectifier and method."""
    images, labels, boxes = drawn(scale.explained, "val", seed)
    models = networks(scale, seed)
    with torch.no_grad():
        right = {name: model(images).argmax(1) == labels for name, model in models.items()}
    chosen = torch.stack(list(right.values())).all(0)  # the same images for all
    chosen = chosen if chosen.any() else ~chosen  # where hardly anything was learned, to try the script
    images, targets, boxes = images[chosen], labels[chosen], boxes[chosen]
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / SIZE**2).mean().item()
    rows, reference = [], None
    for name, model in models.items():
        gradients = [xai.explain(model, images, targets, attributions=one) for one in METHODS.values()]
        reference = gradients[0] if reference is None else reference
        cosine = alignment_of(model, images, targets)
        for method, maps in zip(METHODS, gradients, strict=True):
            few = scale.randomised
            explain = partial(maps_of, images=images[:few], targets=targets[:few], method=method)
            similar = parameter_randomization(model, explain)
            rows.append(
                {
                    "rectifier": name,
                    "method": method,
                    "seed": seed,
                    "n": len(images),
                    "accuracy": right[name].double().mean().item(),
                    "area": area,
                    "pointing": pointing_game(maps, boxes[:, None], tolerance=0).double().mean().item(),
                    "energy": energy_in_box(maps, boxes[:, None]).double().mean().item(),
                    "randomised": similar.randomization_similarities[..., 0].nanmean().item(),
                    "agreement": rank_correlation(maps, reference).mean().item(),
                    "cosine": cosine,
                }
            )
    return rows


def maps_of(model: nn.Module, images: Tensor, targets: Tensor, method: str) -> Tensor:
    """The maps (N,H,W) of one method."""
    return xai.explain(model, images, targets, attributions=METHODS[method])


def alignment_of(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Mean cosine of the gradient and the guided gradient, over all channels."""
    trace = run(model, images, Capture(image_gradient=True))
    plain, guided = (trace.image_gradient(centered, targets, rectifiers=one) for one in (None, "all"))
    return gradient_alignment(plain, guided).double().nanmean().item()


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Train, explain, print means over seeds with their range, and write the rows where asked."""
    settings = parsed(Settings, __doc__, arguments)
    scale = SMALL if settings.fast_dev_run else Scale()
    rows: list[dict[str, Any]] = []
    for seed in range(scale.seeds):
        rows += measured(scale, seed)
        if settings.out:
            save_measurement(settings.out, pd.DataFrame(rows).round(4).to_dict("records"))
    frame = pd.DataFrame(rows)
    over_seeds = frame.drop(columns="seed").groupby(["rectifier", "method"], sort=False)
    for title, table in (("mean", over_seeds.mean()), ("lowest", over_seeds.min()), ("highest", over_seeds.max())):
        print(f"\n{title} of {scale.seeds} seeds\n{table.round(3).to_string()}")
    print(machine())
    return frame


if __name__ == "__main__":
    main()
