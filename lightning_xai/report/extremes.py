"""The images on which a metric is worst and best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_xai.images import UNREADABLE
from lightning_xai.metrics import number_named
from lightning_xai.panels import StoredPanel, read_panel
from lightning_xai.report.followed import split_name
from lightning_xai.report.pictures import Pictures
from lightning_xai.report.results import Example

_SHOWN = 3


@dataclass(frozen=True)
class Ranked:
    """An image, its map, and the value of the metric.

    Attributes:
        name: Which image.
        caption: What is known of it.
        value: Of the metric.
        image: Number of the picture; None where it is missing.
        map: Number of the map's picture; None where it is missing.
        note: What is missing, and why.
    """

    name: str
    caption: str
    value: float
    image: int | None = None
    map: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Extremes:
    """Worst and best images of one metric, one attribution and one network."""

    metric: str
    column: str
    model: str
    worst: list[Ranked]
    best: list[Ranked]

    @property
    def attribution(self) -> str:
        """Name of the attribution with its score."""
        return ", ".join(filter(None, split_name(self.column)))


def extremes(
    images: Sequence[tuple[str, Path, Example]], higher_is_better: Mapping[str, bool], pictures: Pictures
) -> list[Extremes]:
    """The worst and the best images of each metric, by attribution and network; of equal values the first."""
    shown = _Shower(pictures)
    return [
        Extremes(number_named(metric).label, column, model, *shown.ends(column, found, higher))
        for metric, higher in higher_is_better.items()
        for column, model, found in _combinations(images, metric)
        if len(found) > 1
    ]


def worst_and_best(values: Sequence[float], higher_is_better: bool) -> tuple[list[int], list[int]]:
    """The images that a report shows of a metric, at most three at each end and none at both; of equal ones the first.

    Args:
        values: The value of each image; those that are not finite are left out.
        higher_is_better: Whether a higher value is the better one.

    Returns:
        The numbers of the worst images, and of the best.

    Example:
        >>> worst_and_best([5.0, float("nan"), 1.0, 2.0, 9.0], higher_is_better=True)
        ([2, 3], [4, 0])
    """
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    n = min(_SHOWN, len(known) // 2)
    low, high = (sorted(known, key=lambda i: values[i], reverse=largest_first)[:n] for largest_first in (False, True))
    return (low, high) if higher_is_better else (high, low)


Valued = tuple[float, Path, Example]


def _combinations(images: Sequence[tuple[str, Path, Example]], metric: str) -> Iterator[tuple[str, str, list[Valued]]]:
    by_line: dict[tuple[str, str], list[Valued]] = {}
    for model, folder, example in images:
        for column, value in example.values.get(metric, {}).items():
            if value is not None and math.isfinite(value):
                by_line.setdefault((column, model), []).append((value, folder, example))
    for (column, model), found in by_line.items():
        yield column, model, found


class _Shower:
    """Reads panels of examples, each once."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self._panels: dict[Path, StoredPanel] = {}

    def ends(self, column: str, found: list[Valued], higher_is_better: bool) -> tuple[list[Ranked], list[Ranked]]:
        chosen = worst_and_best([value for value, *_ in found], higher_is_better)
        worst, best = ([self.shown(column, *found[i]) for i in end] for end in chosen)
        return worst, best

    def shown(self, column: str, value: float, folder: Path, example: Example) -> Ranked:
        try:
            panel = self._panel(inside(folder, example.file))
            image, overlay = (self._number(panel, name) for name in ("image", column))
        except UNREADABLE as error:
            return Ranked(example.name, "", value, note=f"The pictures {example.file} cannot be shown: {error}")
        note = "No map was drawn." if overlay is None else ""
        return Ranked(example.name, panel.captions[0], value, image, overlay, note)

    def _number(self, panel: StoredPanel, column: str) -> int | None:
        path = panel.tile(column, 0)
        return None if path is None else self.pictures.add_tile(path)

    def _panel(self, folder: Path) -> StoredPanel:
        if folder not in self._panels:
            self._panels[folder] = read_panel(folder)
        return self._panels[folder]


def inside(folder: Path, file: str) -> Path:
    """The path of a run's file.

    Raises:
        ValueError: If it is not in the run's folder: a report embeds nothing else.

    Example:
        >>> inside(Path("runs/trial"), "../../secret.png")
        Traceback (most recent call last):
        ...
        ValueError: `file` expected a path within the run's folder, got '../../secret.png'.
    """
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`file` expected a path within the run's folder, got {file!r}.")
    return path
