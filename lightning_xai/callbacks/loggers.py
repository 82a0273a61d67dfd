"""How loggers get metrics and pictures: the only module that names a logger.

``pytorch_lightning`` and ``lightning.pytorch`` ship distinct classes, and a logger's package may not be installed, so
loggers are told by class name and nothing of theirs is imported here. Scalars take Lightning's own way (``self.log``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import fsspec  # type: ignore[import-untyped]
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_xai.visualization import Panel, as_uint8, description, raster

# Failing loggers and what was said to be lost. It belongs to the logger rather than to a callback: all callbacks share
# it, and they can be copied and pickled without it. Weak, so that it ends with the logger.
_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


class _Desk:
    """Where the panels of one logger are stored, one after another, on a thread of their own."""

    def __init__(self) -> None:
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lightning_xai-pictures")
        self.begun: dict[str, Future[object]] = {}  # the last panel of each key


# As above; a desk stands for one run, so that no thread is taken into a process that is forked later.
_DESKS: WeakKeyDictionary[Any, _Desk] = WeakKeyDictionary()
_PICTURES_LOST = "its pictures are lost"


def declare_metrics(loggers: Iterable[Any], directions: Mapping[str, bool | None]) -> None:
    """Tell W&B which end of each metric is the good one, so that its summaries and tables sort rightly.

    A failing logger warns, as in `log_panel`. Nothing is collective: call it on rank zero.

    Args:
        loggers: The Trainer's loggers.
        directions: For each key whether higher is better; None where neither end is.

    Example:
        >>> declare_metrics([], {"val/xai/gradcam/average_drop": False})
    """
    for logger in loggers:
        if "WandbLogger" in _class_names(logger):
            with _guard(logger, "the direction of metrics in its summaries is lost"):
                _define_metrics(logger, directions)


def log_figures(loggers: Iterable[Any], values: Mapping[str, float], step: int) -> None:
    """Store numbers at once, from where ``self.log`` is not to be had: before the first step, and while saving.

    A failing logger warns, as in `log_panel`. Nothing is collective: call it on rank zero.

    Args:
        loggers: The Trainer's loggers.
        values: Numbers by key.
        step: The Trainer's global step.

    Example:
        >>> log_figures([], {"val/xai/integrity/share": 0.01}, step=0)
    """
    for logger in loggers:
        with _guard(logger, "figures from outside of validation are lost"):
            logger.log_metrics(dict(values), step)


def log_panel(loggers: Iterable[Any], key: str, panel: Panel, step: int) -> None:
    """Store a panel of pictures with every logger that can hold one, beside the training.

    W&B gets the images as media ``<key>/image`` and each attribution's pictures as ``<key>/<name>``, with captions,
    and all of them in one table ``<key>/table`` to filter and sort by the panel's facts. The others get the panel's
    figure: TensorBoard as an image ``<key>``, MLflow as artefact ``xai/<key>/step=<step>.png``, CSV as such a file
    beside ``metrics.csv``. Loggers of other kinds, among them the one of ``fast_dev_run``, are passed over.

    Only the figure is drawn at once; encoding and storing, which take as long as the back-end likes, are the work of
    one thread for each logger. A panel waits until the last one of its key is stored, so that pictures do not pile up
    in memory: a back-end holds up a run that validates more often than it can store. Measured with a back-end that
    takes 2 s for each panel: a panel holds up training for its drawing (0.15 s for 4 images under 2 methods), stored at
    once for 2 s more.

    A failing logger (no connection, a full disk) never ends a run: its exception becomes one warning that says what
    is lost, and the next panel is tried again in silence. Nothing is collective: call it on rank zero, and
    `wait_for_panels` when the run ends.

    Args:
        loggers: The Trainer's loggers.
        key: As `LogKey` writes it.
        panel: The pictures.
        step: The Trainer's global step.

    Example:
        >>> import os, tempfile, torch
        >>> from pytorch_lightning.loggers import CSVLogger
        >>> logger = CSVLogger(tempfile.mkdtemp())
        >>> log_panel([logger], "val/xai/maps", Panel(torch.rand(1, 3, 8, 8)), step=100)
        >>> wait_for_panels([logger])
        >>> os.listdir(f"{logger.log_dir}/xai/val/xai/maps")
        ['step=00000100.png']
    """
    report = _Report(key, panel, step)
    for logger in loggers:
        if (store := _store_of(logger)) is not None:
            desk = _DESKS.setdefault(logger, _Desk())
            with _guard(logger, _PICTURES_LOST):
                _finish(desk, key)
            with _guard(logger, _PICTURES_LOST):
                desk.begun[key] = desk.worker.submit(store(logger, report))


def wait_for_panels(loggers: Iterable[Any]) -> None:
    """Wait until every panel is stored; at the end of a run, before the loggers are closed.

    A failing logger warns, as in `log_panel`.

    Args:
        loggers: The Trainer's loggers.

    Example:
        >>> wait_for_panels([])
    """
    for logger in loggers:
        desk = None if _store_of(logger) is None else _DESKS.pop(logger, None)
        if desk is not None:
            for key in list(desk.begun):
                with _guard(logger, _PICTURES_LOST):
                    _finish(desk, key)
            desk.worker.shutdown()


def _finish(desk: _Desk, key: str) -> None:
    """Wait for the last panel of a key; raises what storing it raised."""
    if key in desk.begun:
        desk.begun.pop(key).result()


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
    def drawn(self) -> Figure:
        return self.panel.figure(f"{self.key}, step {self.step}")

    @cached_property
    def figure(self) -> np.ndarray:
        return raster(self.drawn)

    @property
    def file(self) -> str:
        return f"xai/{self.key}/step={self.step:08d}.png"


_Job: TypeAlias = Callable[[], object]
_Store: TypeAlias = Callable[[Any, _Report], _Job]


def _store_of(logger: Any) -> _Store | None:
    return next((_STORES[name] for name in _class_names(logger) if name in _STORES), None)


def _class_names(logger: Any) -> list[str]:
    return [kind.__name__ for kind in type(logger).__mro__]


def _define_metrics(logger: Any, directions: Mapping[str, bool | None]) -> None:
    prefix = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
    for key, higher_is_better in directions.items():
        if higher_is_better is not None:
            # A definition replaces the logger's own for "*", so the step has to be named again.
            summary = "max" if higher_is_better else "min"
            logger.experiment.define_metric(prefix + key, summary=summary, step_metric="trainer/global_step")


# Each store does at once what belongs to the training's thread: a logger opens its run or folder, matplotlib draws.
# What it returns is done on the other thread.


def _store_wandb(logger: Any, report: _Report) -> _Job:
    panel = report.panel
    columns = ["step", "table", "image", *panel.facts, *panel.overlays]
    if len(set(columns)) < len(columns):
        raise ValueError(
            f"names of attributions expected to differ from step, table, image and {list(panel.facts)}, "
            f"got {list(panel.overlays)}"
        )
    _ = logger.experiment
    return partial(_encode_for_wandb, logger, report)


def _encode_for_wandb(logger: Any, report: _Report) -> None:
    import wandb  # the logger in use has imported it

    panel = report.panel
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


def _store_tensorboard(logger: Any, report: _Report) -> _Job:
    # Not add_figure, which imports pyplot.
    add_image = logger.experiment.add_image
    return partial(add_image, report.key, report.figure, report.step, dataformats="HWC")


def _store_mlflow(logger: Any, report: _Report) -> _Job:
    log_image, run_id = logger.experiment.log_image, logger.run_id
    return partial(log_image, run_id, report.figure, artifact_file=report.file)


def _store_csv(logger: Any, report: _Report) -> _Job:
    _ = logger.experiment  # makes the folder; it would warn about one that already holds pictures
    told = description(report.panel, report.drawn)  # for reports, which cut single pictures out of the file
    return partial(_write_png, f"{logger.log_dir}/{report.file}", report.figure, told)


def _write_png(path: str, figure: np.ndarray, told: PngInfo) -> None:
    with fsspec.open(path, "wb") as file:  # log_dir may be remote
        Image.fromarray(figure).save(file, format="png", pnginfo=told)


_STORES: dict[str, _Store] = {
    "WandbLogger": _store_wandb,
    "TensorBoardLogger": _store_tensorboard,
    "MLFlowLogger": _store_mlflow,
    "CSVLogger": _store_csv,
}
