"""The form that recipes share: a folder for each run, finished parts that are kept, tables, results and intervals."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import timm
import torch
import torchmetrics
import torchvision
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table as Printed
from scipy.stats import bootstrap

from lightning_xai.report import Example, Picture, Results, Table, write_report

Item = TypeVar("Item")
NOT_SETTINGS = ("resume", "run")


class Run:
    """A run folder: its settings, the parts that are done, and in the end its results.

    Args:
        args: The command line, with ``run`` and ``resume``.
        free: Options that may change when the run is resumed: they must not change results.

    Raises:
        SystemExit: If the folder holds a run and ``--resume`` was not given, or the run has other settings.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(argparse.Namespace(run=Path(folder), resume=False, seed=0))
        ...     first = run.part("squares", lambda: [1, 4])
        ...     again = run.part("squares", lambda: [0, 0])
        >>> again
        [1, 4]
    """

    def __init__(self, args: argparse.Namespace, *, free: Collection[str] = ()) -> None:
        self.folder, self.started = args.run, time.monotonic()
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        self.settings = json.loads(json.dumps({k: v for k, v in plain.items() if k not in NOT_SETTINGS}))
        path = self.folder / "settings.json"
        if path.exists():
            self._check(json.loads(path.read_text()), args.resume, free)
        elif args.resume:
            raise SystemExit(f"--resume expected a run in {self.folder}, found none.")
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        _write(path, self.settings)

    def _check(self, earlier: dict[str, Any], resume: bool, free: Collection[str]) -> None:
        if not resume:
            raise SystemExit(f"{self.folder} already holds a run. Go on with it: --resume; or another folder: --run.")
        changed = {key for key, value in self.settings.items() if key not in free and value != earlier.get(key)}
        if changed:
            raise SystemExit(f"--resume expected the settings of {self.folder}; these differ: {sorted(changed)}.")

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return (self.folder / "parts" / f"{name}.json").exists()

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """A part of the results in a form that JSON takes: read where an earlier attempt finished it, else computed."""
        path = self.folder / "parts" / f"{name}.json"
        if not path.exists():
            _write(path, compute())
        return json.loads(path.read_text())

    def parts(self, name: str, items: Sequence[Item], compute: Callable[[Item], Any]) -> list[Any]:
        """A part for each item, with progress on the screen."""
        numbered = track(list(enumerate(items)), description=name)
        return [self.part(f"{name}_{i:04d}", lambda item=item: compute(item)) for i, item in numbered]  # type: ignore[misc]

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
        print(summary)
        for table in tables:
            show(table)
        report = write_report(self.folder)
        print(f"{results.seconds:.0f} s; results and figures are in {self.folder}, all in one: {report}", flush=True)
        return results


def _write(path: Path, value: Any) -> None:
    """Whole or not at all, whenever the process is killed."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


def add_run_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of `Run` and of trials, for a recipe of the given name."""
    parser.add_argument("--run", type=Path, default=Path("runs") / name, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn")
    parser.add_argument("--fast-dev-run", action="store_true", help="a few images, to try the script")


def show(table: Table) -> None:
    """Print a table."""
    printed = Printed(
        *table.columns, title=table.title, caption=table.caption, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for row in range(len(table.rows)):
        printed.add_row(*(table.text(row, column) for column in range(len(table.columns))))
    Console().print(printed, highlight=False)


def first_batches(loader: Any, n: int) -> Iterator[Any]:
    """Batches of a loader until they hold n images."""
    for batch in loader:
        yield batch
        n -= len(batch[0])
        if n <= 0:
            return


def interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean and bootstrap 95 % interval over images."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": mean, "low": mean, "high": mean}
    found = bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(seed))
    return {"mean": mean, "low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    modules = (torch, torchvision, timm, pl, torchmetrics)
    found = {module.__name__: str(module.__version__) for module in modules}
    return found | {"python": platform.python_version(), "machine": platform.machine()}
