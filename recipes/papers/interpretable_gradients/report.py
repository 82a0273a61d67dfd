"""Tables and figures of the CIFAR experiment; networks, not images, are the unit of its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.tables import interval
from lightning_xai.metrics import number_named
from lightning_xai.report import Cell, Table
from papers.interpretable_gradients.training import Setting

Found = Mapping[str, Any]
"""What `training.measured` gives for one network."""

PLAIN = Setting()
FIXED = ("random", "gaussian", "edges", "another network's gradcam")
"""Maps that are the same for every network."""
PERCENT, AREAS = ("AverageDrop", "AverageIncrease", "AverageGain"), ("Insertion", "Deletion")
TITLES = {name: number_named(name).label for name in PERCENT}
TITLES |= {name: number_named(name)._replace(unit="area x 100").label for name in AREAS}
LOOKS = ("GradientAlignment", "GradientRoughness")


def advantage(found: Found) -> float:
    """How much less Grad-CAM drops than two maps that do not know the network, in points."""
    drops = {name: found["maps"][name]["AverageDrop"] for name in ("gradcam", "gaussian", "edges")}
    return (drops["gaussian"] + drops["edges"]) / 2 - drops["gradcam"]


def over_seeds(values: Sequence[float] | np.ndarray) -> Cell:
    """Mean and 95 % interval; of fewer than three networks the mean alone, as two say little of their spread."""
    found: Cell = interval(values)
    return found if len(values) > 2 else float(np.mean(values))


def search_table(found: Mapping[Setting, Found]) -> Table:
    """A line for each setting of the search."""
    heads = ["setting", "accuracy", "AD Grad-CAM", "AD Gaussian", "AD edges", "advantage", "alignment", "roughness"]
    rows = [
        [
            str(one),
            result["accuracy"],
            *(result["maps"][name]["AverageDrop"] for name in ("gradcam", "gaussian", "edges")),
            advantage(result),
            *(100 * result["gradients"][name] for name in LOOKS),
        ]
        for one, result in found.items()
    ]
    caption = "One seed, validation images. Average drop (AD) in percent; alignment and roughness times 100."
    return Table("The search", heads, rows, caption)


def comparison_tables(found: Mapping[Setting, Sequence[Found]]) -> list[Table]:
    """Accuracy and gradients, a table for each metric, and its differences to plain training, paired by seed."""
    caption = "Mean and 95 % interval over networks trained from scratch, as many as the column seeds says"
    looks = [
        [
            str(one),
            len(results),
            over_seeds([each["accuracy"] for each in results]),
            *(over_seeds([100 * each["gradients"][name] for each in results]) for name in LOOKS),
        ]
        for one, results in found.items()
    ]
    heads = ["", "seeds", "accuracy, %", "alignment x 100", "roughness x 100"]
    tables = [Table("Accuracy and input gradients", heads, looks, f"{caption}.")]
    for metric, title in TITLES.items():
        values = by_map(found, metric)
        heads = ["", *(f"{name} *" if name in FIXED else name for name in values[PLAIN])]
        rows = [[str(one), *map(over_seeds, maps.values())] for one, maps in values.items()]
        changes = [
            [f"{one} - plain", *(over_seeds(change(values, one, name)) for name in values[PLAIN])]
            for one in values
            if one != PLAIN
        ]
        note = f"{caption}; maps with a star are the same for every network, the differences are paired by seed."
        tables.append(Table(title, heads, [*rows, *changes], note))
    return tables


def by_map(found: Mapping[Setting, Sequence[Found]], metric: str) -> dict[Setting, dict[str, np.ndarray]]:
    """The values of all seeds, by setting and then by method or fixed map; areas times 100."""
    scale = 100.0 if metric in AREAS else 1.0
    return {
        one: {
            name: scale * np.array([each["maps"][name][metric] for each in results])
            for name in results[0]["maps"]
            if metric in results[0]["maps"][name]
        }
        for one, results in found.items()
    }


def change(values: Mapping[Setting, Mapping[str, np.ndarray]], setting: Setting, name: str) -> np.ndarray:
    """Differences to plain training of a method or fixed map, seed by seed."""
    return values[setting][name] - values[PLAIN][name][: len(values[setting][name])]


def draw_search(found: Mapping[Setting, Found], path: Path) -> None:
    """Accuracy and advantage against lambda, a line for each family."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set(title="Accuracy, %", xscale="log", xlabel="lambda")
    right.set(title="Average drop of fixed maps minus that of Grad-CAM, points", xscale="log", xlabel="lambda")
    left.axhline(found[PLAIN]["accuracy"], color="black", linestyle="--", label="plain")
    right.axhline(advantage(found[PLAIN]), color="black", linestyle="--")
    families = dict.fromkeys(one.family for one in found if one.weight)
    for i, family in enumerate(families):
        members = {one.weight: found[one] for one in found if one.family == family}
        style: dict[str, Any] = {"marker": "o" if i < 10 else "s", "color": f"C{i}"}
        left.plot(list(members), [one["accuracy"] for one in members.values()], label=family, **style)
        right.plot(list(members), [advantage(one) for one in members.values()], **style)
    figure.legend(loc="outside right center")
    figure.savefig(path, dpi=100)


def draw_comparison(found: Mapping[Setting, Sequence[Found]], path: Path) -> None:
    """Differences to plain training with their intervals, a panel for each metric."""
    figure = Figure(figsize=(16, 5), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True)
    settings = [one for one in found if one != PLAIN]
    for axes, (metric, title) in zip(panels, TITLES.items(), strict=True):
        values = by_map(found, metric)
        names = list(values[PLAIN])
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_title(title.replace("; ", "\n", 1), fontsize="medium")
        axes.set_yticks(range(len(names)), [f"{name} *" if name in FIXED else name for name in names])
        for i, one in enumerate(settings):
            at = np.arange(len(names)) + 0.7 * (i / max(1, len(settings) - 1) - 0.5)
            cells: list[Any] = [over_seeds(change(values, one, name)) for name in names]
            means = [cell["mean"] if isinstance(cell, dict) else cell for cell in cells]
            spans = [(c["mean"] - c["low"], c["high"] - c["mean"]) if isinstance(c, dict) else (0, 0) for c in cells]
            axes.errorbar(means, at, xerr=np.transpose(spans), fmt="o", color=f"C{i}", label=str(one), markersize=3)
    panels[0].invert_yaxis()
    figure.suptitle("Difference to plain training; maps with a star are the same for every network")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)
