"""The images on which metrics are worst and best, with pictures of their maps for the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lightning_xai as xai
from common.data.images import ImageData
from lightning_xai.baselines import to_pixels
from lightning_xai.report import Example
from lightning_xai.visualization import Panel, overlay

ENDS = 3
"""Images at each end of a metric, as many as the report shows."""

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""The value of each image, by attribution, then by metric."""


def extremes(values: Sequence[float]) -> list[int]:
    """The images with the lowest and the highest values; of equal ones the first.

    Example:
        >>> extremes([5.0, float("nan"), 1.0, 2.0, 9.0, 9.0, 4.0, 3.0])
        [2, 3, 7, 4, 5, 0]
    """
    known = np.flatnonzero(np.isfinite(values))
    found = np.asarray(values)[known]
    ends = [np.argsort(found, kind="stable")[:ENDS], np.argsort(-found, kind="stable")[:ENDS]]
    return list(dict.fromkeys(known[np.concatenate(ends)].tolist()))


def examples(
    name: str,
    network: nn.Module,
    values: Values,
    data: ImageData,
    methods: Mapping[str, xai.Attribution],
    metrics: Sequence[str],
    folder: Path,
) -> list[Example]:
    """Draw the images on which some metric of some method is worst or best.

    Args:
        name: Of the network; the pictures are written to ``images/<name>_<number>.png``.
        network: The network that was measured.
        values: What was measured on the first test images, in their order.
        data: Test images.
        methods: Attributions by name.
        metrics: Names of the metrics that tell images apart.
        folder: Of the run.
    """
    chosen = sorted({i for method in methods for metric in metrics for i in extremes(values[method][metric])})
    (folder / "images").mkdir(exist_ok=True)
    found = []
    for i, (image, label) in zip(chosen, _images(data, chosen), strict=True):
        file = f"images/{name}_{i}.png"
        _panel(network, image, label, data, methods).save(folder / file)
        by_metric = {metric: {method: values[method][metric][i] for method in methods} for metric in metrics}
        found.append(Example(str(i), file, by_metric, name))
    return found


def _images(data: ImageData, chosen: Sequence[int]) -> list[tuple[Tensor, int]]:
    """The chosen ones of the test images, which come in the same order each time."""
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
    with torch.no_grad():
        probability, best = network.eval()(image[None]).softmax(1).max(1)
    names = {"label": [data.classes[label]], "prediction": [data.classes[int(best)]]}
    pixels = to_pixels(image[None], data.mean, data.std)
    maps = xai.explain(network, image[None], attributions=dict(methods))
    overlays = {method: overlay(pixels, one) for method, one in maps.items()}
    return Panel(pixels, overlays, {**names, "probability": probability.tolist()})
