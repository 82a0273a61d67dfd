"""A folder for each run: settings, finished parts that a resumed run keeps, and in the end results and a report."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from common.measured import origin, save_measurement
from common.options import RunOptions, settings_of
from lightning_xai.files import write_whole
from lightning_xai.report import Example, Picture, Results, Table, write_report

Item = TypeVar("Item")
NOT_SETTINGS = ("resume", "run", "numbers")


class Run:
    """A run folder: its settings, the parts that are done, and in the end its results; the first process writes.

    Args:
        options: The folder, and whether to go on with the run in it.
        settings: All options: a dataclass, or by name.
        free: Options that may change when the run is resumed: they must not change results.

    Raises:
        SystemExit: If the folder holds a run and ``--resume`` was not given, or the run has other settings.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(RunOptions(Path(folder)))
        ...     first = run.part("squares", lambda: [1, 4])
        ...     again = run.part("squares", lambda: [0, 0])
        >>> again
        [1, 4]
    """

    def __init__(self, options: RunOptions, settings: Any = None, *, free: Collection[str] = ()) -> None:
        self.folder, self.started, self.resumed = options.run, time.monotonic(), options.resume
        self.numbers = options.numbers
        named = settings_of(options if settings is None else settings)
        self.settings = {name: value for name, value in named.items() if name not in NOT_SETTINGS}
        if is_first_process():
            self._begin(free)

    def _begin(self, free: Collection[str]) -> None:
        path = self.folder / "settings.json"
        if path.exists():
            self._check(_read(path), free)
        elif self.resumed:
            raise SystemExit(f"--resume expected a run in {self.folder}, found none.")
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.settings))

    def _check(self, earlier: dict[str, Any], free: Collection[str]) -> None:
        if not self.resumed:
            raise SystemExit(f"{self.folder} already holds a run. Go on with it: --resume; or another folder: --run.")
        settings = json.loads(json.dumps(self.settings))
        changed = {key for key, value in settings.items() if key not in free and value != earlier.get(key)}
        if changed:
            raise SystemExit(f"--resume expected the settings of {self.folder}; these differ: {sorted(changed)}.")

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self._path(name).exists()

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """A part of the results in a form that JSON takes: read where an earlier attempt finished it, else computed."""
        path = self._path(name)
        if path.exists():
            return _read(path)
        text = json.dumps(compute())
        if is_first_process():
            write_whole(path, text)
        return json.loads(text)

    def parts(self, name: str, items: Sequence[Item], compute: Callable[[Item], Any]) -> list[Any]:
        """A part for each item, with progress on the screen."""
        from rich.progress import track  # here, so that runs without tables need no extra

        numbered = track(list(enumerate(items)), description=name)
        return [self.part(f"{name}_{i:04d}", lambda item=item: compute(item)) for i, item in numbered]  # type: ignore[misc]

    def _path(self, name: str) -> Path:
        return self.folder / "parts" / f"{name}.json"

    def finish(
        self,
        title: str,
        summary: str,
        tables: Sequence[Table],
        pictures: Sequence[Picture] = (),
        values: dict[str, Any] | None = None,
        images: Sequence[Example] = (),
        higher_is_better: dict[str, bool] | None = None,
    ) -> Results:
        """Print summary and tables, and write ``results.json`` and ``report.html``."""
        results = Results(
            title,
            summary,
            self.settings,
            tables,
            pictures,
            values or {},
            versions(),
            seconds=round(time.monotonic() - self.started, 1),
            images=images,
            higher_is_better=higher_is_better or {},
        )
        results.save(self.folder)
        if self.numbers is not None and is_first_process():
            save_tables(self.numbers, summary, tables)
        print(summary)
        for table in tables:
            show(table)
        report = write_report(self.folder)
        print(f"{results.seconds:.0f} s; results and figures are in {self.folder}, all in one: {report}", flush=True)
        return results


def save_tables(path: Path, summary: str, tables: Sequence[Table]) -> None:
    """Write down what the tables say, for the texts that quote them."""
    save_measurement(path, [{"summary": summary}, *(row for table in tables for row in _texts(table))])


def _texts(table: Table) -> Iterator[dict[str, Any]]:
    """The head of a table and its rows as they are printed."""
    yield {"table": table.title, "columns": list(table.columns), "caption": table.caption}
    for row in range(len(table.rows)):
        yield {"table": table.title, "cells": [table.text(row, column) for column in range(len(table.columns))]}


def is_first_process() -> bool:
    """Whether this process writes and speaks for all; known before a Trainer starts the others."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"--resume expected JSON in {path}, which is damaged: {error}. Remove it.") from error


def show(table: Table) -> None:
    """Print a table, without `rich` in plain columns."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as Printed
    except ImportError:
        lines = [[table.text(row, column) for column in range(len(table.columns))] for row in range(len(table.rows))]
        print(table.title, table.caption, *("\t".join(line) for line in [list(table.columns), *lines]), sep="\n")
        return
    printed = Printed(
        *table.columns, title=table.title, caption=table.caption, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for row in range(len(table.rows)):
        printed.add_row(*(table.text(row, column) for column in range(len(table.columns))))
    console = Console()
    Console(width=None if console.is_terminal else 110).print(printed, highlight=False)


def first_images(loader: Any, n: int, parts: int = 2) -> list[Tensor]:
    """The first n images of a loader, and the first of what comes with each: labels, masks."""
    batches, left = [], n
    for batch in loader:
        batches.append(batch[:parts])
        left -= len(batch[0])
        if left <= 0:
            break
    return [torch.cat(one)[:n] for one in zip(*batches, strict=True)]


def in_chunks(items: Any, size: int) -> Iterator[Any]:
    """Slices of a sequence or tensor, the last one perhaps shorter.

    Example:
        >>> list(in_chunks(range(10), 4))
        [range(0, 4), range(4, 8), range(8, 10)]
    """
    return (items[start : start + size] for start in range(0, len(items), size))


def joined(parts: Sequence[Any]) -> Any:
    """Lists end to end, also in nested dicts; what a part lacks adds nothing.

    Example:
        >>> joined([{"a": [1], "b": {"c": [2]}}, {"a": [3]}])
        {'a': [1, 3], 'b': {'c': [2]}}
    """
    if isinstance(parts[0], dict):
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: joined([part[name] for part in parts if name in part]) for name in names}
    return [value for part in parts for value in part]


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    names = ("torchvision", "timm", "pytorch_lightning", "torchmetrics")
    found = {key: str(value) for key, value in origin().items()} | {name: version(name) for name in names}
    return found | {"python": platform.python_version()}
