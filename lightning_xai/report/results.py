"""The one form in which runs say what they found: ``results.json`` in the run's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from lightning_xai.files import read_json, write_whole

Cell = str | float | int | dict[str, float] | None
"""Text, a number, one with its interval ``{"mean": ..., "low": ..., "high": ...}``, or None where there is none."""


@dataclass(frozen=True)
class Table:
    """Rows of results.

    Attributes:
        title: What is measured, in which unit, and which way is better.
        columns: Heads; the first column names the rows.
        rows: Cells of each row.
        caption: What a reader must know to read it: number of images, what the intervals are over.
        digits: Digits after the point of the numbers.

    Raises:
        ValueError: If a row has another number of cells than there are heads, or an interval lacks a number.

    Example:
        >>> Table("Average drop, %", ["", "plain"], [["gradcam", {"mean": 25.7, "low": 24.0, "high": 27.0}]]).text(0, 1)
        '25.7 [24.0, 27.0]'
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    digits: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"`rows` expected {len(self.columns)} cells each, got {len(row)} in {self.title!r}.")
            for cell in row:
                if isinstance(cell, dict) and not {"mean", "low", "high"} <= cell.keys():
                    raise ValueError(f"`rows` expected intervals with mean, low and high, got {sorted(cell)}.")
        if not 0 <= self.digits <= 20:
            raise ValueError(f"`digits` expected 0 to 20, got {self.digits}.")

    def text(self, row: int, column: int) -> str:
        """A cell as it is printed."""
        cell = self.rows[row][column]
        if isinstance(cell, dict):
            mean, low, high = (self._number(cell[key]) for key in ("mean", "low", "high"))
            return f"{mean} [{low}, {high}]"
        if isinstance(cell, float):
            return self._number(cell)
        return "" if cell is None else str(cell)

    def _number(self, value: float) -> str:
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # which makes -0.0 a zero


@dataclass(frozen=True)
class Picture:
    """A figure of the run.

    Attributes:
        file: Its file, relative to the run's folder.
        caption: What it shows, for those who see it and for those who do not.
    """

    file: str
    caption: str


@dataclass(frozen=True)
class Example:
    """An image that was explained, with what metrics say of its maps; reports show the worst and the best.

    Attributes:
        name: Which image it is: its file or number. Networks that explain the same image use the same name.
        file: The folder of its pictures, as written by `lightning_xai.panels.save_panel` with one image; relative to
            the run's folder. Images that are neither the worst nor the best of any metric need no example.
        values: The value of each metric, by name of the metric, then by column of the panel.
        model: The network that is explained, where a run has several.

    Example:
        >>> Example("7", "images/7", {"AverageDrop": {"gradcam": 12.5}}, model="plain").values["AverageDrop"]
        {'gradcam': 12.5}
    """

    name: str
    file: str
    values: dict[str, dict[str, float]]
    model: str = ""


@dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        title: Name of the experiment.
        summary: What was done and on what, in a few sentences.
        settings: Options of the command, by name.
        tables: Results for readers.
        pictures: Figures.
        values: Results for programs, in any form that JSON takes: values of each image, say.
        versions: What they were made with.
        seconds: Time of the run.
        images: Images with their values, for the worst and best of each metric.
        higher_is_better: For each metric of the images whether a higher value is the better one.

    Example:
        >>> import tempfile
        >>> results = Results("Trial", "Nothing was done.", tables=[Table("Nothing", [""], [])])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     results.save(Path(folder))
        ...     Results.load(Path(folder)).tables[0].title
        'Nothing'
    """

    title: str
    summary: str
    settings: dict[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    values: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    images: Sequence[Example] = ()
    higher_is_better: dict[str, bool] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``results.json`` in a folder."""
        write_whole(folder / "results.json", json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path, damaged: list[str] | None = None) -> Results:
        """Read ``results.json`` of a folder.

        Args:
            folder: The folder of the run.
            damaged: Where to name what is left out since it is damaged; None to refuse such results.

        Raises:
            FileNotFoundError: If there is none: the run is not finished.
            ValueError: If it is damaged or of another form.
        """
        path = folder / "results.json"
        if not path.exists() and not path.is_symlink():
            raise FileNotFoundError(f"`folder` expected a finished run with results.json, got {str(folder)!r}.")
        try:
            found = read_json(path, _BYTES)
            if not isinstance(found, dict):
                raise ValueError(f"fields by name were expected, got {type(found).__name__}")
            return cls(**_checked_fields(found, damaged))
        except ValueError as error:
            raise ValueError(f"{path} expected the results of a recipe, got something else: {error}") from error


def _checked_fields(found: dict[str, Any], damaged: list[str] | None) -> dict[str, Any]:
    """The fields that have the form of the class; of lists the items that have it."""
    hints = get_type_hints(Results)
    if unknown := found.keys() - hints.keys():
        raise ValueError(f"unknown fields {sorted(unknown)[:5]}")
    fields: dict[str, Any] = {"title": "", "summary": ""} if damaged is not None else {}
    for name, value in found.items():
        kind = _ITEMS.get(name)
        try:
            fields[name] = _kept_items(kind, name, value, damaged) if kind else checked(hints[name], value)
        except ValueError as error:
            if damaged is None:
                raise ValueError(f"{name}: {error}") from error
            damaged.append(f"results.json: {name} is left out: {error}")
    return fields


def _kept_items(kind: Any, name: str, items: Any, damaged: list[str] | None) -> list[Any]:
    kept = []
    for i, item in enumerate(checked(list[Any], items)):
        try:
            kept.append(checked(kind, item))
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(f"results.json: number {i + 1} of the {name} is left out: {error}")
    return kept[:_MOST]


def checked(kind: Any, value: Any) -> Any:
    """A value that was read from JSON as what it is to be.

    Args:
        kind: The type: a dataclass, or any that annotations write.
        value: The value.

    Raises:
        ValueError: If it is something else, with the place and what came.

    Example:
        >>> checked(Picture, {"file": "a.png", "caption": 7})
        Traceback (most recent call last):
        ...
        ValueError: caption: Input should be a valid string, got 7
    """
    from pydantic import TypeAdapter, ValidationError  # here: what only writes results does without

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place + ': ' if place else ''}{first['msg']}, got {first['input']!r:.60}") from error


_ITEMS = {"tables": Table, "pictures": Picture, "images": Example}
_BYTES = 128_000_000
_MOST = 100_000
