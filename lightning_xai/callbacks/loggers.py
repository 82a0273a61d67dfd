"""How loggers get metrics and pictures: the only module that names a logger, and the only one that builds log keys.

``pytorch_lightning`` and ``lightning.pytorch`` ship distinct classes, and a logger's package may not be installed, so
loggers are told by class name and nothing of theirs is imported here. Scalars take Lightning's own way (``self.log``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import fsspec  # type: ignore[import-untyped]
import numpy as np
from PIL import Image

from lightning_xai.visualization import Panel, as_uint8, raster

# Failing loggers and what was said to be lost. It belongs to the logger rather than to a callback: all callbacks share
# it, and they can be copied and pickled without it. Weak, so that it ends with the logger.
_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def log_key(stage: str, name: str, metric: str | None = None, dataloader_idx: int | None = None) -> str:
    """The key under which a value or pictures are logged.

    Args:
        stage: ``val`` or ``test``.
        name: Name of the attribution, as the user chose it, or of the callback that shows several.
        metric: Name of the metric; None for pictures.
        dataloader_idx: Index of the dataloader, where there are several.

    Returns:
        The key; scalars are to be logged under it with ``add_dataloader_idx=False``.

    Example:
        >>> log_key("val", "gradcam", "average_drop")
        'val/xai/gradcam/average_drop'
        >>> log_key("test", "maps", dataloader_idx=1)
        'test/xai/maps/dataloader_idx_1'
    """
    index = None if dataloader_idx is None else f"dataloader_idx_{dataloader_idx}"
    return "/".join(part for part in (stage, "xai", name, metric, index) if part is not None)


def declare_metrics(loggers: Iterable[Any], directions: Mapping[str, bool | None]) -> None:
    """Tell W&B which end of each metric is the good one, so that its summaries and tables sort rightly.

    A failing logger warns, as in :func:`log_panel`. Nothing is collective: call it on rank zero.

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

    A failing logger warns, as in :func:`log_panel`. Nothing is collective: call it on rank zero.

    Args:
        loggers: The Trainer's loggers.
        values: Numbers by key, from :func:`log_key`.
        step: The Trainer's global step.

    Example:
        >>> log_figures([], {log_key("val", "integrity", "share"): 0.01}, step=0)
    """
    for logger in loggers:
        with _guard(logger, "figures from outside of validation are lost"):
            logger.log_metrics(dict(values), step)


def log_panel(loggers: Iterable[Any], key: str, panel: Panel, step: int) -> None:
    """Store a panel of pictures with every logger that can hold one.

    W&B gets the images as media ``<key>/image`` and each attribution's pictures as ``<key>/<name>``, with captions,
    and all of them in one table ``<key>/table`` to filter. The others get the panel's figure: TensorBoard as an image
    ``<key>``, MLflow as artefact ``xai/<key>/step=<step>.png``, CSV as such a file beside ``metrics.csv``. Loggers of
    other kinds, among them the one of ``fast_dev_run``, are passed over.

    A failing logger (no connection, a full disk) never ends a run: its exception becomes one warning that says what
    is lost, and the next panel is tried again in silence. Nothing is collective: call it on rank zero.

    Args:
        loggers: The Trainer's loggers.
        key: From :func:`log_key`.
        panel: The pictures.
        step: The Trainer's global step.

    Example:
        >>> import os, tempfile, torch
        >>> from pytorch_lightning.loggers import CSVLogger
        >>> logger = CSVLogger(tempfile.mkdtemp())
        >>> log_panel([logger], log_key("val", "maps"), Panel(torch.rand(1, 3, 8, 8)), step=100)
        >>> os.listdir(f"{logger.log_dir}/xai/val/xai/maps")
        ['step=00000100.png']
    """
    report = _Report(key, panel, step)
    for logger in loggers:
        store = next((_STORES[name] for name in _class_names(logger) if name in _STORES), None)
        if store is not None:
            with _guard(logger, "its pictures are lost"):
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

    @property
    def file(self) -> str:
        return f"xai/{self.key}/step={self.step:08d}.png"


def _class_names(logger: Any) -> list[str]:
    return [kind.__name__ for kind in type(logger).__mro__]


def _define_metrics(logger: Any, directions: Mapping[str, bool | None]) -> None:
    prefix = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
    for key, higher_is_better in directions.items():
        if higher_is_better is not None:
            # A definition replaces the logger's own for "*", so the step has to be named again.
            summary = "max" if higher_is_better else "min"
            logger.experiment.define_metric(prefix + key, summary=summary, step_metric="trainer/global_step")


def _store_wandb(logger: Any, report: _Report) -> None:
    import wandb  # the logger in use has imported it

    panel = report.panel
    pictures = {"image": panel.images, **panel.overlays}
    if len({"step", "table", *panel.facts, *pictures}) < len(panel.facts) + len(panel.overlays) + 3:
        raise ValueError(
            f"names of attributions expected to differ from step, table, image and {list(panel.facts)}, "
            f"got {list(panel.overlays)}"
        )
    captions = [" | ".join(filter(None, [f"step {report.step}", caption])) for caption in panel.captions]
    columns = {
        name: [wandb.Image(Image.fromarray(array), caption=captions[i]) for i, array in enumerate(as_uint8(tensor))]
        for name, tensor in pictures.items()
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


def _store_mlflow(logger: Any, report: _Report) -> None:
    logger.experiment.log_image(logger.run_id, report.figure, artifact_file=report.file)


def _store_csv(logger: Any, report: _Report) -> None:
    _ = logger.experiment  # makes the folder; it would warn about one that already holds pictures
    with fsspec.open(f"{logger.log_dir}/{report.file}", "wb") as file:  # log_dir may be remote
        Image.fromarray(report.figure).save(file, format="png")


_STORES: dict[str, Callable[[Any, _Report], None]] = {
    "WandbLogger": _store_wandb,
    "TensorBoardLogger": _store_tensorboard,
    "MLFlowLogger": _store_mlflow,
    "CSVLogger": _store_csv,
}
