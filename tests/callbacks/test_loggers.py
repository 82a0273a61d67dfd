"""Every logger gets its metrics' directions and pictures; no failure of one ends a run. Real loggers, read back."""

import csv
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from callbacks import wandb_reader
from callbacks.trainers import MEAN, STD, classifier, loader, trainer
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from lightning_xai import AverageDrop, Faithfulness, GradCAM, ModelIntegrity, SaliencyMaps
from lightning_xai.callbacks.loggers import declare_metrics, log_panel
from lightning_xai.log_keys import LogKey
from lightning_xai.panels import read_panel
from lightning_xai.visualization import Panel, as_uint8, raster

# mlflow's tables use a loader strategy that SQLAlchemy 2.1 deprecates; it is said when mlflow's store is imported.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

KEY = "val/xai/saliency"


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def loggers(request: pytest.FixtureRequest) -> ModuleType:
    """The loggers of each of the two packages that ship Lightning."""
    pytest.importorskip(request.param)
    return importlib.import_module(f"{request.param}.loggers")


@pytest.fixture
def panel() -> Panel:
    """Two images of noise, explained twice."""
    torch.manual_seed(0)
    facts = {"label": ["cat", "dog"], "prediction": ["dog", "dog"], "probability": [0.75, 0.5]}
    return Panel(torch.rand(2, 3, 16, 16), {"gradcam": torch.rand(2, 3, 16, 16), "b": torch.rand(2, 3, 16, 16)}, facts)


def figure(panel: Panel, step: int) -> np.ndarray:
    """What loggers without tables should show."""
    return raster(panel.figure(f"{KEY}, step {step}"))


def test_importing_loads_no_logger() -> None:
    """The packages of loggers are optional, and slow to import."""
    code = (
        "import sys, lightning_xai.callbacks.loggers;"
        "assert not {'wandb', 'mlflow', 'tensorboard', 'tensorboardX'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Weights & Biases


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without a server, all of its files under the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for folder in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(folder, str(tmp_path))
    wandb_reader.end_run()  # W&B reads the environment when its service starts
    yield
    wandb_reader.end_run()


def test_wandb_shows_each_attribution_with_captions_at_the_global_step(
    offline: None, loggers: ModuleType, panel: Panel, tmp_path: Path
) -> None:
    """One row of media at each step, also at a step below W&B's own; the pixels are those of the panel."""
    logger = loggers.WandbLogger(save_dir=tmp_path)
    for step in (7, 3):
        log_panel([logger], KEY, panel, step)
    wandb_reader.end_run()

    rows = [row for row in wandb_reader.history(tmp_path) if f"{KEY}/gradcam._type" in row]
    assert [row["trainer/global_step"] for row in rows] == [7, 3]
    assert rows[0][f"{KEY}/gradcam.captions"] == [
        "step 7 | label cat | predicted dog (0.75)",
        "step 7 | label dog | predicted dog (0.50)",
    ]
    (files,) = (path.parent for path in tmp_path.glob("wandb/offline-run-*/files/media"))
    for name, pictures in {"image": panel.images, **panel.overlays}.items():
        shown = [np.asarray(Image.open(files / file)) for file in rows[1][f"{KEY}/{name}.filenames"]]
        assert np.array_equal(shown, as_uint8(pictures))


def test_wandb_gets_one_table_with_facts_and_pictures(
    offline: None, loggers: ModuleType, panel: Panel, tmp_path: Path
) -> None:
    """The table can be filtered by step and facts, and its cells are the pictures."""
    log_panel([loggers.WandbLogger(save_dir=tmp_path)], KEY, panel, 7)
    wandb_reader.end_run()

    (row,) = [row for row in wandb_reader.history(tmp_path) if f"{KEY}/table._type" in row]
    assert row["trainer/global_step"] == 7
    artifacts = [record.artifact for record in wandb_reader.records(tmp_path) if record.HasField("artifact")]
    (manifest,) = [artifact.manifest for artifact in artifacts if artifact.type == "run_table"]
    files = {entry.path: Path(entry.local_path) for entry in manifest.contents}
    table = json.loads(files[f"{KEY}/table.table.json"].read_text())
    assert table["columns"] == ["step", "label", "prediction", "probability", "image", "gradcam", "b"]
    assert table["data"][0][:4] == [7, "cat", "dog", 0.75]
    cells = [np.asarray(Image.open(files[row[5]["path"]])) for row in table["data"]]
    assert np.array_equal(cells, as_uint8(panel.overlays["gradcam"]))


def test_wandb_knows_the_direction_of_each_metric(offline: None, loggers: ModuleType, tmp_path: Path) -> None:
    """A definition of our own keeps the step that the logger defines for all; no direction, no definition."""
    logger = loggers.WandbLogger(save_dir=tmp_path, prefix="fold")
    directions = {"gain": True, "drop": False, "peak": None}
    declare_metrics([logger], {LogKey("val", "a", name): better for name, better in directions.items()})
    logger.log_metrics({"val/xai/a/drop": 2.0}, step=1)
    logger.log_metrics({"val/xai/a/drop": 3.0}, step=2)
    wandb_reader.end_run()

    metrics = wandb_reader.metrics(tmp_path)
    gain, drop = metrics["fold-val/xai/a/gain"], metrics["fold-val/xai/a/drop"]
    assert (gain.summary.max, gain.summary.min) == (True, False)
    assert (drop.summary.max, drop.summary.min) == (False, True)
    assert gain.step_metric == drop.step_metric == "trainer/global_step"
    assert "fold-val/xai/a/peak" not in metrics
    summaries = [record.summary.update for record in wandb_reader.records(tmp_path) if record.HasField("summary")]
    values = [json.loads(item.value_json) for update in summaries for item in update if "drop" in str(item)]
    assert values[-1] == {"min": 2.0}


def test_wandb_switched_off_is_fine(
    offline: None, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WANDB_MODE=disabled takes everything and stores nothing."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(save_dir=tmp_path)
    declare_metrics([logger], {LogKey("val", "a", "gain"): True})
    log_panel([logger], KEY, panel, 7)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", ["step", "table", "image", "label"])
def test_wandb_columns_cannot_hide_one_another(offline: None, panel: Panel, tmp_path: Path, name: str) -> None:
    """An attribution with the name of another column is told about, not drawn over it."""
    clash = Panel(panel.images, {name: panel.images}, panel.facts)
    with pytest.warns(UserWarning, match=rf"expected to differ from step, table, image and .* got \['{name}'\]"):
        log_panel([WandbLogger(save_dir=tmp_path)], KEY, clash, 7)


# TensorBoard, MLflow, CSV


def test_tensorboard_gets_the_figure_at_each_step(
    loggers: ModuleType, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image tag; its steps can be moved through."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.TensorBoardLogger(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would choose a backend
    for step in (3, 7):
        log_panel([logger], KEY, panel, step)
    logger.experiment.close()

    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == [KEY]
    images = events.Images(KEY)
    assert [image.step for image in images] == [3, 7]
    (tmp_path / "image.png").write_bytes(images[1].encoded_image_string)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), figure(panel, 7))


def test_mlflow_gets_the_figure_with_a_slider_over_steps(loggers: ModuleType, panel: Panel, tmp_path: Path) -> None:
    """Under one key, which MLflow's page moves through; the key may hold what MLflow does not take."""
    mlflow = pytest.importorskip("mlflow")

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = loggers.MLFlowLogger(tracking_uri=uri, artifact_location=str(tmp_path / "artefacts"))
    for step in (3, 100):
        log_panel([logger], KEY, panel, step)
    log_panel([logger], f"{KEY} (a)", panel, 1)

    client = mlflow.MlflowClient(uri)
    listed = [one.path for one in client.list_artifacts(logger.run_id, "images") if one.path.endswith(".png")]
    assert len(listed) == 3
    (path,) = [one for one in listed if "step%100%" in one or "step+100+" in one]
    file = client.download_artifacts(logger.run_id, path, str(tmp_path))
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), figure(panel, 100))


def test_tensorboard_has_a_chart_of_each_metric_with_all_methods(loggers: ModuleType, tmp_path: Path) -> None:
    """On its page "Custom scalars"; keys that come later join, and nothing is written twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    logger = loggers.TensorBoardLogger(tmp_path)
    for _ in range(2):
        for stage in ("val", "test"):
            names = ("gradcam", "random")
            declare_metrics([logger], {LogKey(stage, name, "AverageDrop"): False for name in names})
    logger.experiment.close()

    events = EventAccumulator(logger.log_dir).Reload().Tensors("custom_scalars__config__")
    assert len(events) == 2
    layout = layout_pb2.Layout.FromString(events[-1].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["xai, val", "xai, test"]
    (chart,) = layout.category[0].chart
    assert chart.title == "Average drop, %; lower is better"
    assert list(chart.multiline.tag) == ["^val/xai/gradcam/AverageDrop$", "^val/xai/random/AverageDrop$"]


def test_csv_gets_pictures_beside_its_metrics(loggers: ModuleType, panel: Panel, tmp_path: Path) -> None:
    """Files are named by step; the scalars' file is written as ever."""
    logger = loggers.CSVLogger(tmp_path)
    log_panel([logger], KEY, panel, 100)
    logger.log_metrics({"loss": 1.0}, step=100)
    logger.save()

    folder = Path(logger.log_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", "xai"]
    stored = read_panel(folder / f"xai/{KEY}/step=00000100")
    assert (stored.columns, stored.captions) == (["image", *panel.overlays], panel.captions)
    for name, pictures in {"image": panel.images, **panel.overlays}.items():
        for row, pixels in enumerate(as_uint8(pictures)):
            assert np.array_equal(np.asarray(Image.open(stored.tile(name, row))), pixels)


def test_csv_pictures_follow_the_logger_to_remote_folders(panel: Panel, tmp_path: Path) -> None:
    """A log folder with a protocol is no local folder of that name."""
    import fsspec

    class Remote(CSVLogger):
        log_dir = "memory://run"

    log_panel([Remote(tmp_path)], KEY, panel, 1)
    with fsspec.open(f"memory://run/xai/{KEY}/step=00000001/0_0.webp") as file:
        assert np.array_equal(np.asarray(Image.open(file)), as_uint8(panel.images)[0])


def test_wandb_keys_are_one_line(offline: None, tmp_path: Path) -> None:
    """Names that are broken into lines for a figure are parts of file names here."""
    broken = Panel(torch.rand(1, 3, 8, 8), {"Grad-CAM\nraw logit": torch.rand(1, 3, 8, 8)})
    log_panel([WandbLogger(save_dir=tmp_path)], KEY, broken, 7)
    wandb_reader.end_run()
    assert any(f"{KEY}/Grad-CAM raw logit._type" in row for row in wandb_reader.history(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if "\n" in path.name]


# Several, none, others, failing


def test_several_loggers_share_one_drawing(
    offline: None, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are served; the figure, the dearest part, is drawn once."""
    pytest.importorskip("tensorboard")
    drawn = []
    draw = Panel.figure
    monkeypatch.setattr(Panel, "figure", lambda *arguments: drawn.append(1) or draw(*arguments))
    several = [WandbLogger(save_dir=tmp_path), TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")]
    log_panel(several, KEY, panel, 1)
    several[1].experiment.close()
    assert len(drawn) == 1
    assert len(list(tmp_path.rglob("files/media/images/**/*.png"))) == 6
    assert len(list((tmp_path / "csv").rglob("panel.json"))) == 1
    assert len(list((tmp_path / "tb").rglob("events*"))) == 1


def test_subclasses_of_loggers_are_known(panel: Panel, tmp_path: Path) -> None:
    """A user's own CSV logger is a CSV logger."""

    class Mine(CSVLogger):
        pass

    log_panel([Mine(tmp_path)], KEY, panel, 1)
    assert len(list(tmp_path.rglob("panel.json"))) == 1


def test_no_logger_and_unknown_ones_are_passed_over_in_silence(
    panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drawn, said or written for nobody, for fast_dev_run's logger and for kinds we do not know."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Panel, "figure", None)
    for several in ([], [DummyLogger()], [object()]):
        declare_metrics(several, {LogKey("val", "a", "gain"): True})
        log_panel(several, KEY, panel, 1)
    assert not list(tmp_path.iterdir())


def broken_logger(folder: Path) -> CSVLogger:
    """A logger that cannot make its folder of pictures: a file is in the way."""
    logger = CSVLogger(folder)
    _ = logger.experiment
    (Path(logger.log_dir) / "xai").touch()
    return logger


def test_a_failing_logger_warns_once_and_the_others_are_served(panel: Panel, tmp_path: Path) -> None:
    """The warning names the logger, the cause and the loss; each broken logger has its own."""
    several = [broken_logger(tmp_path / "a"), broken_logger(tmp_path / "b"), CSVLogger(tmp_path / "c")]
    with pytest.warns(UserWarning, match=r"CSVLogger failed: its pictures are lost.*once\. \w+Error: .*xai") as caught:  # noqa: PT031
        for step in range(3):
            log_panel(several, KEY, panel, step)
    assert len(caught) == 2
    assert Path(caught[0].filename).name == "test_loggers.py"
    assert len(list((tmp_path / "c").rglob("panel.json"))) == 3


def test_a_logger_that_recovers_is_served_again(panel: Panel, tmp_path: Path) -> None:
    """Space that was made, or a connection that came back, is used."""
    logger = broken_logger(tmp_path)
    with pytest.warns(UserWarning, match="CSVLogger failed"):
        log_panel([logger], KEY, panel, 1)
    (Path(logger.log_dir) / "xai").unlink()
    log_panel([logger], KEY, panel, 2)
    assert [file.parent.name for file in tmp_path.rglob("panel.json")] == ["step=00000002"]


def test_a_full_disk_warns_and_goes_on(panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened and the first byte does not fit; nothing half written stays."""
    logger = CSVLogger(tmp_path)

    def full(path: Path, mode: str) -> Any:
        path.touch()
        return open("/dev/full", "wb", buffering=0)

    monkeypatch.setattr(Path, "open", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        log_panel([logger], KEY, panel, 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class PatientLogger(CSVLogger):
    """What the documentation of the callbacks advises."""

    def save(self) -> None:
        with suppress(OSError):
            super().save()


def fitted(folder: Path, lose: Callable[[], object]) -> tuple[PatientLogger, list[torch.Tensor]]:
    """The logger and the weights after three epochs with all callbacks; the disk is lost after the first."""
    options: dict[str, Any] = {"attributions": {"gradcam": GradCAM("conv2")}, "mean": MEAN, "std": STD}
    callbacks: list[Any] = [SaliencyMaps(**options), Faithfulness(metrics=[AverageDrop()], **options), ModelIntegrity()]
    callbacks.append(LambdaCallback(on_train_epoch_end=lambda on, _: None if on.current_epoch else lose()))
    logger, module = PatientLogger(folder, flush_logs_every_n_steps=1), classifier()
    trainer(callbacks=callbacks, logger=logger, max_epochs=3).fit(module, loader(8, 2), loader(8, 2))
    return logger, [parameter.detach().clone() for parameter in module.parameters()]


def rows_of(logger: PatientLogger) -> list[dict[str, str]]:
    """What it has written at last."""
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_training_goes_on_without_its_disk(code: int, tmp_path: Path) -> None:
    """Full or read-only: weights and rows of a run with a disk, and one warning of the pictures."""
    logger, expected = fitted(tmp_path / "whole", lambda: None)
    rows = rows_of(logger)

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with pytest.MonkeyPatch.context() as disk:

        def lose() -> None:
            disk.setattr(Path, "open", failing)
            disk.setattr(LocalFileSystem, "open", failing)

        with pytest.warns(UserWarning, match="its pictures are lost") as said:
            logger, weights = fitted(tmp_path / "lost", lose)
    assert sum("lost" in str(one.message) for one in said) == 1, [str(one.message)[:90] for one in said]
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    assert rows_of(logger) == rows
    assert len({file.parent.name for file in tmp_path.glob("lost/**/panel.json")}) == 1


def test_training_goes_on_where_its_folder_is_deleted(tmp_path: Path) -> None:
    """What comes later is stored."""
    _, expected = fitted(tmp_path / "whole", lambda: None)
    logger, weights = fitted(tmp_path / "lost", lambda: shutil.rmtree(tmp_path / "lost"))
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    assert rows_of(logger)
    assert len({file.parent.name for file in tmp_path.glob("lost/**/panel.json")}) == 2


def test_a_folder_that_was_deleted_is_made_again(panel: Panel, tmp_path: Path) -> None:
    """What comes later is stored."""
    logger = CSVLogger(tmp_path)
    log_panel([logger], KEY, panel, 1)
    shutil.rmtree(logger.log_dir)
    log_panel([logger], KEY, panel, 2)
    assert [file.parent.name for file in tmp_path.rglob("panel.json")] == ["step=00000002"]


def test_a_panel_that_was_interrupted_has_no_facts(panel: Panel, tmp_path: Path) -> None:
    """They are written last, so that readers know; each file is whole."""
    logger = CSVLogger(tmp_path)
    written: list[Path] = []

    def killed(self: Path, target: Path) -> Path:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(target)
        return move(self, target)

    move = Path.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            log_panel([logger], KEY, panel, 1)
    files = [path for path in tmp_path.rglob("step=*/*") if path.is_file()]
    assert sorted(files) == sorted(written)
    assert not list(tmp_path.rglob("panel.json"))


def test_failing_directions_and_failing_pictures_are_told_apart(
    offline: None, panel: Panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lose different things, so each is said, once."""

    def no_run(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", no_run)
    logger = WandbLogger(save_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"WandbLogger failed: .* ConnectionError: no route") as caught:  # noqa: PT031
        for _ in range(2):
            declare_metrics([logger], {LogKey("val", "a", "gain"): True})
            log_panel([logger], KEY, panel, 1)
    assert ["the direction of metrics" in str(warning.message) for warning in caught] == [True, False]


def test_interrupting_is_not_swallowed(panel: Panel, tmp_path: Path) -> None:
    """Ctrl-C during a slow upload still ends the run."""

    class Interrupted(CSVLogger):
        @property
        def log_dir(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log_panel([Interrupted(tmp_path)], KEY, panel, 1)
