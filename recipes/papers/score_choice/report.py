"""Tables and figures of the recipe ``score_choice.py``, from the values of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from common.tables import interval
from lightning_xai.baselines import to_pixels
from lightning_xai.report import Cell, Picture, Table
from lightning_xai.visualization import Panel, overlay
from papers.score_choice.maps import CONTROLS, METHODS, PAIRS, PATH_METHODS, ROUNDED, SCORES, Maps

EDGES = (0.0, 0.5, 0.9, 0.99, 0.9999)
"""Where ranges of the probability begin."""

SIGNED = "Integrated Gradients"
DRAWN_PAIRS = [("pre-softmax", "post-softmax"), ("pre-softmax", "centred"), ("post-softmax", "log-softmax")]
WRONG = 0.01  # relative error of a gradient


def numbers(values: pd.DataFrame, quantity: str, method: str = "", score: str = "", against: str = "") -> np.ndarray:
    """What was measured, a number for each image that got the method, NaN where there is no value."""
    columns = {"quantity": quantity, "method": method, "score": score, "against": against}
    wanted = np.logical_and.reduce([values[column] == one for column, one in columns.items()])
    return values["value"].to_numpy(float)[wanted]


def defined(values: pd.DataFrame, *names: str) -> np.ndarray:
    """What was measured, without the images that have no value."""
    found = numbers(values, *names)
    return found[~np.isnan(found)]


def two_trainings_table(found: Mapping[str, float]) -> Table:
    """What two equivalent trainings agree on."""
    change = found["largest difference of a probability"]
    rows: list[list[Cell]] = [[name, found[name]] for name in SCORES]
    caption = f"Largest difference of a probability between the networks: {change:.1e}. 32 images, float64."
    title = "Section II.B, two trainings with the same outputs: rank correlation of their Grad-CAM maps"
    return Table(title, ["score", "least of all images"], rows, caption, digits=6)


def saturation_table(values: pd.DataFrame) -> Table:
    """Lengths of gradients by the probability of the class."""
    left = numbers(values, "1 - p")
    rows: list[list[Cell]] = []
    for name, chosen in _ranges(left):
        ones = [float(numbers(values, "p == 1", dtype)[chosen].sum()) for dtype in ("float32", "bfloat16")]
        norms = [_median(numbers(values, "norm", "", score)[chosen]) for score in SCORES]
        rows.append([name, int(chosen.sum()), *(f"{one:.0f}" for one in ones), *norms])
    caption = f"{len(left)} images, medians, float64; p == 1: images whose probability is rounded to 1."
    columns = ["p", "images", "p == 1 in float32", "in bfloat16", *SCORES]
    return Table("Length of the gradient at the layer, by the probability of the class", columns, rows, caption)


def rounding_table(values: pd.DataFrame) -> Table:
    """What narrower floats make of the gradient of each score."""
    rows: list[list[Cell]] = []
    for name in ROUNDED:
        errors = defined(values, "error", "", name)
        if len(errors):
            rows.append([name, 100 * float((errors > WRONG).mean()), f"{np.median(errors):.1e}", f"{errors.max():.1e}"])
    title = "Gradients of scores that are computed in narrower floats, against float64"
    columns = ["score", f"error above {WRONG:.0%}, % of images", "median error", "largest"]
    caption = f"{len(numbers(values, '1 - p'))} images. Error: length of the difference over length of the gradient."
    return Table(title, columns, rows, caption)


def agreement_table(
    values: pd.DataFrame, measure: str, title: str, seed: int, scale: float = 1, digits: int = 2
) -> Table:
    """A measure of agreement for every method and pair of scores."""
    rows: list[list[Cell]] = []
    for method in METHODS:
        found = [scale * numbers(values, measure, method, *pair) for pair in PAIRS]
        if len(found[0]):
            rows.append([method, len(found[0]), *(interval(one, seed) for one in found)])
    columns = ["", "images", *(" / ".join(_short(score) for score in pair) for pair in PAIRS)]
    return Table(title, columns, rows, "Mean and bootstrap 95 % interval over images.", digits)


def equality_table(values: pd.DataFrame) -> Table:
    """How nearly post- and log-softmax give one map."""
    rows: list[list[Cell]] = []
    for method in METHODS:
        found = defined(values, "cosine", method, "post-softmax", "log-softmax")
        if len(found):
            rows.append([method, len(found), float(found.min()), float(np.median(found))])
    caption = "Before the ReLU; maps of one gradient in float64, of paths in float32."
    columns = ["", "images", "least cosine", "median cosine"]
    return Table("Maps of the post-softmax score against those of the log-softmax score", columns, rows, caption, 10)


def magnitude_table(values: pd.DataFrame) -> Table:
    """The largest value of a map by the probability of the class."""
    left = numbers(values, "1 - p")
    ranges, rows = _ranges(left), []
    for method in METHODS:
        for score in SCORES:
            found = numbers(values, "magnitude", method, score)
            if len(found) == len(left):
                rows.append([f"{method}, {score}", *(_median(found[chosen]) for _, chosen in ranges)])
    columns = ["", *(f"p in {name} ({chosen.sum()})" for name, chosen in ranges)]
    caption = "Medians; in brackets the number of images. Methods that got all images."
    return Table("Largest value of a map in magnitude, by the probability of the class", columns, rows, caption)


def baseline_table(values: pd.DataFrame) -> Table:
    """Path methods where the path begins at an image of the class already, and where it does not."""
    at_baseline = numbers(values, "p at the baseline")
    sides = {"below 0.5": at_baseline < 0.5, "above": at_baseline >= 0.5}
    rows: list[list[Cell]] = []
    for method in PATH_METHODS:
        for score in SCORES:
            sizes, hits = (numbers(values, one, method, score) for one in ("magnitude", "hit"))
            pointed = hits if len(hits) == len(sizes) else np.full(len(sizes), np.nan)
            row = [(_median(sizes[chosen]), _percent(pointed[chosen])) for chosen in sides.values()]
            rows.append([f"{method}, {score}", *(cell for pair in row for cell in pair)])
    heads = [f"{what}, p {side} ({chosen.sum()})" for side, chosen in sides.items() for what in ("size", "peaks, %")]
    caption = (
        "p: probability of the class at the black image, in brackets the number of images. Size: median of the largest "
        "values of maps in magnitude. Peaks: those at the object, where its place is known of all images."
    )
    return Table("Path methods, by the probability of the class where the path begins", ["", *heads], rows, caption)


def pointing_table(values: pd.DataFrame, seed: int) -> Table:
    """The pointing game of every method and score, with paired differences of scores."""
    rows: list[list[Cell]] = []
    for method in METHODS:
        hits = {score: 100 * numbers(values, "hit", method, score) for score in SCORES}
        if len(hits["centred"]):
            against = [interval(hits[one] - hits["pre-softmax"], seed) for one in ("post-softmax", "centred")]
            rows.append([method, len(hits["centred"]), *(interval(one, seed) for one in hits.values()), *against])
    for name in CONTROLS:
        found = 100 * numbers(values, "hit", name)
        rows.append([f"{name} (control)", len(found), interval(found, seed), *[None] * 5])
    caption = "Mean and bootstrap 95 % interval over images; differences are paired. The controls know no score."
    columns = ["", "images", *SCORES, "post - pre", "centred - pre"]
    return Table("Pointing game, % of images whose peak is at the object (more is better)", columns, rows, caption)


def _ranges(left: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Ranges of the probability with the images in them, by what is left to 1: rounding does not move any."""
    ends = (*EDGES[1:], None)
    return [
        (
            f"[{low:g}, {'1]' if high is None else f'{high:g})'}",
            (left <= 1 - low) & (left > (-1 if high is None else 1 - high)),
        )
        for low, high in zip(EDGES, ends, strict=True)
    ]


def _median(values: np.ndarray) -> Cell:
    return f"{np.median(values):.1e}" if len(values) else None


def _percent(values: np.ndarray) -> Cell:
    return float(100 * values.mean()) if len(values) and not np.isnan(values).any() else None


def _short(score: str) -> str:
    return score.removesuffix("-softmax")


def draw_maps(image: Tensor, maps: Maps, title: str, standard: Mapping[str, Sequence[float]], path: Path) -> None:
    """Figure 2 of the paper for one image: a row for each method, a column for each score."""
    pixels = to_pixels(image[None], **standard)
    names = list(dict.fromkeys(method for method, _ in maps))

    def drawn(method: str, score: str) -> Tensor:
        shown = maps[method, score].double()
        return overlay(pixels, shown if method == SIGNED else shown.relu())

    overlays = {score: torch.cat([drawn(method, score) for method in names]) for score in SCORES}
    facts = {"": [f"{method}\n(red for, blue against)" if method == SIGNED else method for method in names]}
    Panel(pixels.expand(len(names), -1, -1, -1), overlays, facts).figure(title).savefig(path)


def draw_saturation(values: pd.DataFrame, path: Path) -> Picture:
    """Lengths of gradients, and of maps of the post-softmax score, against what the probability leaves to 1."""
    figure, (gradients, maps) = _figure(11, 4.5)
    left = numbers(values, "1 - p")
    for score in SCORES:
        _points(gradients, left, numbers(values, "norm", "", score), score)
    for method in METHODS:
        found = numbers(values, "magnitude", method, "post-softmax")
        if len(found) == len(left):
            _points(maps, left, found / np.nanmax(found), method)
    gradients.set(title="Gradient at the layer", ylabel="length")
    maps.set(title="Maps of the post-softmax score", ylabel="largest value, of all images' largest")
    for axes in (gradients, maps):
        axes.set(xscale="log", yscale="log", xlabel="1 - p (certain images on the right)")
        axes.invert_xaxis()
        axes.axvline(2**-25, color="0.5", linestyle=":", label="p is rounded to 1 in float32")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    return Picture(
        path.name,
        "Left: the post-softmax score's gradient vanishes where the class is certain or excluded, the log-softmax "
        "score's where it is certain, the others' nowhere. Right: maps of one gradient vanish with it, and maps of a "
        "path where the class is certain all the way.",
    )


def draw_agreement(values: pd.DataFrame, path: Path) -> Picture:
    """Boxes of the rank correlation between maps of two scores, by method."""
    figure, panels = _figure(12, 4, len(DRAWN_PAIRS))
    for axes, pair in zip(panels, DRAWN_PAIRS, strict=True):
        found = {name: defined(values, "rank correlation", name, *pair) for name in METHODS}
        found = {name: one for name, one in found.items() if len(one)}
        axes.boxplot(list(found.values()), whis=(0, 100), medianprops={"color": "C3"})
        names = [f"{name} ({len(one)})" for name, one in found.items()]
        axes.set_xticks(range(1, len(found) + 1), names, rotation=45, ha="right")
        axes.axhline(1, color="0.8", zorder=0)
        axes.set(title=" / ".join(pair))
    panels[0].set(ylabel="rank correlation of the maps")
    figure.savefig(path, dpi=100)
    return Picture(path.name, "Agreement of maps of two scores before the ReLU: quartiles, whiskers to the extremes.")


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, name: str) -> None:
    axes.scatter(x, np.where(y > 0, y, np.nan), s=9, alpha=0.7, label=name)


def _figure(width: float, height: float, columns: int = 2) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, sharey=columns > 2)
