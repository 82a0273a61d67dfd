"""What a training step with the guided-gradient term costs, in units of a plain training step of the same batch.

    python recipes/benchmark.py --training                     # ten minutes on 2 CPU cores
    python recipes/benchmark.py --training --rounds 6 --threads 1 --out recipes/results/training_steps.json
    python recipes/benchmark.py --training --rounds 20 --device cuda
    python recipes/benchmark.py --training --profile           # where the time goes, on a CPU

Data: none; random images and weights. A step is forward pass, backward pass and SGD with momentum.
Timing: in every round each row runs once, right after one plain step; their ratio is what counts. The table shows
medians and quartiles of the ratios over the rounds, the first of which warms up and does not count. Of
``every_n_steps`` all n steps are run and their mean counts.
Expected (medians [quartiles] of 6 rounds; AMD EPYC, 1 thread, the machine shared; ``recipes/results`` has all):

                                        ResNet-18, batch 32, 64 px     ResNet-20, batch 64, 32 px
    exact                               2.72 [2.68, 2.92]              3.05 [2.93, 3.15]
    exact, double backward of PyTorch   3.13 [2.94, 3.22]              3.55 [3.49, 3.64]
    batch_norm="evaluation"             3.87 [3.75, 4.00]              3.83 [3.55, 3.91]
    every_n_steps=2                     1.90 [1.75, 2.16]              1.95 [1.94, 1.97]
    every_n_steps=4                     1.38 [0.99, 1.43]              1.62 [1.57, 1.92]
    every_n_steps=8                     1.28 [1.22, 1.46]              1.21 [1.18, 1.22]
    fraction=0.25                       1.89 [1.84, 1.98]              1.81 [1.78, 1.87]
    layer="layer3", "layer2"            1.54 [1.51, 1.57]              1.52 [1.46, 1.53]

    in both memory formats              exact                          double backward of PyTorch
    ResNet-18, batch 32, 32 px          2.85 [2.75, 2.98]              2.81 [2.71, 2.97]
        channels_last                   2.85 [2.73, 2.92]              3.23 [3.04, 3.51]
    ResNet-20, batch 64, 32 px          2.92 [2.82, 3.06]              3.66 [3.00, 3.73]
        channels_last                   3.22 [3.13, 3.56]              5.62 [5.37, 5.81]
    ResNet-50, batch 8, 64 px           2.55 [2.43, 2.74]              3.02 [2.99, 3.05]
        channels_last                   2.62 [2.41, 2.65]              3.74 [3.40, 3.89]

On a quiet machine the exact term took 2.50 and 2.63 in the first two networks.

Counted in convolutions the exact term costs 7/3. What is above it: the first layer's gradient at the image, which plain
training does not need and which takes four times as long as that layer's forward pass (0.15 of a ResNet-18 step), and
the pointwise parts of batch normalisation and rectifiers, which weigh more in ResNet-20. By operators (``--profile``, 3
rounds, one thread, the machine shared), in plain steps:

                                        ResNet-18: plain, exact        ResNet-20: plain, exact
    backward passes of convolutions     0.59, 1.56                     0.52, 1.43
    forward passes of convolutions      0.27, 0.49                     0.24, 0.57
    batch normalisation, backward       0.03, 0.13                     0.04, 0.21
    its forward, rectifiers, additions  0.11, 0.27                     0.20, 0.47
    all                                 1.00, 2.45                     1.00, 2.68

So convolutions alone take 2.05 and 2.00 of a plain step, of which they are 0.85 and 0.76. A quarter of the batch costs
more than its share, because an image of a small batch takes longer: 1.2 times in a plain step of 8 instead of 32.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models import resnet18, resnet50

import lightning_xai as xai
from common.data.cifar import CifarResNet, resnet18_for_small_images
from common.measured import quartiles, seconds_of
from common.training import Loss, plain, with_term
from lightning_xai.regularization import gradient_pair
from lightning_xai.report import Cell, Table

WEIGHT = 7.5e-3


def by_pytorch(model: nn.Module, images: Tensor, targets: Tensor, step: int) -> Tensor:
    """The exact term, differentiated by PyTorch alone."""
    leaf = images.detach().requires_grad_()
    loss = F.cross_entropy(model(leaf.clone()), targets)
    score = -loss * len(images)
    return loss + WEIGHT * xai.regularization.CosineLoss()(*gradient_pair(score, score, leaf)).mean()


@dataclass(frozen=True)
class Row:
    """A line of the table: what a step lowers, over how many steps the mean is taken, and what it should cost."""

    name: str
    loss: Loss
    steps: int = 1
    reach: float | None = None


@dataclass(frozen=True)
class Setting:
    """A network with its batch, an inner layer for the term, and what the exact term should cost at most."""

    name: str
    make: Callable[[], nn.Module]
    batch_size: int
    image_size: int
    layer: str
    reach: float
    memory_format: torch.memory_format = torch.contiguous_format
    bfloat16: bool = False

    @property
    def title(self) -> str:
        """For the table."""
        suffix = ", channels_last" if self.memory_format == torch.channels_last else ""
        precision = ", bf16-mixed" if self.bfloat16 else ""
        return f"{self.name}, batch {self.batch_size}, {self.image_size} px{suffix}{precision}"


SETTINGS = [
    Setting("ResNet-18", partial(resnet18, num_classes=10), 32, 64, "layer3", 2.4),
    Setting("ResNet-20", partial(CifarResNet, 3), 64, 32, "layer2", 2.7),
]
FORMATS = [
    replace(setting, memory_format=memory_format)
    for setting in (
        replace(SETTINGS[0], image_size=32),
        SETTINGS[1],
        Setting("ResNet-50", partial(resnet50, num_classes=10), 8, 64, "layer3", 2.8),
    )
    for memory_format in (torch.contiguous_format, torch.channels_last)
]

ON_CUDA = [
    Setting("ResNet-50", resnet50, 128, 224, "layer3", 2.35, torch.channels_last, bfloat16=True),
    Setting("ResNet-18, 3x3 stem", resnet18_for_small_images, 512, 32, "layer3", 2.35, torch.channels_last, True),
]


def exact_rows(setting: Setting) -> list[Row]:
    """The exact term, and its double backward left to PyTorch."""
    term = xai.GuidedGradientLoss(weight=WEIGHT)
    return [Row("exact", with_term(term), reach=setting.reach), Row("exact, double backward of PyTorch", by_pytorch)]


def rows_of(setting: Setting) -> list[Row]:
    """What is measured for a network."""
    ours = partial(xai.GuidedGradientLoss, weight=WEIGHT)
    return [
        *exact_rows(setting),
        Row("batch_norm='evaluation'", with_term(ours(batch_norm="evaluation"))),
        *(Row(f"every_n_steps={n}", with_term(ours(every_n_steps=n)), n, 1 + 1.5 / n) for n in (2, 4, 8)),
        Row("fraction=0.25", with_term(ours(fraction=0.25))),
        Row(f"layer={setting.layer!r}", with_term(ours(layer=setting.layer))),
    ]


@dataclass(frozen=True)
class Training:
    """A network that takes steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    bfloat16: bool = False

    def step(self, loss: Loss, images: Tensor, targets: Tensor, step: int = 0) -> None:
        """One of the optimizer."""
        self.optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16):
            value = loss(self.model, images, targets, step)
        value.backward()
        self.optimizer.step()


@dataclass(frozen=True)
class Result:
    """What was measured for a row: seconds of a step and their ratio to a plain one, in each round that counts.

    On a GPU also the peak of its memory over that of a plain step, in each round.
    """

    row: Row
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def peak(device: torch.device) -> int:
    """Most bytes held on a GPU since the last call; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    most = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return most


def measure(setting: Setting, rows: Sequence[Row], rounds: int, device: torch.device) -> list[Result]:
    """Run all rows in turn, each after a plain step, round after round."""
    torch.manual_seed(0)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, device=device)
    images = images.to(memory_format=setting.memory_format)
    targets = torch.randint(10, (setting.batch_size,), device=device)
    start: Any = setting.make().to(device)
    start.to(memory_format=setting.memory_format)
    results = [Result(row) for row in rows]
    for n in range(rounds + 1):
        for result in results:
            model = copy.deepcopy(start)  # every row trains the same network
            training = Training(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), setting.bfloat16)
            training.step(plain, images, targets)  # the first step allocates gradients and momenta
            peak(device)
            base = seconds_of(partial(training.step, plain, images, targets))
            plain_peak = peak(device)
            steps = (partial(training.step, result.row.loss, images, targets, i) for i in range(result.row.steps))
            took = [seconds_of(step) for step in steps]
            if n > 0:  # the first round warms up
                result.seconds.append(statistics.mean(took))
                result.ratios.append(result.seconds[-1] / base)
                if plain_peak:
                    result.memory.append(peak(device) / plain_peak)
    return results


def table(results: Sequence[Result], title: str, caption: str = "") -> Table:
    """One line for each row."""
    rows: list[list[Cell]] = []
    for result in results:
        low, middle, high = quartiles(result.ratios)
        memory = statistics.median(result.memory) if result.memory else None
        seconds = f"{statistics.median(result.seconds):.3f}"
        rows.append([result.row.name, middle, f"{low:.2f} - {high:.2f}", result.row.reach, memory, seconds])
    heads = ["term", "plain steps", "quartiles", "reach", "peak memory", "seconds"]
    return Table(title, heads, rows, caption, digits=2)


def measurements(rounds: int, device: torch.device, *, small: bool = False) -> Iterator[tuple[Setting, list[Result]]]:
    """One for each network, as soon as it is measured; ``small`` is for trying out, on few small images."""
    kinds = [(SETTINGS, rows_of), (FORMATS, exact_rows)]
    for settings, rows in [(ON_CUDA, rows_of), *kinds] if device.type == "cuda" else kinds:
        for setting in settings:
            one = replace(setting, batch_size=8, image_size=32) if small else setting
            yield one, measure(one, rows(one), rounds, device)


def records(setting: Setting, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of a table in long form, times in plain steps."""
    return [
        {"network": setting.title, "term": result.row.name, "rounds": len(result.ratios)}
        | ({"memory": round(statistics.median(result.memory), 3)} if result.memory else {})
        | dict(zip(("low", "median", "high"), (round(one, 3) for one in quartiles(result.ratios)), strict=True))
        for result in results
    ]


def profiles(rounds: int, *, small: bool = False) -> Iterator[Table]:
    """Where the time of the exact term goes, on a CPU: one table for each network."""
    for setting in SETTINGS:
        one = replace(setting, batch_size=8, image_size=32) if small else setting
        yield profile_table(one, rounds)


def profile_table(setting: Setting, rounds: int, most: int = 12) -> Table:
    """The operators that take longest, in units of a plain step; times are their own, without those they call."""
    exact = with_term(xai.GuidedGradientLoss(weight=xai.regularization.ConstantWeight(WEIGHT)))
    plain_step, with_exact = _operators(setting, plain, rounds), _operators(setting, exact, rounds)
    whole = sum(plain_step.values())
    longest = sorted(with_exact, key=lambda name: -with_exact[name])[:most]
    rows: list[list[Cell]] = [[name, plain_step.get(name, 0) / whole, with_exact[name] / whole] for name in longest]
    rows.append(["all", 1.0, sum(with_exact.values()) / whole])
    return Table(f"{setting.name}: operators, in plain steps", ["operator", "plain", "exact term"], rows, digits=3)


def _operators(setting: Setting, loss: Loss, rounds: int) -> dict[str, float]:
    """Microseconds that each operator itself takes in some steps, by name."""
    torch.manual_seed(0)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size)
    targets = torch.randint(10, (setting.batch_size,))
    model = setting.make()
    training = Training(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    training.step(loss, images, targets)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(rounds):
            training.step(loss, images, targets)
    return {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
