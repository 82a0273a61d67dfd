"""The figures of the recipe ``gradcam_plus.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

import lightning_xai as xai
from common.data.loading import readable
from common.subject import Subject
from lightning_xai.baselines import to_pixels
from lightning_xai.report import Picture
from lightning_xai.visualization import Panel, overlay
from papers.gradcam_plus.alphas import BINS, SIGNS, Witness, box
from papers.gradcam_plus.measures import CONFIDENT, SCORES
from papers.gradcam_plus.tables import METHODS, performance

COLOURS = {"positive": "tab:red", "negative": "tab:blue"}
COLUMNS = 101  # of the histogram: an odd number, so that alpha = 1/2 lies in the middle of one


def draw(
    subject: Subject, dataset: Dataset[Any], found: dict[str, Any], indices: Sequence[int], n: int, folder: Path
) -> list[Picture]:
    """Figures 3 to 6, n images with heat maps; the first of them is that of figure 3."""
    images, labels = drawn_images(subject, dataset, indices, n)
    _alphas_of_one(subject, images[:1], labels[:1]).savefig(folder / "figure_3.png", dpi=100)
    _alphas_of_all(found).savefig(folder / "figure_4.png", dpi=100)
    _heat_maps(subject, images, labels).savefig(folder / "figure_5.png")
    _relative_performance(found).savefig(folder / "figure_6.png", dpi=100)
    return [
        Picture("figure_3.png", "Alphas and the term g sum A of one image, by the sign of the gradient."),
        Picture("figure_4.png", "Alphas of all images, by the sign of the gradient: boxes, and tanh(alpha - 1/2)."),
        Picture("figure_5.png", "Maps of Grad-CAM, Grad-CAM+ and Grad-CAM++ for the right class, by score."),
        Picture("figure_6.png", "Log relative performance of each pair of methods, by score."),
    ]


def drawn_images(subject: Subject, dataset: Dataset[Any], indices: Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    """Some images with their labels, taken evenly, those first that the classifier is right about."""
    pool = [indices[i] for i in torch.linspace(0, len(indices) - 1, min(4 * n, len(indices))).round().int().tolist()]
    images, labels, _ = readable([dataset[i] for i in pool])
    images, labels = images.to(subject.device), labels.to(subject.device)
    with torch.no_grad():
        right = xai.scores.log_softmax(subject.network(images), labels).exp() > CONFIDENT
    order = (~right).int().argsort(stable=True)[:n]
    return images[order], labels[order]


def _alphas_of_one(subject: Subject, images: Tensor, labels: Tensor) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (name, score) in zip(figure.subplots(2, 2), SCORES.items(), strict=True):
        witness = Witness()
        method = xai.GradCAMPlusPlus(subject.layer, score=score, alphas=witness)
        xai.explain(subject.network, images, labels, attributions=method)
        for one, title, values in (
            (axes[0], "alpha", 1 / (2 + witness.second_term)),
            (axes[1], "g sum A", witness.second_term),
        ):
            _boxes(one, values.cpu(), witness.gradients.cpu())
            extremes = f"{values.min():.4g} to {values.max():.4g}"
            one.set_title(f"{title}, {name}: {extremes}")
    figure.suptitle("Figure 3: one image, units whose gradient is not 0, outliers not drawn")
    return figure


def _boxes(axes: Axes, values: Tensor, gradients: Tensor) -> None:
    parts = {"all": gradients != 0, "g > 0": gradients > 0, "g < 0": gradients < 0}
    axes.boxplot([values[of].numpy() for of in parts.values()], showfliers=False)
    _name_boxes(axes, list(parts))


def _name_boxes(axes: Axes, names: list[str]) -> None:
    axes.set_xticks(range(1, len(names) + 1), names)
    axes.locator_params(axis="y", nbins=6)


def _alphas_of_all(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    for (left, right), (score, by_sign) in zip(figure.subplots(2, 2), found["histograms"].items(), strict=True):
        counts = {sign: np.sum(one, axis=0) for sign, one in by_sign.items()}
        parts = {"all": sum(counts.values())} | {SIGNS[sign]: one for sign, one in counts.items()}
        known = {name: one for name, one in parts.items() if np.sum(one)}
        left.bxp([box(one) for one in known.values()], showfliers=False)
        _name_boxes(left, list(known))
        left.set_title(f"alpha, {score}, outliers not drawn")
        middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
        for sign, one in counts.items():
            shown, edges = np.histogram(middles, bins=COLUMNS, range=(-1, 1), weights=one)
            right.stairs(shown, edges, fill=True, alpha=0.6, color=COLOURS[sign], label=SIGNS[sign])
        right.set(yscale="log", ylim=(0.5, None))
        right.set_title(f"tanh(alpha - 1/2), {score}: number of units")
        right.legend()
    figure.suptitle("Figure 4: all images, units whose gradient is not 0")
    return figure


def _heat_maps(subject: Subject, images: Tensor, labels: Tensor) -> Figure:
    pixels = to_pixels(images, subject.mean, subject.std)
    pictures: dict[str, Tensor] = {}
    for name, score in SCORES.items():
        kinds = (xai.GradCAM, xai.GradCAMPlus, xai.GradCAMPlusPlus)
        methods = {f"{one}\n{name}": kind(subject.layer, score=score) for one, kind in zip(METHODS, kinds, strict=True)}
        maps = xai.explain(subject.network, images, labels, attributions=methods)
        pictures |= {one: overlay(pixels, maps[one]).cpu() for one in methods}
    with torch.no_grad():
        probabilities = xai.scores.log_softmax(subject.network(images), labels).exp()
    facts = {"label": [subject.classes[i] for i in labels.tolist()], "its probability": probabilities.tolist()}
    return Panel(pixels.cpu(), pictures, facts).figure("Figure 5: maps of the right class")


def _relative_performance(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, score in zip(figure.subplots(1, 2, sharey=True), SCORES, strict=True):
        performance(found, score, METHODS).plot(ax=axes)
        axes.set_title(f"{score}: {axes.get_title()}")
        axes.label_outer()
    figure.suptitle("Figure 6: above 0 the first leaves more; outliers not drawn")
    return figure
