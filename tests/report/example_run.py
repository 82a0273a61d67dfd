"""A small run as recipes leave it, written by the very code that logs and saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import CSVLogger

from lightning_xai.callbacks.loggers import log_panel
from lightning_xai.log_keys import LogKey
from lightning_xai.panels import save_panel
from lightning_xai.report import Example, Picture, Results, Table
from lightning_xai.visualization import Panel, overlay

METRICS = ("AverageDrop", "AverageGain")


def panel(methods: Sequence[str] = ("gradcam", "lrp"), n: int = 2, seed: int = 0) -> Panel:
    """Images of seeded noise under maps of seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
    maps = {name: overlay(images, torch.rand(n, 16, 16, generator=generator)) for name in methods}
    facts = {"label": [f"class {i}" for i in range(n)], "prediction": ["hen"] * n, "probability": [0.25] * n}
    return Panel(images, maps, facts)


def write_log(
    folder: Path,
    methods: Sequence[str] = ("gradcam", "lrp"),
    steps: Sequence[int] = (10, 20, 30),
    flagged_at: int | None = None,
) -> None:
    """Curves, pictures and integrity figures of one network, through the CSV logger."""
    logger = CSVLogger(folder, name="", version="csv_0")
    for epoch, step in enumerate(steps):
        logger.log_metrics({"train/loss": 1 / step, "epoch": epoch}, step - 1)
        values = {
            str(LogKey("val", name, metric)): 50 + step + i for i, name in enumerate(methods) for metric in METRICS
        }
        integrity = {"suspicion": 0.02 * epoch, "flagged": float(step == flagged_at)}
        values |= {str(LogKey("val", "integrity", figure)): value for figure, value in integrity.items()}
        logger.log_metrics({"val/accuracy": 1 - 1 / step, "epoch": epoch, **values}, step - 1)
        log_panel([logger], str(LogKey("val", "maps")), panel(methods, seed=step), step)
    logger.save()


def write_examples(folder: Path, methods: Sequence[str] = ("gradcam", "lrp"), n: int = 8) -> list[Example]:
    """Panels of one image each, with values that rise with the number of the image."""
    (folder / "images").mkdir(parents=True)
    found = []
    for i in range(n):
        file = f"images/{i}"
        save_panel(panel(methods, 1, seed=i), folder / file)
        found.append(Example(str(i), file, {metric: dict.fromkeys(methods, 10.0 * i) for metric in METRICS}, "plain"))
    return found


def write_figure(folder: Path) -> Picture:
    """A line."""
    figure = Figure(figsize=(6, 3))
    figure.subplots().plot([0, 1], [1, 0])
    figure.savefig(folder / "line.png", dpi=100)
    return Picture("line.png", "A line that falls.")


def interval(mean: float) -> dict[str, float]:
    """An interval about a mean."""
    return {"mean": mean, "low": mean - 1, "high": mean + 1}


def write_run(
    folder: Path,
    methods: Sequence[str] = ("gradcam", "lrp"),
    steps: Sequence[int] = (10, 20, 30),
    flagged_at: int | None = None,
) -> Path:
    """A finished run of two networks."""
    for model in ("plain", "guided"):
        write_log(folder / model, methods, steps, flagged_at if model == "guided" else None)
    heads = ["", "plain", "guided", "guided - plain"]
    rows = [[name, interval(40.0 + i), interval(30.0 + i), interval(-10.0)] for i, name in enumerate(methods)]
    Results(
        "Guided gradients",
        "Two small networks that were trained on noise, with and without the term.",
        {"lambda": 0.1, "attributions": list(methods), "data": None},
        [Table("Average drop in percent, lower is better", heads, rows, "Means over 8 images, 95 % intervals.")],
        [write_figure(folder)],
        versions={"torch": "2.15"},
        seconds=12.5,
        images=write_examples(folder, methods),
        higher_is_better={"AverageDrop": False, "AverageGain": True},
    ).save(folder)
    return folder
