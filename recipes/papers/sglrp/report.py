"""What is made of the measurements on SGLRP: the tables of its paper's figures, with intervals over images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.tables import interval
from lightning_xai.metrics import SIZES
from lightning_xai.report import Table
from papers.sglrp.curves import Array, accuracies, areas, condition, overtaken_at, pooled
from papers.sglrp.examples import worked_examples

Values = Mapping[str, Any]

OURS, RIVAL = "SGLRP", "Guided Grad-CAM"
SHOWN_LEVELS = (0, 25, 50, 67, 75, 90, 100)
"""Energies in percent that have a column; 67 is where the paper's curves cross."""
SIMILAR = 10
"""So many classes of the classifier for one label are many that are like each other: birds, boats, cars, dogs."""


def tables(found: Values, n_classes: Sequence[int], seed: int) -> list[Table]:
    """All tables of the experiment; those that nothing was measured for are left out."""
    boxed = found["pointing"]
    made = [*_patch_tables(found["patches"], seed), _patch_differences(found["patches"])]
    if boxed is not None:
        made += [_pointing(boxed, seed), _overtaking(boxed, seed), _failures(boxed, seed)]
        if len(set(n_classes)) > 1:
            made.append(_similar_classes(boxed, n_classes))
    if found["mosaics"]:
        made += [*_mosaic_tables(found["mosaics"], seed), _mosaic_differences(found["mosaics"])]
    return [*made, _counts(found), *_reversed_maps(found["patches"], seed), worked_examples()]


def _patch_tables(found: Values, seed: int) -> Iterator[Table]:
    for letter, kind in (("a", "label"), ("b", "second class")):
        changes = _changes(found[kind])
        rows: list[list[Any]] = [
            [name, *(interval(column, seed) for column in values.T)] for name, values in changes.items()
        ]
        mean = 100 * float(np.mean(found[kind]["probability"]))
        yield Table(
            f"Figure 11 ({letter}): change of the probability of the {kind}, points; lower is better",
            ["patch masked", *(f"{size} x {size}" for size in SIZES)],
            rows,
            f"{len(found['index'])} images; mean probability before {mean:.1f} %; 95 % intervals over images",
            digits=2,
        )


def _patch_differences(found: Values) -> Table:
    rows = []
    for kind in ("label", "second class"):
        changes = _changes(found[kind])
        rows += [
            [f"{kind}: {OURS} - {name}", *(interval(one) for one in (changes[OURS] - values).T)]
            for name, values in changes.items()
            if name != OURS
        ]
    return Table(
        f"Figure 11: {OURS}'s change minus another method's, points; negative where {OURS} is better",
        ["", *(f"{size} x {size}" for size in SIZES)],
        rows,
        "paired differences, 95 % intervals over images",
        digits=2,
    )


def _changes(found: Values) -> dict[str, Array]:
    return {name: 100 * np.array(values) for name, values in found["changes"].items()}


def published(found: Values) -> dict[str, Any]:
    """What is written for programs: the measurements, and curves and areas in place of the numbers of points."""
    values = dict(found)
    if found["pointing"] is not None:
        kept = {name: one for name, one in found["pointing"].items() if name not in ("hits", "points")}
        curves = {name: one.mean(0).tolist() for name, one in accuracies(found["pointing"]).items()}
        together = {name: one.tolist() for name, one in pooled(found["pointing"]).items()}
        area = {name: one.tolist() for name, one in areas(found["pointing"]).items()}
        values["pointing"] = kept | {"mean_curves": curves, "pooled_curves": together, "areas": area}
    return values


def _pointing(found: Values, seed: int) -> Table:
    curves, area, all_points = accuracies(found), areas(found), pooled(found)
    rows: list[list[Any]] = []
    for name, values in curves.items():
        cells = [100 * float(values[:, level].mean()) for level in SHOWN_LEVELS]
        whole = interval(100 * area[name], seed)
        rows.append([name, *cells, whole, 100 * float(all_points[name].mean()), sum(found["nothing"][name])])
    share = 100 * float(np.mean(found["share"]))
    rows.append(["random level: share covered", *[share] * (len(SHOWN_LEVELS) + 2), None])
    return Table(
        "Figure 13: pointing accuracy, %; higher is better",
        ["", *(f"E = {level}" for level in SHOWN_LEVELS), "area", "area, pooled", "maps without points"],
        rows,
        f"{len(found['share'])} images; mean of the images' accuracies; pooled: hits of all images over points of all; "
        "at E = 0 the maximum alone",
    )


def _overtaking(found: Values, seed: int) -> Table:
    curves, area = accuracies(found), areas(found)
    ones = np.ones_like(curves[OURS])
    rows: list[list[Any]] = []
    for name in [name for name in curves if name != OURS]:
        ahead = int((curves[OURS].mean(0) >= curves[name].mean(0)).sum())
        mean = overtaken_at((curves[OURS], curves[name]), (ones, ones), seed)
        hits, points = ([np.array(found[kind][one], float) for one in (OURS, name)] for kind in ("hits", "points"))
        both = overtaken_at((hits[0], hits[1]), (points[0], points[1]), seed)
        rows.append([name, interval(100 * (area[OURS] - area[name])), ahead, mean, both])
    return Table(
        f"Figure 13: {OURS} against the others",
        ["", "area, points more", f"levels led of {ones.shape[1]}", "ahead from E on", "ahead from E on, pooled"],
        rows,
        "the energy from which on it stays ahead, with the 95 % interval and the share of resamples where there is one",
    )


def _failures(found: Values, seed: int) -> Table:
    share = np.array(found["share"])
    groups = {name: chosen & (share < 1) for name, chosen in condition(share).items()}
    groups = {name: chosen for name, chosen in groups.items() if chosen.any()}
    rows: list[list[Any]] = [["images", *(int(chosen.sum()) for chosen in groups.values())]]
    rows.append(["random level, %", *(100 * float(share[chosen].mean()) for chosen in groups.values())])
    for name, area in areas(found).items():
        gain = 100 * (area - share)[:, None] / (1 - share).clip(1e-9)[:, None]
        rows.append([name, *(interval(gain[chosen, 0], seed) for chosen in groups.values())])
    return Table(
        "Figure 9: pointing above chance, % of what is possible, by how much the object covers; higher is better",
        ["", *groups],
        rows,
        "(area - share covered) / (1 - share covered) of each image",
    )


def _similar_classes(found: Values, n_classes: Sequence[int]) -> Table:
    many = np.array(n_classes)[found["labels"]] >= SIMILAR
    area = areas(found)
    others = [name for name in area if name.startswith("CLRP")]
    rows = [
        [f"{OURS} - {name}", *(interval(100 * (area[OURS] - area[name])[one]) for one in (many, ~many))]
        for name in others
    ]
    heads = [f"{SIMILAR} classes or more ({many.sum()})", f"fewer ({(~many).sum()})"]
    return Table(
        "Section 5.2.3: area of figure 13, points more than CLRP's, by number of classes like the target",
        ["", *heads],
        rows,
        "classes of the classifier that the label of the box stands for; images in brackets",
    )


def _of_pairs(found: Values, kind: str) -> dict[str, Array]:
    """The mean of both halves' maps of each pair, in percent, by method; NaN where one has no value."""
    left, right = found["left"][kind], found["right"][kind]
    return {name: (np.array(left[name], float) + np.array(right[name], float)) / 2 for name in left}


def _mosaic_tables(found: Values, seed: int) -> Iterator[Table]:
    titles = {
        "share": "Figures 6 and 8: positive relevance on the one of two images that is explained, %; chance is 50",
        "complexity": "Figure 8: how much of the image maps show, mean of the map over its maximum, %; low is sparse",
    }
    for kind, title in titles.items():
        by_network = {name: _of_pairs(values, kind) for name, values in found.items()}
        methods = list(next(iter(by_network.values())))
        rows: list[list[Any]] = [
            [name, *(interval(one[name], seed) for one in by_network.values())] for name in methods
        ]
        n = len(next(iter(by_network.values()))[OURS])
        yield Table(title, ["", *by_network], rows, f"{n} pairs of images side by side, either explained")


def _mosaic_differences(found: Values) -> Table:
    by_network = {name: _of_pairs(values, "share") for name, values in found.items()}
    methods = [name for name in next(iter(by_network.values())) if name != OURS]
    rows = [[f"{OURS} - {name}", *(interval(one[OURS] - one[name]) for one in by_network.values())] for name in methods]
    return Table(
        "Figures 6 and 8: share on the right image, points more", ["", *by_network], rows, "paired differences"
    )


def _counts(found: Values) -> Table:
    groups = {kind: found["patches"][kind] for kind in ("label", "second class")}
    if found["pointing"] is not None:
        groups["boxed"] = found["pointing"]
    groups |= {
        f"two images, {name}, {side}": values[side]
        for name, values in found["mosaics"].items()
        for side in ("left", "right")
    }
    rows: list[list[Any]] = []
    for name, one in groups.items():
        empty = ", ".join(f"{method} {sum(flags)}" for method, flags in one["nothing"].items() if any(flags))
        rows.append([name, len(one["reversed"]), sum(one["reversed"]), sum(one["saturated"]), empty or "none"])
    return Table(
        "Where the equations fail, number of images",
        ["target", "images", "z_t < 0: eq. 7 reverses", "eq. 10 in float32 gives nothing", "maps that show nothing"],
        rows,
        "where z_t < 0 the map of LRP is negative everywhere; eq. 10 as printed, R_t = y_t (1 - y_t): the SGLRP of all "
        "other tables is rescaled and does not saturate",
    )


def _reversed_maps(found: Values, seed: int) -> Iterator[Table]:
    for kind in ("label", "second class"):
        reverse = np.array(found[kind]["reversed"])
        if reverse.sum() < 2 or reverse.all():
            continue
        changes = _changes(found[kind])
        rows: list[list[Any]] = [
            [name, *(interval(one[chosen, -1], seed) for chosen in (reverse, ~reverse))]
            for name, one in changes.items()
        ]
        heads = [f"z_t < 0 ({reverse.sum()})", f"z_t >= 0 ({(~reverse).sum()})"]
        yield Table(
            f"Change of the probability of the {kind} by the {SIZES[-1]} x {SIZES[-1]} patch, points",
            ["", *heads],
            rows,
        )
