"""The dashboard's panels refer to what a real run has logged: to all of it, and to nothing else."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import wandb
from callbacks import wandb_reader
from callbacks.trainers import MEAN, STD, trainer
from integrity.toys import data, trained
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_xai as xai
from common.offline_runs import history, records
from papers.logit_shift.attacks import PositionShift

pytest.importorskip("wandb_workspaces")
with warnings.catch_warnings():
    # wandb-workspaces 0.4 is written for pydantic 1 and says so when it is imported; nothing of ours
    warnings.filterwarnings("ignore", message="Pydantic V1 style `@validator`|Support for class-based `config`")
    import wandb_dashboard
    from wandb_dashboard import Keys, keys_of_history, main, sections_of

EPOCHS = 2
METHODS = {"gradcam": xai.GradCAM("model.relu2"), "gradient": xai.InputGradient()}
CONTROLS = {"random", "gaussian", "edges", "fake_cam", "shuffled"}
PLACE = ["--entity", "team", "--project", "birds"]


class Classifier(xai.GuidedGradientMixin, pl.LightningModule):
    """A trained toy with a planted logit shift, so that the run is flagged, too."""

    def __init__(self) -> None:
        super().__init__()
        self.model = PositionShift("relu2", (1, 2))(trained()).train()
        self.interpretability = xai.GuidedGradientLoss()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.guided_gradient_loss(*batch)[0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.001)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """W&B without a server or a key, all of its files under one folder."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODE": "offline", "SILENT": "true", "BASE_URL": "http://localhost:1"}.items():
            patch.setenv(f"WANDB_{name}", value)
        for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
            patch.setenv(f"WANDB_{name}", str(folder))
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.delenv("WANDB_API_KEY", raising=False)
        wandb_reader.end_run()  # W&B reads the environment when its service starts
        yield folder
        wandb_reader.end_run()


@pytest.fixture(scope="module")
def run(offline: Path) -> Path:
    """Folder of an offline run with everything: trained with the term, followed, measured, watched, tested."""
    standard: dict[str, Any] = {"mean": MEAN, "std": STD}
    metrics = [xai.AverageDrop(), xai.AverageIncrease(), xai.AverageGain()]
    callbacks = [
        xai.SaliencyMaps(METHODS, n_images=2, **standard),
        xai.Faithfulness(METHODS, metrics, n_images=8, **standard),
        xai.ModelIntegrity("model.relu2", action=lambda finding: None),
    ]
    loader = DataLoader(TensorDataset(*data(32)), 16)
    with torch.random.fork_rng():
        running = trainer(
            callbacks=callbacks,
            logger=pl.loggers.WandbLogger(save_dir=offline, project="birds"),
            max_epochs=EPOCHS,
            num_sanity_val_steps=0,
        )
        running.fit(Classifier(), loader, loader)
        running.test(datamodule=None, dataloaders=loader, model=running.model, verbose=False)
    wandb_reader.end_run()
    (folder,) = (offline / "wandb").glob("offline-run-*")
    return folder


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, Any]]:
    """What the run logged."""
    return history(run)


def printed(capsys: pytest.CaptureFixture[str], *options: Any) -> dict[str, Any]:
    """The specification on the screen."""
    main([*PLACE, "--print", *map(str, options)])
    return json.loads(capsys.readouterr().out)


def sections(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels of a view's specification by section."""
    return {one["name"]: one["panels"] for one in view["spec"]["section"]["panelBankConfig"]["sections"]}


def keys_in(panel: dict[str, Any]) -> set[str]:
    """What a panel's specification refers to, beside the step."""
    config = panel["config"]
    if panel["viewType"] == "Weave":
        return {config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]}
    return {*config.get("metrics", []), *config.get("mediaKeys", [])}


def logged_keys(rows: list[dict[str, Any]]) -> set[str]:
    """Keys of what was logged, with media counted once."""
    names = {name for row in rows for name in row}
    media = {name.removesuffix("._type") for name in names if name.endswith("._type")}
    return media | {name for name in names if name.rpartition(".")[0] not in media}


# The view


def test_every_panel_shows_what_the_run_logged_and_nothing_is_left_out(
    run: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """No panel is empty; every key of an explanation, of the term and of accuracy has one."""
    view = printed(capsys, "--offline", run)
    panels = [panel for panels in sections(view).values() for panel in panels]
    shown = set().union(*map(keys_in, panels))
    assert all(map(keys_in, panels))
    logged = logged_keys(rows)
    assert shown <= logged
    assert {key for key in logged - shown if "xai" in key or "train/" in key or "acc" in key} == set()
    axes = {panel["config"]["xAxis"] for panel in panels if panel["viewType"] == "Run History Line Plot"}
    assert axes == {"trainer/global_step"} <= logged


def test_the_view_has_four_sections(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order in which they are read, in the given place under the given name."""
    view = printed(capsys, "--offline", run, "--name", "Maps")
    assert list(sections(view)) == ["Explanations", "Faithfulness", "Training term", "Integrity"]
    assert (view["entity"], view["project"], view["displayName"]) == ("team", "birds", "Maps")


def test_runs_that_are_synced_later_keep_their_panels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The view names no run: a panel shows whatever run has its key."""
    run_id = run.name.rpartition("-")[2]
    assert run_id not in json.dumps(printed(capsys, "--offline", run))


def test_attributions_stand_side_by_side_and_over_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them in one panel beside the image, and each on its own."""
    panels = sections(printed(capsys, "--offline", run))["Explanations"]
    pictures = [panel["config"] for panel in panels if panel["viewType"] == "Media Browser"]
    at_val = [one for one in pictures if one["mediaKeys"][0].startswith("val/")]
    assert [one["mediaKeys"] for one in at_val] == [
        ["val/xai/maps/image", "val/xai/maps/gradcam", "val/xai/maps/gradient"],
        ["val/xai/maps/gradcam"],
        ["val/xai/maps/gradient"],
    ]
    assert at_val[0]["columnCount"] == 3
    assert at_val[1]["gridSettings"] == {"xAxis": "step", "yAxis": "index"}


def test_a_metric_has_one_plot_with_all_methods_and_controls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which says what is better; accuracy comes first."""
    first, *panels = sections(printed(capsys, "--offline", run))["Faithfulness"]
    assert first["config"]["metrics"] == ["val/accuracy"]
    plots = {panel["config"]["chartTitle"]: panel["config"]["metrics"] for panel in panels}
    for title in (
        "val: Average drop, %; lower is better",
        "val: Average gain, %; higher is better",
        "val: Average increase, %; higher is better",
        "test: Average drop, %; lower is better",
    ):
        assert {key.split("/")[2] for key in plots[title]} == {*METHODS, *CONTROLS}


def test_the_term_and_the_verdict_come_in_the_order_of_their_meaning(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses, weight and alignment first; verdict, figures, then the picture of the flagged model."""
    found = sections(printed(capsys, "--offline", run))
    term = [panel["config"]["metrics"][0].rpartition("/")[2] for panel in found["Training term"]]
    assert term[:4] == ["classification_loss", "regularization_loss", "weight", "cosine"]
    watched = found["Integrity"]
    assert watched[0]["config"]["metrics"] == ["val/xai/integrity/flagged", "test/xai/integrity/flagged"]
    media = [panel["config"]["mediaKeys"] for panel in watched if panel["viewType"] == "Media Browser"]
    assert "val/xai/integrity/Grad-CAM raw logit" in media[0]


def test_tables_can_be_filtered_by_class_and_sorted_by_drop(run: Path, rows: list[dict[str, Any]]) -> None:
    """One in each epoch, with the pictures in it."""
    assert sum("val/xai/maps/table._type" in row for row in rows) == EPOCHS
    artifacts = [record.artifact for record in records(run) if record.HasField("artifact")]
    files = {entry.path: entry.local_path for one in artifacts for entry in one.manifest.contents}
    table = json.loads(Path(files["val/xai/maps/table.table.json"]).read_text())
    facts = ["label", "prediction", "probability", "gradcam drop", "gradient drop"]
    assert table["columns"] == ["step", *facts, "image", "gradcam", "gradient"]
    assert all(0 <= drop <= 100 for row in table["data"] for drop in row[4:6])


# The report


def test_a_report_compares_two_runs(run: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]]) -> None:
    """By their ids, with the sections of the view and the settings in which they differ."""
    spec = printed(capsys, "--offline", run, "--report", "abc", "xyz")["spec"]
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    filters = [grid["runSets"][0]["filters"]["filters"][0] for grid in grids]
    assert {(one["key"]["name"], one["op"], tuple(one["value"])) for one in filters} == {("name", "IN", ("abc", "xyz"))}
    first, *others = [grid["panelBankSectionConfig"]["panels"] for grid in grids]
    assert first[0]["viewType"] == "Run Comparer"
    assert len(others) == 4
    shown = set().union(*(keys_in(panel) for panels in others for panel in panels))
    assert shown <= logged_keys(rows)


def test_panels_of_a_report_do_not_cover_one_another(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row by row in a grid of 24 columns."""
    for block in printed(capsys, "--offline", run, "--report", "abc", "xyz")["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            cells: set[tuple[int, int]] = set()
            for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                place = panel["layout"]
                columns = range(place["x"], place["x"] + place["w"])
                mine = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
                assert not cells & mine
                assert max(columns) < 24
                cells |= mine


# Where keys come from


def summary_of(run: Path) -> dict[str, Any]:
    """The run's summary as the server gets it: nested, with the best value alone where a direction was declared."""
    found: dict[str, Any] = {}
    for record in records(run):
        for item in record.summary.update:
            path = list(item.nested_key) or [item.key]
            place = found
            for part in path[:-1]:
                place = place.setdefault(part, {})
            place[path[-1]] = json.loads(item.value_json)
    return found


def test_a_project_on_the_server_gives_the_keys_of_its_runs(
    run: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A synced run has them in its summary; those of several runs are put together."""
    assert Keys.of(summary_of(run)) == keys_of_history(rows)
    other = {"val/xai/other/AverageDrop": "NaN", "_runtime": 1.0}
    runs = [SimpleNamespace(summary_metrics=one) for one in (summary_of(run), other)]
    asked: list[str] = []
    api = SimpleNamespace(
        runs=lambda path, order: asked.append(path) or iter(runs), run=lambda path: asked.append(path) or runs[0]
    )
    monkeypatch.setattr(wandb, "Api", lambda: api)
    view = printed(capsys)
    assert "val/xai/other/AverageDrop" in json.dumps(view)
    printed(capsys, "--report", "abc", "xyz")
    assert asked == ["team/birds", "team/birds/abc", "team/birds/xyz"]


def test_several_dataloaders_and_terms_have_plots_of_their_own() -> None:
    """The index is told; layers of the term share a plot."""
    drops = {f"val/xai/{name}/AverageDrop/dataloader_idx_{i}": 1.0 for name in ("a", "b") for i in range(2)}
    losses = {f"train/guided_gradient{layer}/regularization_loss": 1.0 for layer in ("", "/layer3")}
    found = sections_of(Keys.of({**drops, **losses}))
    plots = {panel.title: panel.y for panel in found["Faithfulness"]}
    assert plots == {
        f"val: Average drop, %; lower is better, dataloader {i}": [
            f"val/xai/{name}/AverageDrop/dataloader_idx_{i}" for name in ("a", "b")
        ]
        for i in range(2)
    }
    assert sorted(found["Training term"][0].y) == sorted(losses)
    assert list(found) == ["Faithfulness", "Training term"]


def test_runs_with_one_and_with_several_dataloaders_keep_their_pictures_apart() -> None:
    """The key of the one is the beginning of the others' keys."""
    bases = ["val/xai/maps", "val/xai/maps/dataloader_idx_0"]
    tables = {f"{base}/table": {"_type": "table-file"} for base in bases}
    images = {f"{base}/{name}": {"_type": "images/separated"} for base in bases for name in ("image", "gradcam")}
    keys = Keys.of({**tables, **images})
    assert [keys.pictures(base) for base in keys.drawn] == [[f"{base}/image", f"{base}/gradcam"] for base in bases]


def test_a_run_that_was_cut_off_is_read_as_far_as_it_goes(run: Path, tmp_path: Path) -> None:
    """As one that is still going on."""
    (file,) = run.glob("*.wandb")
    whole = file.read_bytes()
    rows = history(run)
    for length in (len(whole) // 2, len(whole) - 100, 7, 0):
        (tmp_path / "cut.wandb").write_bytes(whole[:length])
        found = history(tmp_path)
        assert found == rows[: len(found)]


# What can go wrong


@pytest.mark.parametrize("options", [[], ["--report", "abc", "xyz"], ["--print"]])
def test_without_a_key_one_is_told_what_to_do(options: list[str]) -> None:
    """In the words of W&B, and with what needs no key."""
    with pytest.raises(SystemExit, match=r"API key(?s:.*)`wandb login`, or set WANDB_API_KEY; --offline FOLDER"):
        main([*PLACE, *options])


@pytest.mark.parametrize("options", [[], ["--report", "abc", "xyz"]])
def test_saving_keys_of_an_offline_run_needs_a_key_too(run: Path, options: list[str]) -> None:
    """Views and reports are told alike."""
    with pytest.raises(SystemExit, match="wandb login"):
        main([*PLACE, "--offline", str(run), *options])


def test_a_folder_without_a_run_is_told_about(tmp_path: Path) -> None:
    """And so is one with several."""
    with pytest.raises(SystemExit, match=r"expected to hold one offline run \(a file \*.wandb\), got 0 in"):
        main([*PLACE, "--offline", str(tmp_path), "--print"])


def test_a_project_that_explains_nothing_is_told_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to train with."""
    monkeypatch.setattr(wandb_dashboard, "keys_of_project", lambda *_: Keys.of({"loss": 1.0}))
    with pytest.raises(SystemExit, match=r"found none in team/birds\. Train with WandbLogger and SaliencyMaps"):
        main([*PLACE, "--print"])
