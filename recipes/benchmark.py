"""What maps cost, in units of one gradient-free forward pass of the same batch, beside other libraries.

    python recipes/benchmark.py                               # ResNet-18, 8 images of 224 px: 20 minutes on 2 CPU cores
    python recipes/benchmark.py --quick                       # small images, without the longest rows: two minutes
    python recipes/benchmark.py --only grad-cam --rounds 20   # methods whose names begin so
    python recipes/benchmark.py --device cuda --batch-size 64
    python recipes/benchmark.py --training                    # steps with the training term, see benchmarks/training.py
    python recipes/benchmark.py --validation --image-size 112 # validation epochs with the callbacks

Data: none; random images and weights, which take the same time as others. The libraries compared with are the extra
``peers``; rows of those that are not installed are left out.
Timing: a row runs in every round, right after one forward pass; their ratio is what counts. The table shows medians and
quartiles of the ratios over the rounds, the first of which warms up and does not count. On a CPU each row has a process
of its own: in one process, rows that keep large graphs took a tenth less time after other rows had left memory behind.
Output: the table on the screen, with the machine. What to expect is in the README.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from tqdm import tqdm

import benchmarks.peers as peers
import lightning_xai as xai
from benchmarks.training import measurements, profiles, records
from benchmarks.training import table as training_table
from benchmarks.validation import Data, validations
from common.measured import machine, quartiles, save_measurement, seconds_of
from common.options import option, parsed
from common.processes import fresh_processes
from common.run import show
from lightning_xai.attribution import CLRP, LRP, SGLRP
from lightning_xai.report import Cell, Table

LAYER = "layer4"
NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}
SCORES = {"pre": xai.scores.pre_softmax, "post": xai.scores.post_softmax, "log": xai.scores.log_softmax}

Method = Callable[[nn.Module, Tensor, Tensor], Any]


def ours(attributions: xai.Attribution | Mapping[str, xai.Attribution]) -> Method:
    """What a user calls."""
    return lambda model, images, targets: xai.explain(model, images, targets, attributions=attributions)


@dataclass(frozen=True)
class Row:
    """A line of the table: what is computed, by whom, how, and how many forward passes it should cost at most."""

    name: str
    library: str
    method: Method
    reach: float | None = None
    one_image: bool = False


CAMS = (xai.GradCAM, xai.GradCAMPlus, xai.GradCAMPlusPlus)
NINE = {f"{cam.__name__} {name}": cam(LAYER, score=score) for cam in CAMS for name, score in SCORES.items()}
RELEVANCE = {"lrp": LRP(), "clrp": CLRP(), "sglrp": SGLRP()}
INTEGRATED = xai.IntegratedGradients(n_steps=20, baseline=torch.tensor(0.0))
RSI = xai.attribution.RSIGradCAM(LAYER, n_steps=50, baseline=torch.tensor(0.0))
SCORE_CAM = xai.ScoreCAM(LAYER, score=xai.scores.pre_softmax, batch_size=16)  # score and batch of pytorch-grad-cam
CHANNELS = "Score-CAM, one image, 512 channels"

ROWS = [
    Row("Grad-CAM", "lightning_xai", ours(xai.GradCAM(LAYER)), 1.05),
    Row("Grad-CAM", "captum", partial(peers.captum_gradcam, layer=LAYER)),
    Row("Grad-CAM", "torch-cam", partial(peers.torchcam, method="GradCAM", layer=LAYER)),
    Row("Grad-CAM", "pytorch-grad-cam", partial(peers.grad_cam_package, method="GradCAM", layer=LAYER)),
    Row("Grad-CAM++", "lightning_xai", ours(xai.GradCAMPlusPlus(LAYER)), 1.05),
    Row("Grad-CAM++", "torch-cam", partial(peers.torchcam, method="GradCAMpp", layer=LAYER)),
    Row("Grad-CAM++", "pytorch-grad-cam", partial(peers.grad_cam_package, method="GradCAMPlusPlus", layer=LAYER)),
    Row("Grad-CAM, +, ++ of 3 scores", "lightning_xai", ours(NINE), 1.3),
    Row("guided gradient", "lightning_xai", ours(xai.GuidedGradient()), 2.2),
    Row("guided gradient", "captum", peers.captum_guided_gradient),
    Row("guided gradient", "zennit", peers.zennit_guided_gradient),
    Row("Integrated Gradients, 20 steps", "lightning_xai", ours(INTEGRATED), 45),
    Row("Integrated Gradients, 20 steps", "captum", partial(peers.captum_integrated_gradients, n_steps=20)),
    Row("Integrated Gradients, 20 steps", "zennit", partial(peers.zennit_integrated_gradients, n_steps=20)),
    Row("SmoothGrad, 20 samples", "lightning_xai", ours(xai.SmoothGrad(n_samples=20))),
    Row("SmoothGrad, 20 samples", "captum", partial(peers.captum_smoothgrad, n_samples=20, deviation=0.5)),
    Row("SmoothGrad, 20 samples", "zennit", partial(peers.zennit_smoothgrad, n_samples=20, noise_level=0.15)),
    Row("RSI Grad-CAM, 50 steps", "lightning_xai", ours(RSI), 55),
    Row("LRP (z+, zB at the image)", "lightning_xai", ours(LRP()), 3.7),
    Row("LRP (z+, flat at the image)", "zennit", peers.zennit_lrp),
    Row("LRP, CLRP and SGLRP", "lightning_xai", ours(RELEVANCE), 6.7),
    Row(CHANNELS, "lightning_xai", ours(SCORE_CAM), one_image=True),
    Row(CHANNELS, "torch-cam", partial(peers.torchcam, method="ScoreCAM", layer=LAYER), one_image=True),
    Row(CHANNELS, "pytorch-grad-cam", partial(peers.grad_cam_package, method="ScoreCAM", layer=LAYER), one_image=True),
]


@dataclass(frozen=True)
class Result:
    """What was measured for a row.

    Attributes:
        row: What was run.
        ratios: Time of the row over that of one forward pass, one number for each round that counts.
        seconds: Its time in each of them.
    """

    row: Row
    ratios: list[float]
    seconds: list[float]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the ratios."""
        return quartiles(self.ratios)

    def record(self) -> dict[str, Any]:
        """A row in long form."""
        names = {"method": self.row.name, "library": self.row.library, "rounds": len(self.ratios)}
        seconds = round(statistics.median(self.seconds), 6)
        return names | dict(zip(("low", "median", "high"), self.quartiles, strict=True)) | {"seconds": seconds}


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    rounds: int = option(5, "how often each row runs, beside once to warm up")
    batch_size: int = option(8, "images")
    image_size: int = option(224, "side of the images in pixels")
    only: tuple[str, ...] = option(
        (), "beginnings of methods, or libraries; with --validation names", metavar="NAME", nargs="+"
    )
    threads: int | None = option(None, "CPU threads; what torch takes by itself if not given")
    device: str = option("cpu", "where to compute")
    network: str = option("resnet18", "whose maps are timed", choices=NETWORKS)
    bfloat16: bool = option(False, "maps under autocast to bfloat16")
    validation: bool = option(False, "time validation epochs with the callbacks, not maps")
    images: int = option(2000, "with --validation: their number")
    training: bool = option(False, "time training steps with the term, not maps")
    profile: bool = option(False, "with --training: where the time goes, on a CPU")
    out: Path | None = option(None, "file for the numbers, as JSON")
    quick: bool = option(False, "two minutes: two rounds on small images, without the longest rows")
    fast_dev_run: bool = option(False, "one round on two images of 32 px")

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"argument --rounds: expected 1 or more, got {self.rounds}")


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    found = parsed(Settings, __doc__, argv)
    if found.quick:
        found = replace(found, rounds=min(found.rounds, 2), batch_size=4, image_size=112, images=512)
    return replace(found, rounds=1, batch_size=2, image_size=32, images=4) if found.fast_dev_run else found


def chosen(only: Sequence[str]) -> list[Row]:
    """The rows whose method begins with one of the names, or whose library is one; all where none is given."""
    if not only:
        return ROWS
    names = tuple(name.lower() for name in only)
    rows = [row for row in ROWS if row.name.lower().startswith(names) or row.library in names]
    if not rows:
        known = sorted({row.name for row in ROWS} | {row.library for row in ROWS})
        raise SystemExit(f"--only expected the beginning of a method or a library of {known}, got {' '.join(only)}")
    return rows


def measure(row: Row, model: nn.Module, images: Tensor, targets: Tensor, rounds: int) -> Result | None:
    """Run a row, round after round; None where its library is not installed."""
    result = Result(row, [], [])
    if row.one_image:
        images, targets = images[:1], targets[:1]
    for n in range(rounds + 1):
        # A model and images of its own: some change what they are given, some want gradients switched on.
        own, given = copy.deepcopy(model), images.clone().requires_grad_()
        with torch.no_grad():
            forward = seconds_of(lambda: model(images))
        try:
            seconds = seconds_of(partial(row.method, own, given, targets))
        except ModuleNotFoundError:
            return None
        if n > 0:  # the first round warms up
            result.ratios.append(seconds / forward)
            result.seconds.append(seconds)
    return result


def numbers(settings: Settings, i: int) -> tuple[list[float], list[float]] | None:
    """Ratios and seconds of the i-th row; None where its library is not installed."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    model = NETWORKS[settings.network]().eval().to(settings.device)
    shape = settings.batch_size, 3, settings.image_size, settings.image_size
    images = torch.randn(shape, device=settings.device)
    with torch.no_grad():
        targets = model(images).argmax(1)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bfloat16):
        found = measure(ROWS[i], model, images, targets, settings.rounds)
    return None if found is None else (found.ratios, found.seconds)


def measured(settings: Settings, rows: Sequence[Row]) -> list[Result]:
    """Every row of an installed library."""
    places = [ROWS.index(row) for row in rows]
    on_cpu = torch.device(settings.device).type == "cpu"
    found = apart(settings, places) if on_cpu else map(partial(numbers, settings), places)
    found = tqdm(found, total=len(rows), unit="row", leave=False)
    return [Result(row, *one) for row, one in zip(rows, found, strict=True) if one is not None]


def apart(settings: Settings, places: Sequence[int]) -> Iterator[Any]:
    """The numbers of rows, each from a process of its own."""
    for i in places:
        with ProcessPoolExecutor(1, fresh_processes()) as pool:
            yield pool.submit(numbers, settings, i).result()


def table(results: Sequence[Result], title: str, caption: str = "") -> Table:
    """One line for each row, methods together."""
    rows: list[list[Cell]] = []
    for result in results:
        low, median, high = result.quartiles
        cost = median, f"{low:.2f} - {high:.2f}", result.row.reach, f"{statistics.median(result.seconds):.4f}"
        rows.append([result.row.name, result.row.library, *cost])
    return Table(title, ["method", "library", "forwards", "quartiles", "reach", "seconds"], rows, caption, digits=2)


def leaders(results: Sequence[Result]) -> str:
    """Who is fastest, of the methods that several libraries have."""
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.row.name, []).append(result)
    ahead: dict[str, list[str]] = {}
    for name, some in by_method.items():
        if len(some) > 1:
            ahead.setdefault(min(some, key=lambda one: one.quartiles[1]).row.library, []).append(name)
    return "Fastest: " + "; ".join(f"{library} at {', '.join(names)}" for library, names in ahead.items())


def train(settings: Settings, device: torch.device) -> None:
    """Measure training steps, print them, and write them down where asked."""
    if settings.profile:
        for found in profiles(settings.rounds, small=settings.fast_dev_run):
            show(found)
        print(machine(device))
        return
    rows: list[dict[str, Any]] = []
    for one, results in measurements(settings.rounds, device, small=settings.fast_dev_run):
        show(training_table(results, f"{one.title}, {settings.rounds} rounds", machine(device)))
        rows += records(one, results)
        save(settings, rows, device)  # after each network: the run may be stopped


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Measure what the command line asks for, and print it."""
    settings = parse(argv)
    device = torch.device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.training:
        train(settings, device)
        return []
    if settings.validation:
        data = Data(settings.images, settings.image_size, settings.batch_size, device, settings.bfloat16)
        found = validations(settings.network, NETWORKS[settings.network], settings.rounds, data, settings.only)
        show(Table("Validation epochs", list(found[0]), [list(one.values()) for one in found], machine(device), 3))
        save(settings, found, device)
        return []
    rows = [row for row in chosen(settings.only) if not settings.quick or (not row.one_image and (row.reach or 0) < 50)]
    results = measured(settings, rows)
    name = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}[settings.network]
    shape = f"{name}, batch {settings.batch_size}, {settings.image_size} px, {settings.rounds} rounds"
    title = shape + (", bfloat16" if settings.bfloat16 else "")
    show(table(results, title, f"{machine(device)}. {leaders(results)}"))
    save(settings, [{"title": title, **one.record()} for one in results], device)
    return results


def save(settings: Settings, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Write rows down where a file is asked for."""
    if settings.out:
        save_measurement(settings.out, rows, device)


if __name__ == "__main__":
    main()
