"""How loggers get metrics and pictures: the only module that names a logger.

``pytorch_lightning`` and ``lightning.pytorch`` ship distinct classes, and a logger's package may not be installed, so
loggers are known by class name and nothing of theirs is imported here. Scalars take Lightning's own way (``self.log``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import fsspec  # type: ignore[import-untyped]
import numpy as np
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from PIL import Image

from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import number_named
from lightning_xai.panels import panel_files, save_panel
from lightning_xai.visualization import Panel, as_uint8, raster

# Failing loggers and what was said to be lost. It belongs to the logger rather than to a callback: all callbacks share
# it, and they can be copied and pickled without it. Weak, so that it ends with the logger.
_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


_PICTURES_LOST = "its pictures are lost"
_LAYOUTS: WeakKeyDictionary[Any, set[LogKey]] = WeakKeyDictionary()  # keys in the charts of TensorBoard loggers


def declare_metrics(loggers: Iterable[Any], directions: Mapping[LogKey, bool | None]) -> None:
    """Tell loggers what belongs together and which end is the good one.

    W&B's summaries and tables then sort rightly; TensorBoard's page "Custom scalars" has one chart for each metric,
    with all methods and controls. A failing logger warns, as in `log_panel`. Nothing is collective: call it on rank
    zero.

    Example:
        >>> declare_metrics([], {LogKey("val", "gradcam", "AverageDrop"): False})
    """
    for logger in loggers:
        names = _class_names(logger)
        if "WandbLogger" in names:
            with _guard(logger, "the direction of metrics in its summaries is lost"):
                _define_metrics(logger, directions)
        elif "TensorBoardLogger" in names and not directions.keys() <= _LAYOUTS.setdefault(logger, set()):
            with _guard(logger, "its charts of several methods are lost"):
                _LAYOUTS[logger] |= directions.keys()
                logger.experiment.add_custom_scalars(_layout(_LAYOUTS[logger]))


def _layout(keys: Iterable[LogKey]) -> dict[str, dict[str, list[Any]]]:
    """Charts as TensorBoard takes them: by stage and metric, the lines of all methods and controls."""
    found: dict[str, dict[str, list[Any]]] = {}
    for key in sorted(keys, key=str, reverse=True):  # "val" before "test"
        index = "" if key.dataloader_idx is None else f", dataloader {key.dataloader_idx}"
        title = number_named(str(key.metric)).label + index
        chart = found.setdefault(f"xai, {key.stage}", {}).setdefault(title, ["Multiline", []])
        chart[1].insert(0, f"^{re.escape(str(key))}$")
    return found


def log_figures(loggers: Iterable[Any], values: Mapping[str, float], step: int) -> None:
    """Store numbers at once, from where ``self.log`` is not to be had: before the first step, and while saving.

    A failing logger warns, as in `log_panel`. Nothing is collective: call it on rank zero.

    Example:
        >>> log_figures([], {"val/xai/integrity/share": 0.01}, step=0)
    """
    for logger in loggers:
        with _guard(logger, "figures from outside of validation are lost"):
            logger.log_metrics(dict(values), step)


def log_panel(loggers: Iterable[Any], key: str, panel: Panel, step: int) -> None:
    """Store a panel of pictures with every logger that can hold one.

    W&B gets the images as media ``<key>/image`` and each attribution's pictures as ``<key>/<name>``, with captions,
    and all of them in one table ``<key>/table`` to filter and sort by the panel's facts. TensorBoard and MLflow get the
    panel's figure as an image ``<key>`` with a slider over steps. Beside the logs of CSV and TensorBoard the pictures
    and their facts are stored in a folder ``xai/<key>/step=<step>`` (`save_panel`), from which reports draw them.
    Loggers of other kinds, among them the one of ``fast_dev_run``, are passed over.

    A failing logger (no connection, a full disk) never ends a run: its exception becomes one warning that says what
    is lost, and the next panel is tried again in silence. Nothing is collective: call it on rank zero.

    Example:
        >>> import os, tempfile, torch
        >>> from pytorch_lightning.loggers import CSVLogger
        >>> logger = CSVLogger(tempfile.mkdtemp())
        >>> log_panel([logger], "val/xai/maps", Panel(torch.rand(1, 3, 8, 8)), step=100)
        >>> sorted(os.listdir(f"{logger.log_dir}/xai/val/xai/maps/step=00000100"))
        ['0_0.webp', 'panel.json']
    """
    report = _Report(key, panel, step)
    for logger in loggers:
        store = next((_STORES[name] for name in _class_names(logger) if name in _STORES), None)
        if store is not None:
            with _guard(logger, _PICTURES_LOST):
                store(logger, report)


@contextmanager
def _guard(logger: Any, loss: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = _SAID.setdefault(logger, set())
        if loss not in said:
            said.add(loss)
            warnings.warn(
                f"{type(logger).__name__} failed: {loss} as long as it does, training goes on, and this is said once. "
                f"{type(error).__name__}: {error}",
                stacklevel=4,
            )


@dataclass(frozen=True)
class _Report:
    """A panel at a step; its figure is drawn once for all loggers that want it."""

    key: str
    panel: Panel
    step: int

    @cached_property
    def figure(self) -> np.ndarray:
        return raster(self.panel.figure(f"{self.key}, step {self.step}"))


def _class_names(logger: Any) -> list[str]:
    return [kind.__name__ for kind in type(logger).__mro__]


def _define_metrics(logger: Any, directions: Mapping[LogKey, bool | None]) -> None:
    prefix = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
    for key, higher_is_better in directions.items():
        if higher_is_better is not None:
            # A definition replaces the logger's own for "*", so the step has to be named again.
            summary = "max" if higher_is_better else "min"
            logger.experiment.define_metric(f"{prefix}{key}", summary=summary, step_metric="trainer/global_step")


def _store_wandb(logger: Any, report: _Report) -> None:
    panel = report.panel
    named = ["step", "table", "image", *panel.facts, *panel.overlays]
    if len(set(named)) < len(named):
        raise ValueError(
            f"names of attributions expected to differ from step, table, image and {list(panel.facts)}, "
            f"got {list(panel.overlays)}"
        )
    _ = logger.experiment
    import wandb  # the logger in use has imported it

    captions = [" | ".join(filter(None, [f"step {report.step}", caption])) for caption in panel.captions]
    columns = {
        # a name may be broken into lines for the figure; here it is part of a file's name
        " ".join(name.split()): [
            wandb.Image(Image.fromarray(array), caption=captions[i]) for i, array in enumerate(as_uint8(tensor))
        ]
        for name, tensor in {"image": panel.images, **panel.overlays}.items()
    }
    # Media first, then the table that refers to the same files: encoding them is most of the cost. Both go through
    # the logger, which keeps the step as a column; W&B drops what is logged at a step of its own that has passed.
    logger.log_metrics({f"{report.key}/{name}": images for name, images in columns.items()}, report.step)
    rows = zip(*panel.facts.values(), *columns.values(), strict=True)
    names = ["step", *panel.facts, *columns]
    logger.log_table(f"{report.key}/table", names, [[report.step, *row] for row in rows], step=report.step)


def _store_tensorboard(logger: Any, report: _Report) -> None:
    # Not add_figure, which imports pyplot.
    logger.experiment.add_image(report.key, report.figure, report.step, dataformats="HWC")
    _store_files(logger, report)


def _store_mlflow(logger: Any, report: _Report) -> None:
    key = re.sub(r"[^\w\-. /]", "_", report.key)  # what MLflow takes
    logger.experiment.log_image(logger.run_id, report.figure, key=key, step=report.step)


def _store_files(logger: Any, report: _Report) -> None:
    if logger.log_dir is None:  # it keeps nothing on disk
        return
    _ = logger.experiment  # makes the folder; it would warn about one that already holds pictures
    system, folder = fsspec.core.url_to_fs(f"{logger.log_dir}/xai/{report.key}/step={report.step:08d}")
    if isinstance(system, LocalFileSystem):
        save_panel(report.panel, Path(folder))
    else:  # log_dir may be remote, where a file is there when it is whole
        for name, content in panel_files(report.panel):
            system.pipe_file(f"{folder}/{name}", content)


_STORES: dict[str, Callable[[Any, _Report], None]] = {
    "WandbLogger": _store_wandb,
    "TensorBoardLogger": _store_tensorboard,
    "MLFlowLogger": _store_mlflow,
    "CSVLogger": _store_files,
}
