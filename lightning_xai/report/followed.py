"""The followed images under each attribution over the steps of training, as a page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_xai.report.pictures import PanelFile, Pictures, evenly, read_panel
from lightning_xai.report.run_folder import Log

UNREADABLE = (OSError, ValueError, SyntaxError, KeyError, TypeError)
"""What damaged files of pictures raise."""

_IMAGES = 8
_TILES = 600
"""Number of maps in a page, of some 4 kB each."""


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
    """A viewer for each key under which pictures were logged.

    Args:
        logs: Names of networks, each with what was logged.
        pictures: Where the pictures are kept.

    Returns:
        The viewers; of many steps or images some at even distances are shown, and that is told.
    """
    keys = dict.fromkeys(key for _, log in logs for key in sorted(log.panels))
    return [_viewer(key, [(name, log) for name, log in logs if key in log.panels], pictures) for key in keys]


def _viewer(key: str, logs: Sequence[tuple[str, Log]], pictures: Pictures) -> Viewer:
    files = _Files()
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
            image.append(_row(model, number - 1, columns, panels, pictures))
    methods, scores = ([*dict.fromkeys(split_name(one)[i] for one in columns if one != "image")] for i in (0, 1))
    labels = [_label(step, logs[0][1].epoch(step)) for step in shown]
    notes = [*_sampling("steps", steps, shown), *_sampling("images", rows, shown_rows), *files.notes]
    models = [name for name, _ in logs]
    return Viewer(key, labels, list(images.items()), models, methods, list(filter(None, scores)), notes)


class _Files:
    """Files of panels, of which the last one read is kept; those that cannot be read are noted once."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._last: tuple[Path | None, PanelFile | None] = None, None

    def read(self, path: Path | None) -> PanelFile | None:
        if path is None or path == self._last[0]:
            return self._last[1] if path else None
        try:
            panel: PanelFile | None = read_panel(path)
        except UNREADABLE as error:
            panel, note = None, f"{path.name} of {path.parent.name} cannot be read: {error}"
            self.notes += [] if note in self.notes else [note]
        self._last = path, panel
        return panel

    def first(self, by_step: dict[int, Path]) -> PanelFile | None:
        """The first that can be read."""
        return next((panel for step in sorted(by_step) if (panel := self.read(by_step[step]))), None)


def _latest(by_step: dict[int, Path], step: int) -> Path | None:
    """Networks that were not drawn at this very step are shown as they were last drawn."""
    earlier = [one for one in by_step if one <= step]
    return by_step[max(earlier)] if earlier else None


def _row(model: str, row: int, columns: Sequence[str], panels: Sequence[PanelFile | None], pictures: Pictures) -> Row:
    captions = [panel.captions[row] if panel and row < len(panel.captions) else "" for panel in panels]
    tiles = []
    for column in columns:
        frames = [_frame(panel, column, row, pictures) for panel in panels]
        if column == "image":  # the same at each step, but for what resampling made of it
            frames = [next((frame for frame in frames if frame is not None), None)] * len(frames)
        tiles.append(Tile(column, *split_name(column), frames))
    return Row(model, captions, tiles)


def _frame(panel: PanelFile | None, column: str, row: int, pictures: Pictures) -> int | None:
    tiles = panel.tiles.get(column, []) if panel else []
    return pictures.add(tiles[row]) if row < len(tiles) else None


def _label(step: int, epoch: int | None) -> str:
    return f"step {step}" if epoch is None else f"step {step}, epoch {epoch}"


def _sampling(what: str, every: Sequence[int], shown: Sequence[int]) -> list[str]:
    if len(shown) == len(every):
        return []
    return [f"{len(shown)} of {len(every):,} {what} are shown, at even distances."]
