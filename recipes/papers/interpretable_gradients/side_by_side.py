"""Networks that were trained differently, side by side: means with intervals, their differences, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lightning_xai as xai
from common.data.images import ImageData
from common.run import Run, first_images
from common.tables import interval
from lightning_xai.baselines import to_pixels
from lightning_xai.metrics import Number, number_named
from lightning_xai.panels import save_panel
from lightning_xai.report import Example, Picture, Table, worst_and_best
from lightning_xai.visualization import Panel, overlay

NUMBERS = {name: number_named(name) for name in ("AverageDrop", "AverageIncrease", "AverageGain")}
TELLING = {name: bool(NUMBERS[name].higher_is_better) for name in ("AverageDrop", "AverageGain")}
"""Metrics that tell images apart, and whether higher is better; an increase is there or not."""

Measured = Mapping[str, Any]
"""Of a network: ``correct`` of each image, and ``values`` by attribution and metric."""


def report(
    run: Run,
    networks: Mapping[str, nn.Module],
    found: Mapping[str, Sequence[Measured]],
    data: ImageData,
    methods: Mapping[str, xai.Attribution],
    n_drawn: int,
) -> dict[str, Any]:
    """Write and show what was found.

    Args:
        run: The run; the folder gets ``maps.png``, ``images``, ``results.json`` and ``report.html``.
        networks: The first of each kind, by name; the difference of the second kind to the first is shown.
        found: What was measured of each kind, a network for each seed.
        data: Test images.
        methods: Attributions by name.
        n_drawn: Images in ``maps.png``.

    Returns:
        The values of ``results.json``.
    """
    rows = summary(values_of(found), run.settings["seed"])
    skipped = sorted({name for kind in found.values() for one in kind for name in one["skipped"]})
    first, *others = next(iter(found.values()))
    explained = max(len(values) for by_metric in first["values"].values() for values in by_metric.values())
    picture = draw_maps(networks, data, methods, n_drawn, run.folder / "maps.png")
    images: list[Example] = []
    if not dist.is_initialized():  # several processes measure the images in another order than the loader's
        for name, network in networks.items():
            images += examples(name, network, found[name][0]["values"], data, methods, run.folder)
    of_what = f"{1 + len(others)} pairs of networks" if others else "one pair of networks"
    text = (
        f"Means over {len(first['correct'])}{' generated' if data.generated else ''} test images, of which {explained} "
        f"were explained, with 95 % intervals; {of_what}. A difference is paired, image by image."
    )
    values = {
        "rows": rows.to_dict("records"),
        "images": len(first["correct"]),
        "explained": explained,
        "generated": data.generated,
        "skipped": skipped,
    }
    run.finish("Guided gradients in training", text, tables(rows, of_what), [picture], values, images, TELLING)
    if skipped:
        print(f"{len(skipped)} files could not be read: {', '.join(skipped[:5])}")
    return values


def values_of(kinds: Mapping[str, Sequence[Measured]]) -> pd.DataFrame:
    """All that was measured in long form, and the differences of a second kind of network, image by image."""
    found = pd.concat(
        pd.DataFrame({"network": name, "seed": seed, "metric": metric, "attribution": attribution, "value": values})
        for name, networks in kinds.items()
        for seed, one in enumerate(networks)
        for metric, attribution, values in _measured(one)
    )
    if len(kinds) < 2:
        return found
    first, second = kinds
    before, after = found[found["network"] == first], found[found["network"] == second]
    change = after["value"].to_numpy() - before["value"].to_numpy()
    return pd.concat([found, after.assign(network=f"{second} - {first}", value=change)])


def _measured(one: Measured) -> Iterator[tuple[str, str, list[float]]]:
    yield "accuracy", "", [100.0 * hit for hit in one["correct"]]
    for attribution, by_metric in one["values"].items():
        for metric, values in by_metric.items():
            yield metric, attribution, values


def summary(values: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean and interval of each kind of network and of the difference, by metric and attribution."""
    rows = []
    for key, group in values.groupby(["metric", "attribution", "network"], sort=False):
        of_seeds = group["value"].to_numpy().reshape(group["seed"].nunique(), -1)
        rows.append(dict(zip(("metric", "attribution", "network"), key, strict=True)) | interval(of_seeds, seed))
    return pd.DataFrame(rows)


def tables(rows: pd.DataFrame, of_what: str) -> list[Table]:
    """A table for each metric."""
    found = []
    for metric, number in {"accuracy": Number("Accuracy", "%", True), **NUMBERS}.items():
        of_metric = rows[rows["metric"] == metric]
        heads = of_metric["network"].unique()
        cells = {(row["attribution"], row["network"]): row for row in of_metric.to_dict("records")}
        lines = [
            [name, *({key: cells[name, head][key] for key in ("mean", "low", "high")} for head in heads)]
            for name in of_metric["attribution"].unique()
        ]
        found.append(Table(f"{number.label}; {of_what}", ["", *heads], lines))
    return found


def draw_maps(
    networks: Mapping[str, nn.Module], data: ImageData, methods: Mapping[str, xai.Attribution], n: int, path: Path
) -> Picture:
    """The first images under every network, method by method."""
    images, labels = first_images(data.test_dataloader(), n)
    pixels = to_pixels(images, data.mean, data.std)
    facts = {"label": [data.classes[label] for label in labels.tolist()]}
    overlays: dict[str, Tensor] = {}
    for name, network in networks.items():
        facts[name] = [f"{label} ({p:.2f})" for label, p in _predictions(network, images, data.classes)]
        maps = xai.explain(network, images, attributions=dict(methods))
        overlays |= {f"{method}\n{name}": overlay(pixels, one) for method, one in maps.items()}
    ordered = {f"{method}\n{name}": overlays[f"{method}\n{name}"] for method in methods for name in networks}
    title = "Maps of the predicted class" + ("; generated images" if data.generated else "")
    Panel(pixels, ordered, facts).figure(title).savefig(path)
    return Picture(path.name, title)


def _predictions(network: nn.Module, images: Tensor, classes: Sequence[str]) -> list[tuple[str, float]]:
    with torch.no_grad():
        best = network.eval()(images).softmax(1).max(1)
    return [(classes[int(i)], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def examples(
    name: str,
    network: nn.Module,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    data: ImageData,
    methods: Mapping[str, xai.Attribution],
    folder: Path,
) -> list[Example]:
    """Draw the images on which a telling metric of some method is worst or best.

    Args:
        name: Of the network; the pictures are written to ``images/<name>_<number>/``.
        network: The network that was measured.
        values: Of the first test images in their order, by attribution, then by metric.
        data: Test images.
        methods: Attributions by name.
        folder: Of the run.
    """
    ends = [worst_and_best(values[method][metric], higher) for method in methods for metric, higher in TELLING.items()]
    chosen = sorted({i for worst, best in ends for i in (*worst, *best)})
    for i, (image, label) in zip(chosen, _chosen(data, chosen), strict=True):
        save_panel(_panel(network, image, label, data, methods), folder / "images" / f"{name}_{i}")
    return [
        Example(
            str(i),
            f"images/{name}_{i}",
            {metric: {method: values[method][metric][i] for method in methods} for metric in TELLING},
            name,
        )
        for i in chosen
    ]


def _chosen(data: ImageData, chosen: Sequence[int]) -> list[tuple[Tensor, int]]:
    """Some of the test images, which come in the same order each time."""
    found: list[tuple[Tensor, int]] = []
    first = 0
    for images, labels, _ in data.test_dataloader():
        found += [(images[i - first], int(labels[i - first])) for i in chosen if first <= i < first + len(images)]
        first += len(images)
        if len(found) == len(chosen):
            break
    return found


def _panel(
    network: nn.Module, image: Tensor, label: int, data: ImageData, methods: Mapping[str, xai.Attribution]
) -> Panel:
    [(prediction, probability)] = _predictions(network, image[None], data.classes)
    pixels = to_pixels(image[None], data.mean, data.std)
    maps = xai.explain(network, image[None], attributions=dict(methods))
    facts: dict[str, Any] = {"label": [data.classes[label]], "prediction": [prediction], "probability": [probability]}
    return Panel(pixels, {method: overlay(pixels, one) for method, one in maps.items()}, facts)
