"""What maps cost, in units of one gradient-free forward pass of the same batch, beside other libraries.

    python recipes/benchmark.py                               # ResNet-18, 8 images of 224 px: 20 minutes on 2 CPU cores
    python recipes/benchmark.py --only grad-cam --rounds 20   # methods whose names begin so
    python recipes/benchmark.py --device cuda --batch-size 64
    python recipes/benchmark.py --training                    # steps with the training term, see training_benchmark.py

Data: none; random images and weights, which take the same time as others. The libraries compared with are the extra
``peers``; rows of those that are not installed are left out.
Timing: in every round each row runs once, right after one forward pass; their ratio is what counts. The table shows
medians and quartiles of the ratios over the rounds, the first of which warms up and does not count.
Output: the table on the screen, with the machine. What to expect is in the README.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import argparse
import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

import benchmarks.peers as peers
import lightning_xai as xai
from benchmarks.clock import seconds_of
from benchmarks.training import measurements, profiles, records
from benchmarks.training import table as training_table
from benchmarks.validation import validations
from common.measured import machine, save_measurement
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
    def median(self) -> float:
        """Of the ratios."""
        return statistics.median(self.ratios)

    def record(self) -> dict[str, Any]:
        """A row in long form."""
        low, high = self.spread
        names = {"method": self.row.name, "library": self.row.library, "rounds": len(self.ratios)}
        seconds = round(statistics.median(self.seconds), 6)
        return names | {"low": low, "median": self.median, "high": high, "seconds": seconds}

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each row runs, beside once to warm up")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings of methods, or libraries")
    parser.add_argument("--threads", type=int, help="CPU threads; what torch takes by itself if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=NETWORKS, default="resnet18", help="whose maps are timed")
    parser.add_argument("--bfloat16", action="store_true", help="maps under autocast to bfloat16")
    parser.add_argument("--validation", action="store_true", help="time validation epochs with the callbacks, not maps")
    parser.add_argument("--training", action="store_true", help="time training steps with the term, not maps")
    parser.add_argument("--profile", action="store_true", help="with --training: where the time goes, on a CPU")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    parser.add_argument("--fast-dev-run", action="store_true", help="one round on two images of 32 px")
    args = parser.parse_args(arguments)
    if args.fast_dev_run:
        args.rounds, args.batch_size, args.image_size = 1, 2, 32
    if args.rounds < 1:
        parser.error(f"argument --rounds: expected 1 or more, got {args.rounds}")
    return args


def chosen(only: Sequence[str] | None) -> list[Row]:
    """The rows whose method begins with one of the names, or whose library is one; all where none is given."""
    if only is None:
        return ROWS
    names = tuple(name.lower() for name in only)
    rows = [row for row in ROWS if row.name.lower().startswith(names) or row.library in names]
    if not rows:
        known = sorted({row.name for row in ROWS} | {row.library for row in ROWS})
        raise SystemExit(f"--only expected the beginning of a method or a library of {known}, got {' '.join(only)}")
    return rows


def measure(rows: Sequence[Row], model: nn.Module, images: Tensor, targets: Tensor, rounds: int) -> list[Result]:
    """Run all rows in turn, round after round; rows of libraries that are not installed are left out."""
    results = [Result(row, [], []) for row in rows]
    for n in range(rounds + 1):
        for result in list(results):
            batch = (images[:1], targets[:1]) if result.row.one_image else (images, targets)
            try:
                forward, seconds = time_once(result.row, model, *batch)
            except ModuleNotFoundError:
                results.remove(result)
                continue
            if n > 0:  # the first round warms up
                result.ratios.append(seconds / forward)
                result.seconds.append(seconds)
    return results


def time_once(row: Row, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[float, float]:
    """Seconds of one forward pass and, right after it, of one row."""
    # Others get a model and images of their own: some change what they are given, some want gradients switched on.
    model_of_row, images_of_row = model, images
    if row.library != "lightning_xai":
        model_of_row, images_of_row = copy.deepcopy(model), images.clone().requires_grad_()
    with torch.no_grad():
        forward = seconds_of(lambda: model(images), images.device)
    return forward, seconds_of(lambda: row.method(model_of_row, images_of_row, targets), images.device)


def table(results: Sequence[Result], title: str, caption: str = "") -> Table:
    """One line for each row, methods together."""
    rows: list[list[Cell]] = []
    for result in results:
        low, high = result.spread
        cost = result.median, f"{low:.2f} - {high:.2f}", result.row.reach, f"{statistics.median(result.seconds):.4f}"
        rows.append([result.row.name, result.row.library, *cost])
    return Table(title, ["method", "library", "forwards", "quartiles", "reach", "seconds"], rows, caption, digits=2)


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Measure training steps, print them, and write them down where asked."""
    if args.profile:
        for one in profiles(args.rounds, small=args.fast_dev_run):
            show(one)
        print(machine(device))
        return
    rows: list[dict[str, Any]] = []
    for setting, results in measurements(args.rounds, device, small=args.fast_dev_run):
        show(training_table(results, f"{setting.title}, {args.rounds} rounds", machine(device)))
        rows += records(setting, results)
        save(args, rows, device)  # after each network: the run may be stopped


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Measure what the command line asks for, and print it."""
    args = parse(arguments)
    rows, device = chosen(args.only), torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.training:
        train(args, device)
        return []
    if args.validation:
        found = validations(args.network, NETWORKS[args.network], args.rounds, device, args.bfloat16, args.fast_dev_run)
        show(Table("Validation epochs", list(found[0]), [list(one.values()) for one in found], machine(device), 3))
        save(args, found, device)
        return []
    torch.manual_seed(0)
    model = NETWORKS[args.network]().eval().to(device)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    with torch.no_grad():
        targets = model(images).argmax(1)
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
        results = measure(rows, model, images, targets, args.rounds)
    name = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}[args.network]
    shape = f"{name}, batch {args.batch_size}, {args.image_size} px, {args.rounds} rounds"
    title = shape + (", bfloat16" if args.bfloat16 else "")
    show(table(results, title, machine(device)))
    save(args, [{"title": title, **one.record()} for one in results], device)
    return results


def save(args: argparse.Namespace, rows: list[dict[str, Any]], device: torch.device) -> None:
    """Write rows down where a file is asked for."""
    if args.out:
        save_measurement(args.out, rows, device)


if __name__ == "__main__":
    main()
