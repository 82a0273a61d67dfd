"""The followed images under each attribution over the steps of training, as a page shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lightning_xai.images import UNREADABLE
from lightning_xai.panels import StoredPanel, read_panel
from lightning_xai.report.pictures import Pictures, evenly
from lightning_xai.report.run_folder import Log

Found = TypeVar("Found")

_IMAGES = 8
_NOTES = 20
_TILES = 600
"""Number of maps in a page, of some 5 kB each."""


@dataclass(frozen=True)
class Tile:
    """One map of one image over the steps.

    Attributes:
        name: Column of the panel.
        method: Its first line: the attribution.
        score: Its second line: the score that is explained; empty where names have one line.
        frames: Number of the picture at each step; None where there is none.
    """

    name: str
    method: str
    score: str
    frames: list[int | None]


@dataclass(frozen=True)
class Row:
    """One image under one network: captions at each step, and its maps."""

    model: str
    captions: list[str]
    tiles: list[Tile]


@dataclass(frozen=True)
class Viewer:
    """Followed images with a slider.

    Attributes:
        title: Key under which the pictures were logged.
        steps: What the slider says at each of its positions.
        rows: Number of each image, from 1 on, with its rows, one for each network.
        models: The networks.
        methods: The attributions.
        scores: The scores; empty where attributions are not told apart by them.
        notes: What was left out or could not be read.
    """

    title: str
    steps: list[str]
    rows: list[tuple[int, list[Row]]]
    models: list[str]
    methods: list[str]
    scores: list[str]
    notes: list[str] = field(default_factory=list)


def split_name(column: str) -> tuple[str, str]:
    r"""Attribution and score of a column's name, which are two lines where there are both.

    Example:
        >>> split_name("Grad-CAM\nraw logit"), split_name("gradcam")
        (('Grad-CAM', 'raw logit'), ('gradcam', ''))
    """
    method, _, score = column.partition("\n")
    return method, score.replace("\n", " ")


def viewers(logs: Sequence[tuple[str, Log]], pictures: Pictures) -> list[Viewer]:
    """A viewer for each key under which pictures were logged; of many steps or images some at even distances."""
    keys = dict.fromkeys(key for _, log in logs for key in sorted(log.panels))
    return [_viewer(key, [(name, log) for name, log in logs if key in log.panels], pictures) for key in keys]


def _viewer(key: str, logs: Sequence[tuple[str, Log]], pictures: Pictures) -> Viewer:
    files = _Files(pictures)
    firsts = [panel for _, log in logs if (panel := files.first(log.panels[key]))]
    columns = [*dict.fromkeys(column for panel in firsts for column in panel.columns)]
    rows = range(max((len(panel.captions) for panel in firsts), default=0))
    steps = sorted({step for _, log in logs for step in log.panels[key]})
    shown_rows = evenly(rows, _IMAGES)
    shown = evenly(steps, max(2, _TILES // max(1, len(logs) * len(columns) * len(shown_rows))))
    images: dict[int, list[Row]] = {row + 1: [] for row in shown_rows}
    for model, log in logs:
        panels = [files.read(_latest(log.panels[key], step)) for step in shown]
        for number, image in images.items():
            image.append(_row(model, number - 1, columns, panels, files))
    methods, scores = ([*dict.fromkeys(split_name(one)[i] for one in columns if one != "image")] for i in (0, 1))
    labels = [_label(step, logs[0][1].epoch(step)) for step in shown]
    notes = [*_sampling("steps", steps, shown), *_sampling("images", rows, shown_rows), *files.notes]
    models = [name for name, _ in logs]
    return Viewer(key, labels, list(images.items()), models, methods, list(filter(None, scores)), notes)


class _Files:
    """Stored panels, each read once; what cannot be read is noted once."""

    def __init__(self, pictures: Pictures) -> None:
        self.notes: list[str] = []
        self._pictures = pictures
        self._panels: dict[Path, StoredPanel | None] = {}

    def read(self, folder: Path | None) -> StoredPanel | None:
        if folder is not None and folder not in self._panels:
            self._panels[folder] = self._tried(read_panel, folder)
        return None if folder is None else self._panels[folder]

    def first(self, by_step: dict[int, Path]) -> StoredPanel | None:
        """The first that can be read."""
        return next((panel for step in sorted(by_step) if (panel := self.read(by_step[step]))), None)

    def number(self, panel: StoredPanel | None, column: str, row: int) -> int | None:
        """The number of a picture in the page; None where there is none."""
        path = panel.tile(column, row) if panel else None
        return None if path is None else self._tried(self._pictures.add_tile, path)

    def _tried(self, read: Callable[[Path], Found], path: Path) -> Found | None:
        try:
            return read(path)
        except UNREADABLE as error:
            place = "/".join(path.parts[-2:])
            note = f"{place} cannot be read: {error}"
            if len(self.notes) <= _NOTES:
                self.notes.append(note if len(self.notes) < _NOTES else "More pictures cannot be read.")
        return None


def _latest(by_step: dict[int, Path], step: int) -> Path | None:
    """Networks that were not drawn at this very step are shown as they were last drawn."""
    earlier = [one for one in by_step if one <= step]
    return by_step[max(earlier)] if earlier else None


def _row(model: str, row: int, columns: Sequence[str], panels: Sequence[StoredPanel | None], files: _Files) -> Row:
    captions = [panel.captions[row] if panel and row < len(panel.captions) else "" for panel in panels]
    tiles = []
    for column in columns:
        if column == "image":  # the same at each step, but for what encoding made of it
            numbers = (files.number(panel, column, row) for panel in panels)
            frames = [next((one for one in numbers if one is not None), None)] * len(panels)
        else:
            frames = [files.number(panel, column, row) for panel in panels]
        tiles.append(Tile(column, *split_name(column), frames))
    return Row(model, captions, tiles)


def _label(step: int, epoch: int | None) -> str:
    return f"step {step}" if epoch is None else f"step {step}, epoch {epoch}"


def _sampling(what: str, every: Sequence[int], shown: Sequence[int]) -> list[str]:
    if len(shown) == len(every):
        return []
    return [f"{len(shown)} of {len(every):,} {what} are shown, at even distances."]
