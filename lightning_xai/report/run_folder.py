"""What a run left in its folder, whole or half written: results, settings, and what the CSV logger wrote."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_xai.log_keys import LogKey
from lightning_xai.report.results import Results

_LOGGER_FOLDER = re.compile(r"csv|(csv|version)_\d+|lightning_logs")
_PANEL = re.compile(r"step=(\d+)\.png")


@dataclass
class Log:
    """What the CSV logger wrote of one network, also in several attempts; a later one replaces what it repeats.

    Attributes:
        model: The network: the folder of the log within the run, empty where there is but one.
        values: By key, then by step.
        epochs: By step.
        panels: Files of pictures by key, then by step.
    """

    model: str
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    panels: dict[str, dict[int, Path]] = field(default_factory=dict)

    def own_values(self) -> list[tuple[LogKey, dict[int, float]]]:
        """Values under keys of this package."""
        keys = {key: LogKey.parse(key) for key in self.values}
        return [(own, self.values[key]) for key, own in keys.items() if own is not None and own.metric is not None]

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
        The run; what is missing or damaged is told in its notes.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds nothing of a run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Results("Trial", "Nothing was done.").save(Path(folder))
        ...     run = read_run(Path(folder))
        >>> run.title, run.notes
        ('Trial', ['There are no logged values: no metrics.csv was found.'])
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"`RUN` expected the folder of a run, got {str(folder)!r}, which is no folder.")
    notes: list[str] = []
    results, settings = _results(folder, notes), _settings(folder, notes)
    logs = _logs(folder, notes)
    if results:  # the tables know which network comes first
        heads = [head for table in results.tables for head in table.columns]
        logs.sort(key=lambda log: heads.index(log.model) if log.model in heads else len(heads))
    if results is None and not (logs or settings or (folder / "results.json").is_file()):
        held = sorted(path.name for path in folder.iterdir())[:5]
        raise ValueError(
            "`RUN` expected the folder of a run, with results.json, settings.json or metrics.csv, "
            f"got {str(folder)!r}, which {'holds ' + ', '.join(held) if held else 'is empty'}."
        )
    return RunFolder(folder, results, (results.settings if results else {}) or settings, logs, notes)


def _results(folder: Path, notes: list[str]) -> Results | None:
    try:
        return Results.load(folder)
    except FileNotFoundError:
        notes.append("There is no results.json: the run is not finished, or was ended by an error.")
    except ValueError as error:
        notes.append(f"The file results.json cannot be used: {error}")
    return None


def _settings(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "settings.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        notes.append(f"The file settings.json cannot be read: {error}")
    return {}


def _logs(folder: Path, notes: list[str]) -> list[Log]:
    logs: dict[str, Log] = {}
    files = sorted(folder.rglob("metrics.csv"), key=_natural)
    for path in files:
        model = _model(path.parent.relative_to(folder))
        _read_metrics(path, logs.setdefault(model, Log(model)), notes)
    for path in sorted(folder.rglob("step=*.png"), key=_natural):
        parts, found = path.parent.relative_to(folder).parts, _PANEL.fullmatch(path.name)
        if found and "xai" in parts:
            first = parts.index("xai")
            model = _model(Path(*parts[:first]))
            key = "/".join(parts[first + 1 :])
            logs.setdefault(model, Log(model)).panels.setdefault(key, {})[int(found[1])] = path
    if not files:
        notes.append("There are no logged values: no metrics.csv was found.")
    return list(logs.values())


def _model(folder: Path) -> str:
    return "/".join(part for part in folder.parts if not _LOGGER_FOLDER.fullmatch(part))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order in which people count: csv_2 before csv_10."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", str(path))]


def _read_metrics(path: Path, log: Log, notes: list[str]) -> None:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                _take(row, log)
    except (csv.Error, OSError) as error:
        notes.append(f"{path.parent.name}/metrics.csv is damaged, what comes before that is shown: {error}")


def _take(row: dict[str, Any], log: Log) -> None:
    """One row of a CSV log; a row that was cut off counts as far as it goes."""
    values = dict(_numbers(row))
    step = values.pop("step", None)
    if step is None:
        return
    if "epoch" in values and not any(key.startswith("test/") for key in values):  # tests count from 0 again
        log.epochs[int(step)] = int(values["epoch"])
    for key in values.keys() - {"epoch"}:
        log.values.setdefault(key, {})[int(step)] = values[key]


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, text in row.items():
        if key and isinstance(text, str) and text:
            try:
                yield key, float(text)
            except ValueError:
                continue  # words, as some callbacks log them, are no curve
