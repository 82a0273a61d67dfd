"""The figures of the experiment on SGLRP: curves, and maps beside the images they explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.utils import draw_bounding_boxes

import lightning_xai as xai
from lightning_xai.baselines import to_pixels
from lightning_xai.metrics import SIZES
from lightning_xai.report import Picture
from lightning_xai.scores import log_softmax
from lightning_xai.visualization import Panel, overlay
from papers.sglrp.curves import accuracies, condition, pooled
from papers.sglrp.networks import Judged, loaded

COLOURS = {
    "LRP": "tab:gray",
    "CLRP": "tab:blue",
    "CLRP1": "tab:cyan",
    "CLRP2": "tab:purple",
    "SGLRP": "tab:red",
    "Guided Grad-CAM": "tab:green",
    "Random": "black",
}
DRAWN = 3
"""Rows of a kind in a picture of maps."""


def pictures(
    subjects: Sequence[Judged], found: Mapping[str, Any], pairs: Sequence[Sequence[int]], folder: Path, device: str
) -> list[Picture]:
    """Draw all figures."""
    atlas = Atlas(subjects, folder, device)
    drawn = [curves(found, folder), atlas.examples(found["patches"]["index"][: 2 * DRAWN])]
    if pairs:
        drawn += atlas.pairs(pairs)
    if found["pointing"] is not None:
        drawn += atlas.failures(found["pointing"])
    return drawn


def curves(found: Mapping[str, Any], folder: Path) -> Picture:
    """Figures 11 (a), (b) and 13."""
    n = 2 if found["pointing"] is None else 3
    figure = Figure(figsize=(5 * n, 4.6), layout="constrained")
    axes = figure.subplots(1, n)
    for one, letter, kind in zip(axes, "ab", ("label", "second class"), strict=False):
        for name, values in found["patches"][kind]["changes"].items():
            one.plot(SIZES, 100 * np.mean(values, axis=0), color=COLOURS[name], marker="o", markersize=4, label=name)
        one.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        one.set(title=f"Figure 11 ({letter}): {kind}", xlabel="side of the patch, pixels", xticks=SIZES)
        one.set(ylabel="change of the probability, points")
    if found["pointing"] is not None:
        _pointing(axes[-1], found["pointing"])
    handles, names = axes[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.savefig(folder / "curves.png", dpi=100)
    text = "Figure 11: change of the probability over the size of the patch, for the label and for the second class."
    more = " Figure 13: pointing accuracy over energy; dashed where the points of all images are pooled."
    return Picture("curves.png", text + (more if n == 3 else ""))


def _pointing(axes: Axes, found: Mapping[str, Any]) -> None:
    together = pooled(found)
    for name, values in accuracies(found).items():
        axes.plot(100 * values.mean(0), color=COLOURS[name], label=name)
        axes.plot(100 * together[name], color=COLOURS[name], linestyle="--", linewidth=0.8)
    level = 100 * float(np.mean(found["share"]))
    axes.axhline(level, color="black", linestyle=":", label="share covered")
    axes.axvline(67, color="0.8", linewidth=0.8, zorder=0)
    axes.set(title="Figure 13 (grey line: E = 67 %)", xlabel="energy, % of the positive pixels", xlim=(0, 100))
    axes.set(ylabel="pointing accuracy, %", ylim=(0, 100))


class Atlas:
    """Pictures of maps: one row for an image and a class, one column for a method."""

    def __init__(self, subjects: Sequence[Judged], folder: Path, device: str) -> None:
        self.subjects, self.folder, self.device = subjects, folder, device

    def examples(self, indices: Sequence[int]) -> Picture:
        """Figure 7: maps of the label."""
        subject = self.subjects[0]
        _, images, labels, *_ = loaded(subject.images, indices)
        return self._save(
            "examples.png", f"Figure 7: maps of the label, {subject.name}", [self._rows(subject, images, labels)]
        )

    def pairs(self, pairs: Sequence[Sequence[int]]) -> list[Picture]:
        """Figures 6 and 8: two images in one, and either of them explained; the same for all networks."""
        first = self._save(
            "pairs.png",
            f"Figure 6: two images in one, either explained, {self.subjects[0].name}",
            [self._of_pair(self.subjects[0], pair) for pair in pairs[:DRAWN]],
        )
        if len(self.subjects) == 1:
            return [first]
        chosen = pairs[min(DRAWN, len(pairs) - 1)]
        rows = [self._of_pair(subject, chosen, tell=True) for subject in self.subjects]
        return [first, self._save("networks.png", "Figure 8: the same two images, explained for each network", rows)]

    def _of_pair(self, subject: Judged, pair: Sequence[int], *, tell: bool = False) -> Rows:
        _, images, labels, *_ = loaded(subject.images, pair)
        both = torch.cat(list(images), 2)[None].expand(2, -1, -1, -1)
        return self._rows(subject, both, labels, tell=tell)

    def failures(self, found: Mapping[str, Any]) -> list[Picture]:
        """Figure 9: the objects that cover most and least of their images, within its two conditions."""
        subject, share = self.subjects[0], np.array(found["share"])
        rows = []
        for sign, chosen in zip((-1, 1), condition(share).values(), strict=False):
            order = [i for i in np.argsort(sign * share, kind="stable") if chosen[i]][:DRAWN]
            if not order:
                continue
            _, images, labels, masks = loaded(subject.boxed, [found["index"][i] for i in order])
            targets = subject.boxed_targets(subject.predict(images.to(self.device)).cpu(), labels)
            rows.append(self._rows(subject, images, targets, masks))
        if not rows:
            return []
        return [self._save("failures.png", "Figure 9: objects that fill their images, and insignificant ones", rows)]

    def _rows(
        self, subject: Judged, images: Tensor, targets: Tensor, masks: Tensor | None = None, *, tell: bool = False
    ) -> Rows:
        images, targets = images.to(self.device), targets.to(self.device)
        logits = subject.predict(images)
        chances = log_softmax(logits, targets).exp().tolist()
        pixels = to_pixels(images, subject.mean, subject.std).cpu()
        methods = {name: one for name, one in subject.methods().items() if name != "Random"}
        maps = xai.explain(subject.network, images, targets, attributions=methods)
        facts: dict[str, list[Any]] = {"network": [subject.name] * len(images)} if tell else {}
        facts["explained"] = [f"{subject.classes[t]} ({p:.2f})" for t, p in zip(targets.tolist(), chances, strict=True)]
        if masks is not None:
            facts["object covers"] = [f"{100 * share:.0f} %" for share in masks.float().mean((1, 2)).tolist()]
        shown = pixels if masks is None else boxed(pixels, masks)
        return shown, {name: overlay(pixels, one.relu().cpu()) for name, one in maps.items()}, facts

    def _save(self, file: str, title: str, rows: Sequence[Rows]) -> Picture:
        images, overlays, facts = zip(*rows, strict=True)
        joined = {name: torch.cat([one[name] for one in overlays]) for name in overlays[0]}
        told = {name: [value for one in facts for value in one[name]] for name in facts[0]}
        panel = Panel(torch.cat(images), joined, told)
        panel.figure(title).savefig(self.folder / file)
        return Picture(file, f"{title}. {'; '.join(panel.captions)}.")


Rows = tuple[Tensor, dict[str, Tensor], dict[str, list[Any]]]
"""Images, pictures of their maps by method, and facts."""


def boxed(pixels: Tensor, masks: Tensor) -> Tensor:
    """Images (N,3,H,W) with a frame around the masks (N,H,W)."""
    width = max(1, pixels.shape[-1] // 75)
    side = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * width  # outside of the object, where there is room
    frames = []
    for image, mask in zip(pixels, masks.cpu(), strict=True):
        box = (masks_to_boxes(mask[None]) + side).clamp(0, pixels.shape[-1] - 1)
        frames.append(draw_bounding_boxes((image * 255).byte(), box, colors="yellow", width=width) / 255)
    return torch.stack(frames)
