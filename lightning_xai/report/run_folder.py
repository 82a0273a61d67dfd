"""What a run left in its folder, whole or half written: results, settings, and what was logged."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from lightning_xai.files import open_regular, read_json
from lightning_xai.log_keys import OVER_CONTROLS, LogKey
from lightning_xai.report.event_files import read_events
from lightning_xai.report.results import Results

_LOGGER_FOLDER = re.compile(r"csv|(csv|version)_\d+|lightning_logs|tensorboard")
_PANEL = re.compile(r"step=(\d{1,15})")
_OLD_PANEL = re.compile(r"step=\d+\.png")
_SETTINGS_BYTES = 1_000_000
_CSV_BYTES = 128_000_000
_VALUES = 2_000_000
"""Logged values that are read of a run; a chart shows 400 of a line."""
_FOLDERS = 20_000
_LARGEST_STEP = 10**15


@dataclass
class Log:
    """What was logged of one network, also in several attempts; a later one replaces what it repeats.

    Attributes:
        model: The network: the folder of the log within the run, empty where there is but one.
        values: By key, then by step.
        epochs: By step.
        panels: Folders of stored panels by key, then by step.
    """

    model: str
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    panels: dict[str, dict[int, Path]] = field(default_factory=dict)

    def own_values(self) -> list[tuple[LogKey, dict[int, float]]]:
        """Values under keys of this package."""
        keys = {key: LogKey.parse(key) for key in self.values}
        return [(own, self.values[key]) for key, own in keys.items() if own is not None and own.metric is not None]

    def controls(self) -> set[str]:
        """Names of controls: what methods are compared with, and is not compared itself."""
        own = [key for key, _ in self.own_values() if key.stage != "train"]
        methods = {key.name for key in own if str(key.metric).endswith(OVER_CONTROLS)}
        measured = {str(key.metric).removesuffix(OVER_CONTROLS) for key in own if key.name in methods}
        return {key.name for key in own if methods and key.metric in measured} - methods

    def epoch(self, step: int) -> int | None:
        """The epoch in which a step was made, where it was logged; pictures bear the number of steps made."""
        return self.epochs.get(max((one for one in self.epochs if one < max(step, 1)), default=-1))


@dataclass(frozen=True)
class RunFolder:
    """A run as it is found.

    Attributes:
        path: Its folder.
        results: What it found; None while it is not finished.
        settings: Options by name.
        logs: One for each network.
        notes: What is missing or damaged, in sentences.
    """

    path: Path
    results: Results | None
    settings: dict[str, Any]
    logs: list[Log]
    notes: list[str]

    @property
    def title(self) -> str:
        """Name of the experiment, or of the folder."""
        return self.results.title if self.results else self.path.resolve().name


def read_run(folder: Path) -> RunFolder:
    """Read what there is of a run.

    Args:
        folder: The run's folder.

    Returns:
        The run; what is missing or damaged is named in its notes.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds nothing of a run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Results("Trial", "Nothing was done.").save(Path(folder))
        ...     run = read_run(Path(folder))
        >>> run.title, run.notes
        ('Trial', ["There are no logged values: neither metrics.csv nor TensorBoard's event files were found."])
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"`RUN` expected the folder of a run, got {str(folder)!r}, which is no folder.")
    notes: list[str] = []
    settings = _settings(folder, notes)
    results = _results(folder, bool(settings), notes)
    logs = _logs(folder, notes)
    if results:  # the tables know which network comes first
        heads = [head for table in results.tables for head in table.columns]
        logs.sort(key=lambda log: heads.index(log.model) if log.model in heads else len(heads))
    if results is None and not (logs or settings or (folder / "results.json").is_file()):
        held = sorted(path.name for path in folder.iterdir())[:5]
        raise ValueError(
            "`RUN` expected the folder of a run, with results.json, settings.json, metrics.csv or event files, "
            f"got {str(folder)!r}, which {'holds ' + ', '.join(held) if held else 'is empty'}."
        )
    return RunFolder(folder, results, (results.settings if results else {}) or settings, logs, notes)


def _results(folder: Path, of_recipe: bool, notes: list[str]) -> Results | None:
    try:
        return Results.load(folder, notes)
    except FileNotFoundError:
        if of_recipe:  # other runs never have one
            notes.append("There is no results.json: the run is not finished, or was ended by an error.")
    except (OSError, ValueError) as error:
        notes.append(f"The file results.json cannot be used: {error}")
    return None


def _settings(folder: Path, notes: list[str]) -> dict[str, Any]:
    try:
        found = read_json(folder / "settings.json", _SETTINGS_BYTES)
        if not isinstance(found, dict):
            raise ValueError(f"options by name were expected, got {type(found).__name__}.")
        return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        notes.append(f"The file settings.json cannot be read: {error}")
    return {}


def _logs(folder: Path, notes: list[str]) -> list[Log]:
    logs: dict[str, Log] = {}
    found = _Found.of(folder, notes)
    budget = _Budget()
    for path in sorted(found.logs, key=_natural):
        model = _model(path.parent.relative_to(folder))
        rows = _csv_rows if path.suffix == ".csv" else _event_rows
        try:
            for row in rows(path):
                if budget.spent(len(row)):
                    raise ValueError(f"only the first {_VALUES:,} values of the run are shown.")
                _take(row, logs.setdefault(model, Log(model)))
        except (csv.Error, OSError, ValueError) as error:
            notes.append(f"{path.parent.name}/{path.name} is not shown to its end: {error}")
    for path in sorted(found.panels, key=_natural):
        parts, step = path.parent.relative_to(folder).parts, _PANEL.fullmatch(path.name)
        if step and "xai" in parts:
            first = parts.index("xai")
            model = _model(Path(*parts[:first]))
            key = "/".join(parts[first + 1 :])
            logs.setdefault(model, Log(model)).panels.setdefault(key, {})[int(step[1])] = path
    if not found.logs:
        notes.append("There are no logged values: neither metrics.csv nor TensorBoard's event files were found.")
    return list(logs.values())


@dataclass
class _Budget:
    """How many values are still read."""

    left: int = _VALUES

    def spent(self, n: int) -> bool:
        self.left -= n
        return self.left < 0


@dataclass
class _Found:
    """Files and folders of logs below a folder; links are not followed."""

    logs: list[Path] = field(default_factory=list)
    panels: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, notes: list[str]) -> _Found:
        found, old = cls(), 0
        for i, (place, folders, files) in enumerate(os.walk(folder)):
            if i == _FOLDERS:
                notes.append(f"Only the first {_FOLDERS:,} folders were looked into.")
                break
            here = Path(place)
            found.panels += [here / one for one in folders if _PANEL.fullmatch(one) and not (here / one).is_symlink()]
            folders[:] = sorted(one for one in folders if not _PANEL.fullmatch(one))
            found.logs += [here / one for one in files if one == "metrics.csv" or ".tfevents." in one]
            old += sum(_OLD_PANEL.fullmatch(one) is not None for one in files)
        if old:
            notes.append(
                f"{old} sheets of an earlier version (step=*.png) are not shown: their pictures cannot be told apart."
            )
        return found


def _model(folder: Path) -> str:
    return "/".join(part for part in folder.parts if not _LOGGER_FOLDER.fullmatch(part))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order in which people count: csv_2 before csv_10."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", str(path))]


Values = dict[str, float]


def _csv_rows(path: Path) -> Iterator[Values]:
    with open_regular(path) as file:
        content = file.read(_CSV_BYTES)
        longer = bool(file.read(1))
    rows = csv.reader(StringIO(content.decode(errors="replace"), newline=""))
    head = next(rows, [])
    for row in rows:
        yield dict(_numbers(head, row))
    if longer:
        raise ValueError(f"only the first {_CSV_BYTES:,} bytes are shown.")


def _event_rows(path: Path) -> Iterator[Values]:
    for step, tag, value in read_events(path):
        yield {"step": float(step), tag: value}


def _take(row: Values, log: Log) -> None:
    """One row of a log; a row that was cut off counts as far as it goes."""
    step = row.pop("step", math.nan)
    if not 0 <= step < _LARGEST_STEP:
        return
    epoch = row.pop("epoch", math.nan)
    if 0 <= epoch < _LARGEST_STEP and not any(key.startswith("test/") for key in row):  # tests count from 0 again
        log.epochs[int(step)] = int(epoch)
    for key, value in row.items():
        log.values.setdefault(key, {})[int(step)] = value


def _numbers(head: Sequence[str], row: Sequence[str]) -> Iterator[tuple[str, float]]:
    for key, text in zip(head, row, strict=False):
        if key and text:
            try:
                yield key, float(text)
            except ValueError:
                continue  # words, as some callbacks log them, are no curve
