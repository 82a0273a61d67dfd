"""What is made of the metrics of many methods: who wins, tables, and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchmetrics import Metric

from common.tables import interval
from lightning_xai.metrics import Number, compare, number_named
from lightning_xai.report import Cell, Picture, Table

Array = np.ndarray[Any, np.dtype[np.float64]]
RELATIVE = "RelativePerformance"


@dataclass(frozen=True)
class Found:
    """The metrics of one group after their epoch.

    Attributes:
        methods: By method or control, then by name of the metric.
        shared: Metrics that compare methods, by name.
        constant_maps: Percent of the images whose map shows nothing, by method.
    """

    methods: Mapping[str, Mapping[str, Metric]]
    shared: Mapping[str, Metric] = field(default_factory=dict)
    constant_maps: Mapping[str, float] = field(default_factory=dict)


def kept(metric: Any) -> Array:
    """The value of each image."""
    return metric.values.numpy()


def similarity(metric: Any) -> Array:
    """The rank correlation of each image, where negative ones count as 0: maps that differ cannot differ more."""
    return kept(metric).clip(min=0.0)


@dataclass(frozen=True)
class Column:
    """One number of a table: of which metric, under which name where it has several, and how it is written."""

    group: str
    metric: str
    digits: int = 3
    name: str | None = None
    values: Callable[[Any], Array] = kept

    @property
    def number(self) -> Number:
        """Title, unit and direction."""
        if self.metric == RELATIVE:  # the metric compares two methods; here the more of the first is left, the better
            return Number("Log relative performance", "", True)
        return number_named(self.name or self.metric)


COLUMNS = [
    Column("confidence", "AverageDrop", 1),
    Column("confidence", "AverageIncrease", 1),
    Column("confidence", "AverageGain", 1),
    Column("confidence", "AbsoluteDrop", 1),
    Column("confidence", RELATIVE, 2),
    Column("perturbation", "Insertion"),
    Column("perturbation", "Deletion"),
    Column("perturbation", "MaximalPatchMasking", 3, "patch_change", lambda one: kept(one)[:, -1]),
    Column("perturbation", "Infidelity", 2),
    Column("stability", "ADCC", 1),
    Column("stability", "MaxSensitivity", 2),
    Column("stability", "ClassSensitivity", 2, "class_rank_correlation", similarity),
    Column("stability", "GridPointingGame"),
    Column("road", "ROAD", 3, "road_gap"),
    Column("boxes", "PointingGame"),
    Column("boxes", "EnergyInBox"),
    Column("boxes", "EnergyPointingAccuracy", 3, "energy_pointing_mean"),
    Column("randomization", "similarity", 2, "randomization_rank_correlation"),
]


def values_by_method(column: Column, found: Found) -> dict[str, Array]:
    """The value of each image under each method; for relative performance, the log ratio to the first method."""
    if column.metric == RELATIVE:
        metric: Any = found.shared[RELATIVE]
        return {name: metric.values[:, row, 0].numpy() for row, name in enumerate(metric.methods)}
    return {name: column.values(states[column.metric]) for name, states in found.methods.items()}


def summary(found: Mapping[str, Found], controls: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Means and intervals of every metric, and who wins it.

    Args:
        found: The metrics by group.
        controls: Names of the controls among the methods.
        seed: Of the intervals.

    Returns:
        For each metric its name, direction and number of images, and by method mean, interval, values and number of
        images without a value; who has the best mean; whether a control does; and the paired difference of the best
        method to the best control, with its interval.
    """
    chosen = [column for column in COLUMNS if column.group in found]
    return [_judged(one, values_by_method(one, found[one.group]), controls, seed) for one in chosen]


def _judged(column: Column, values: dict[str, Array], controls: Sequence[str], seed: int) -> dict[str, Any]:
    methods = {
        name: {
            **(interval(one, seed) or dict.fromkeys(("mean", "low", "high"))),
            "undefined": int(np.isnan(one).sum()),
            "values": [None if np.isnan(value) else value for value in one.tolist()],
        }
        for name, one in values.items()
    }
    best = _best(column, methods)
    method = _best(column, {name: methods[name] for name in methods if name not in controls})[:1]
    control = _best(column, {name: methods[name] for name in methods if name in controls})[:1]
    return {
        "title": ", ".join(filter(None, column.number[:2])),
        "group": column.group,
        "metric": column.metric,
        "higher_is_better": column.number.higher_is_better,
        "digits": column.digits,
        "images": max(len(one) for one in values.values()),
        "methods": methods,
        "best": best,
        "won_by_control": any(name in controls for name in best),
        "difference": _difference(values, method + control),
    }


def _best(column: Column, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who has the best mean; several where they are equal as they are printed."""
    means = {name: round(one["mean"], column.digits) for name, one in methods.items() if one["mean"] is not None}
    goal = (max if column.number.higher_is_better else min)(means.values(), default=np.nan)
    return [name for name, mean in means.items() if mean == goal]


def _difference(values: dict[str, Array], pair: Sequence[str]) -> dict[str, Any] | None:
    """The best method minus the best control, image by image."""
    if len(pair) < 2:
        return None
    first, second = (torch.as_tensor(values[name]) for name in pair)
    known = ~(first.isnan() | second.isnan())
    if known.sum() < 2:
        return None
    found = compare(first[known], second[known])
    return {"methods": list(pair), "mean": found.difference, "low": found.low, "high": found.high, "p": found.p_value}


GROUPS = {
    "confidence": "What the map shows of the image is classified again",
    "perturbation": "Pixels are taken away, put back or disturbed",
    "stability": "Maps of masked, slightly changed and mixed images, and of another class",
    "road": "Pixels are imputed",
    "boxes": "Where the map lies",
    "randomization": "Maps of networks whose parts are randomised",
}


def tables(columns: Sequence[Mapping[str, Any]], controls: Sequence[str]) -> list[Table]:
    """A table for each group of metrics; the best of a column has a star, the last rows say who wins, and by what."""
    by_group = {group: [one for one in columns if one["group"] == group] for group in GROUPS}
    return [_table(GROUPS[group], chosen, controls) for group, chosen in by_group.items() if chosen]


def _table(title: str, columns: Sequence[Mapping[str, Any]], controls: Sequence[str]) -> Table:
    heads = [f"{one['title']} {'↑' if one['higher_is_better'] else '↓'} ({one['images']})" for one in columns]
    rows: list[list[Cell]] = []
    for name in columns[0]["methods"]:
        # digits differ from metric to metric: the cells are written here
        rows.append([f"{name} (control)" if name in controls else name, *(_cell(one, name) for one in columns)])
    rows.append(["won by", *(_winner(one, controls) for one in columns)])
    rows.append(["best method - best control", *(_margin(one) for one in columns)])
    return Table(title, ["", *heads], rows, CAPTION)


CAPTION = (
    "In brackets after a metric: the number of images; after a mean: its bootstrap 95 % interval over images. The "
    "arrow points where better values are; the best have a star. Controls know nothing of the network."
)


def _cell(column: Mapping[str, Any], name: str) -> str:
    one, digits = column["methods"][name], column["digits"]
    if one["mean"] is None:
        return "none"
    mean = f"{one['mean']:.{digits}f}"
    undefined = f", {one['undefined']} without" if one["undefined"] else ""
    star = "★ " if name in column["best"] else ""
    return f"{star}{mean} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]{undefined}"


def _winner(column: Mapping[str, Any], controls: Sequence[str]) -> str:
    """All controls that win, and the first of the methods."""
    methods = [name for name in column["best"] if name not in controls]
    others = [f"{len(methods) - 1} more"] if len(methods) > 1 else []
    return ", ".join([f"{name} (control)" for name in column["best"] if name in controls] + methods[:1] + others)


def _margin(column: Mapping[str, Any]) -> str:
    one, digits = column["difference"], column["digits"]
    if one is None:
        return ""
    numbers = f"{one['mean']:+.{digits}f} [{one['low']:+.{digits}f}, {one['high']:+.{digits}f}]"
    return f"{numbers} ({one['methods'][0]} - {one['methods'][1]})"


def drawable(group: str, found: Found) -> dict[str, Any]:
    """What figures need of a group of metrics, in a form that JSON takes."""
    drawn: dict[str, Any] = {"panels": list(_panels(group, found))}
    if group == "confidence":
        relative: Any = found.shared[RELATIVE]
        values = relative.values[:, :, 0].tolist()
        drawn["relative"] = {"methods": list(relative.methods), "values": values, "threshold": relative.threshold}
    if group == "randomization":
        metrics: Any = {name: one["ParameterRandomization"] for name, one in found.methods.items()}
        curves = {name: one.by_layer["rank_correlation"].tolist() for name, one in metrics.items()}
        drawn["randomization"] = {"layers": list(next(iter(metrics.values())).layers), "curves": curves}
    return drawn


def _panels(group: str, found: Found) -> Iterator[tuple[str, str, str, list[float], dict[str, list[float]]]]:
    """Title, names of the axes, abscissa, and the curve of each method."""
    states: Any = found.methods
    if group == "perturbation":
        for name in ("Deletion", "Insertion"):
            fractions = next(iter(states.values()))[name].fractions.tolist()
            curves = {method: one[name].curve.tolist() for method, one in states.items()}
            yield name, "share of the pixels, most relevant first", "mean probability", fractions, curves
        patches = {method: one["MaximalPatchMasking"] for method, one in states.items()}
        sizes = list(next(iter(patches.values())).sizes)
        changes = {method: one.values.mean(0).tolist() for method, one in patches.items()}
        yield "Maximal patch masking", "side of the patch, pixels", "change of the probability", sizes, changes
    if group == "boxes":
        energies = {name: one["EnergyPointingAccuracy"] for name, one in states.items()}
        levels = list(next(iter(energies.values())).levels)
        curves = {name: one.mean_curve.tolist() for name, one in energies.items()}
        yield "Energy pointing", "energy, % of the positive pixels", "pointing accuracy, mean of images", levels, curves


def draw(drawn: Sequence[Mapping[str, Any]], controls: Sequence[str], folder: Path) -> list[Picture]:
    """Draw what `drawable` gives of groups: ``curves.png``, ``relative_performance.png``, ``randomization.png``."""
    figures: dict[str, tuple[Figure, str]] = {}
    panels = [panel for one in drawn for panel in one["panels"]]
    if panels:
        figures["curves"] = _curves(panels, controls), "Means over images by method; controls are black."
    for one in drawn:
        if "relative" in one:
            caption = "Log relative performance to the first method, quartiles over images."
            figures["relative_performance"] = _relative_performance(**one["relative"]), caption
        if "randomization" in one:
            caption = "Similarity to the network's own maps while its parts are randomised; controls are black."
            figures["randomization"] = _randomization(**one["randomization"], controls=controls), caption
    for name, (figure, _) in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=100)
    return [Picture(f"{name}.png", caption) for name, (_, caption) in figures.items()]


def _curves(panels: Sequence[Sequence[Any]], controls: Sequence[str]) -> Figure:
    figure = Figure(figsize=(13, 4.2 * -(-len(panels) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).flat
    for one, (title, x_label, y_label, x, curves) in zip(axes, panels, strict=False):
        _lines(one, x, curves, controls)
        one.set(title=title, xlabel=x_label, ylabel=y_label)
    for one in list(axes)[len(panels) :]:
        one.set_axis_off()
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center")
    return figure


def _lines(axes: Axes, x: Sequence[float], curves: Mapping[str, Sequence[float]], controls: Sequence[str]) -> None:
    styles = ["--", ":", "-.", (0, (1, 3)), (0, (6, 3))]
    for i, (name, y) in enumerate(curves.items()):
        if name in controls:
            axes.plot(x, y, color="black", linestyle=styles[controls.index(name) % 5], label=f"{name} (control)")
        else:
            axes.plot(x, y, color=colormaps["tab20"](i % 20), label=name)


def _relative_performance(methods: Sequence[str], values: Sequence[Sequence[float]], threshold: float) -> Figure:
    """Boxes of each method against the first one, from quartile to quartile, outliers not drawn."""
    first, *others = methods
    figure = Figure(figsize=(2 + 0.5 * len(others), 6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.boxplot([[row[i] for row in values] for i in range(1, len(methods))], showfliers=False)
    axes.set_xticks(range(1, len(methods)), others, rotation=45, ha="right")
    axes.set(
        ylabel=f"log relative performance to {first}",
        title=f"{len(values)} images whose class has a probability above {threshold}",
    )
    return figure


def _randomization(layers: Sequence[str], curves: Mapping[str, Sequence[float]], controls: Sequence[str]) -> Figure:
    """Rank correlation with the network's own maps while its parts are randomised, from the last to the first."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    _lines(axes, range(len(layers)), curves, controls)
    axes.set_xticks(range(len(layers)), [f"to {name}" for name in layers])
    axes.set(ylabel="rank correlation with the network's own map", xlabel="randomised from the last part on")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure
