"""The main recipe from its command line to the files it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import imagenet_interp
import pytest
import pytorch_lightning as pl
import torch
from imagenet_interp import Settings, main, usual
from recipes.image_files import HEN, TENCH, write_images
from safetensors.torch import load_file

from common.options import parsed, parser_of
from lightning_xai.panels import read_panel
from lightning_xai.report import Results
from papers.interpretable_gradients.term import SCHEDULES

SCRIPT = Path(imagenet_interp.__file__)
TINY = ["--attributions", "gradcam", "--n-followed", "2", "--n-explained", "8", "--batch-size", "8"]
TINY += ["--accelerator", "cpu", "--seeds", "1", "--start-epochs", "0"]
NETWORK = ["--model", "test_resnet", "--image-size", "32"]

pytestmark = [
    # runs of two batches are shorter than what Lightning logs
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # a resumed run finds its own checkpoints
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def recipe(folder, *options):
    """Run the recipe on two batches of everything."""
    return main([*TINY, "--fast-dev-run", "--run", str(folder), *map(str, options)])


def weights_of(folder, name):
    """The weights that an arm ended with."""
    return load_file(folder / name / "model.safetensors")


def same(first, second):
    """Whether two networks are equal bit by bit."""
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and results of a run on generated images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, recipe(folder, *NETWORK)


def test_a_run_leaves_results_figures_and_both_networks(finished):
    """Everything under one folder, and labelled as generated."""
    folder, results = finished
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    networks = {f"{name}/model.safetensors" for name in ("plain", "guided")}
    assert written >= {"results.json", "report.html", "settings.json", "maps.png", *networks}
    found = Results.load(folder)
    assert found.values == results
    assert results["generated"]
    assert (results["images"], results["explained"]) == (16, 8)
    assert {"machine", "timm", "python"} <= set(found.versions)


def test_worst_and_best_images_of_each_network_have_pictures(finished):
    """By drop and by gain; their values are those that were measured."""
    folder, _ = finished
    found = Results.load(folder)
    assert found.higher_is_better == {"AverageDrop": False, "AverageGain": True}
    for name in ("plain", "guided"):
        drops = json.loads((folder / "parts" / f"{name}.json").read_text())["values"]["gradcam"]["AverageDrop"]
        shown = {int(one.name): one for one in found.images if one.model == name}
        assert {drops.index(min(drops)), drops.index(max(drops))} <= set(shown)
        for i, one in shown.items():
            assert one.values["AverageDrop"]["gradcam"] == drops[i]
            assert read_panel(folder / one.file).columns == ["image", "gradcam"]


def test_every_metric_of_every_method_and_control_is_compared(finished):
    """Accuracy once, three metrics for Grad-CAM and the controls, for both networks and their difference."""
    rows = {(row["metric"], row["attribution"], row["network"]): row for row in finished[1]["rows"]}
    assert len(rows) == len(finished[1]["rows"]) == 3 * (1 + 3 * 6)
    for (metric, attribution, network), row in rows.items():
        assert row["low"] <= row["mean"] <= row["high"]
        if network == "guided - plain":
            plain, guided = (rows[metric, attribution, name]["mean"] for name in ("plain", "guided"))
            assert row["mean"] == pytest.approx(guided - plain, abs=1e-9)


def test_with_lambda_0_both_arms_are_the_same_network(tmp_path):
    """So they begin with the same weights and see the same images; with the term they part."""
    recipe(tmp_path / "none", *NETWORK, "--lambda", 0)
    recipe(tmp_path / "some", *NETWORK, "--lambda", 5, "--schedule", "constant")
    assert same(weights_of(tmp_path / "none", "plain"), weights_of(tmp_path / "none", "guided"))
    assert same(weights_of(tmp_path / "none", "plain"), weights_of(tmp_path / "some", "plain"))
    assert not same(weights_of(tmp_path / "some", "plain"), weights_of(tmp_path / "some", "guided"))


def test_the_term_is_scheduled_over_the_steps_of_the_trainer(tmp_path, monkeypatch):
    """Two steps in a fast run, not what the data would allow."""
    asked = []
    constant = SCHEDULES["constant"]
    monkeypatch.setitem(SCHEDULES, "constant", lambda *a: asked.append(a) or constant(*a))
    recipe(tmp_path / "run", *NETWORK, "--lambda", 0.5, "--schedule", "constant", "--no-compare")
    assert asked == [(0.5, 2)]


def test_pairs_start_from_one_trained_network_and_are_the_unit_of_the_intervals(tmp_path):
    """With lambda 0 each pair is one network twice; the second pair saw the images in another order."""
    folder = tmp_path / "run"
    results = recipe(folder, *NETWORK, "--lambda", 0, "--seeds", 2, "--start-epochs", 1)
    for pair in ("", "-1"):
        assert same(weights_of(folder, f"plain{pair}"), weights_of(folder, f"guided{pair}"))
    assert not same(weights_of(folder, "plain"), weights_of(folder, "plain-1"))
    assert not same(weights_of(folder, "start"), weights_of(folder, "plain"))
    changes = [row for row in results["rows"] if row["network"] == "guided - plain"]
    assert {(row["mean"], row["low"], row["high"]) for row in changes} == {(0.0, 0.0, 0.0)}
    assert "; 2 pairs of networks" in json.loads((folder / "results.json").read_text())["tables"][0]["title"]


def test_without_comparison_one_network_is_trained(tmp_path):
    """And no difference is shown."""
    results = recipe(tmp_path / "run", *NETWORK, "--no-compare")
    assert {row["network"] for row in results["rows"]} == {"guided"}


def test_a_network_of_an_earlier_run_can_be_evaluated(finished, tmp_path):
    """``--weights`` of an arm and ``--epochs 0`` give the numbers of that arm."""
    folder, results = finished
    weights = folder / "guided" / "model.safetensors"
    again = recipe(tmp_path / "run", *NETWORK, "--weights", weights, "--epochs", 0)
    earlier = [row for row in results["rows"] if row["network"] == "guided"]
    assert [row | {"network": "guided"} for row in again["rows"]] == earlier


def test_a_folder_with_unreadable_files_is_trained_on(tmp_path, capsys):
    """They are counted and named on the screen and in the results."""
    write_images(tmp_path / "data" / "train", {"cat": 8, "dog": 8}, (40, 40))
    write_images(tmp_path / "data" / "val", {"cat": 6, "dog": 6}, (40, 40))
    broken = tmp_path / "data" / "val" / "cat" / "0.JPEG"
    broken.write_bytes(b"no image")
    results = recipe(tmp_path / "run", *NETWORK, "--data", tmp_path / "data", "--lr", 1e-3)
    assert results["skipped"] == [str(broken)]
    assert results["images"] == 11
    assert not results["generated"]
    assert f"1 files could not be read: {broken}" in capsys.readouterr().out


def test_validation_images_of_imagenet_are_evaluated_with_1000_classes(tmp_path, capsys):
    """Without training images nothing is trained, which is said."""
    write_images(tmp_path / "data" / "val", {TENCH: 2, HEN: 2}, (40, 40))
    recipe(tmp_path / "run", *NETWORK, "--data", tmp_path / "data", "--epochs", 3)
    assert "There are no training images: the network is evaluated only." in capsys.readouterr().out
    assert len(weights_of(tmp_path / "run", "given")["fc.bias"]) == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "none"], r"FileNotFoundError: `--data` expected a folder with val/<class>/"),
        (["--model", "resnet1"], "ValueError: `--model` expected a classifier of timm or torchvision"),
        (["--weights", "none.ckpt"], "FileNotFoundError: `--weights` expected a file"),
        (["--layer", "layer5"], "ValueError: `layer` .*layer4"),
        (["--model-options", "depth"], "ValueError: `--model-options` expected name=value"),
        (["--model-options", "depth=3"], "TypeError: .*'depth'"),
        (["--model", "no.package:network"], "ModuleNotFoundError: No module named 'no'"),
        (["--mean", "123.7", "116.3", "103.5"], r"ValueError: `--mean` and `--std` expected .*divide by 255"),
        (["--model", "tf_efficientnet_b0", "--lambda", "0.1"], "ValueError: .*rectif"),
    ],
)
def test_a_bad_command_line_ends_with_one_line_and_leaves_no_folder(options, message, tmp_path):
    """The next try can use the same folder."""
    with pytest.raises(SystemExit, match=message):
        recipe(tmp_path / "run", *NETWORK, *options)
    assert not (tmp_path / "run").exists()


def test_guided_gradients_are_left_out_without_rectifiers(tmp_path, capsys):
    """The other methods are measured."""
    options = ["--model", "efficientnet_b0", "--epochs", 0, "--attributions", "gradcam", "guided_gradient"]
    results = recipe(tmp_path / "run", "--image-size", 32, *options)
    assert "guided_gradient is left out: " in capsys.readouterr().out
    controls = {"random", "gaussian", "edges", "fake_cam", "shuffled"}
    assert {row["attribution"] for row in results["rows"]} == {"", "gradcam", *controls}


def test_a_network_without_relu_is_trained_with_the_term_and_explained_by_guided_gradients(tmp_path):
    """Where smooth rectifiers count."""
    options = ["--model", "efficientnet_b0", "--lambda", 0.1, "--rectifiers", "all", "--max-steps", 1, "--no-compare"]
    results = recipe(tmp_path / "run", "--image-size", 32, *options, "--attributions", "guided_gradient")
    assert "guided_gradient" in {row["attribution"] for row in results["rows"]}


def test_a_folder_that_holds_a_run_is_refused_and_untouched(finished):
    """Nothing is written over."""
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(SystemExit, match=r"already holds a run. Go on with it: --resume; or another folder: --run"):
        recipe(folder, *NETWORK)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resuming_needs_a_run_and_its_settings(finished, tmp_path):
    """What differs is named."""
    with pytest.raises(SystemExit, match=r"--resume expected a run in .*, found none"):
        recipe(tmp_path / "run", *NETWORK, "--resume")
    with pytest.raises(SystemExit, match=r"these differ: \['lambda_', 'lr'\]"):
        recipe(finished[0], *NETWORK, "--resume", "--lambda", 9, "--lr", 1)


def test_resuming_keeps_an_arm_that_was_finished(tmp_path, monkeypatch, capsys):
    """Only the other one is worked on, from its checkpoint, and the results are the same."""
    results = recipe(tmp_path / "run", *NETWORK)
    (tmp_path / "run" / "parts" / "guided.json").unlink()
    capsys.readouterr()
    started = []
    fit = pl.Trainer.fit
    monkeypatch.setattr(pl.Trainer, "fit", lambda *a, **k: started.append(k["ckpt_path"]) or fit(*a, **k))
    again = recipe(tmp_path / "run", *NETWORK, "--resume")
    assert started == [tmp_path / "run" / "guided" / "checkpoints" / "last.ckpt"]
    assert "plain: lambda" not in capsys.readouterr().out
    assert again["rows"] == results["rows"]


def test_resuming_after_an_interrupted_fit_goes_on_from_the_last_epoch(tmp_path, monkeypatch):
    """Two epochs in all, the second one in the second run."""
    options = [*TINY, *NETWORK, "--no-compare", "--epochs", "2", "--data", str(tmp_path / "data")]
    options += ["--run", str(tmp_path / "run")]
    for split in ("train", "val"):
        write_images(tmp_path / "data" / split, {"cat": 8, "dog": 8}, (40, 40))
    epochs = []

    def begin(self):
        epochs.append(self.current_epoch)
        if epochs == [0, 1]:
            raise RuntimeError("The power went off.")

    monkeypatch.setattr(imagenet_interp.Classifier, "on_train_epoch_start", begin)
    with pytest.raises(RuntimeError, match="power"):
        main(options)
    main([*options, "--resume"])
    assert epochs == [0, 1, 1]


@pytest.mark.parametrize("loggers", [["csv", "tensorboard"], []])
def test_any_number_of_loggers_is_fine(loggers, tmp_path):
    """Several at once, or none."""
    recipe(tmp_path / "run", *NETWORK, "--no-compare", "--logger", *loggers)
    found = {path.name for path in (tmp_path / "run" / "guided").iterdir()}
    assert found & {"csv_0", "tensorboard"} == ({"csv_0", "tensorboard"} if loggers else set())


def test_every_option_is_explained():
    """In one line of ``--help`` each."""
    explained = {action.option_strings[0]: action.help for action in parser_of(Settings, "")._actions}
    assert {"--data", "--model", "--weights", "--pretrained", "--error", "--lambda", "--schedule", "--compare"} <= set(
        explained
    )
    assert {"--logger", "--precision", "--resume", "--seed", "--strategy", "--devices", "--num-nodes"} <= set(explained)
    assert all(text and "\n" not in text for text in explained.values())


def parse(words):
    """The settings of a command line."""
    return parsed(Settings, "", words, usual)


def test_presets_are_defaults_that_the_command_line_overrides():
    """``paper`` has the settings of the paper."""
    paper = parse(["--data", "DIR", "--preset", "paper"])
    assert (paper.optimizer, paper.lr, paper.data.batch_size, paper.epochs) == ("adam", 1e-5, 100, 5)
    assert (paper.lr_schedule, paper.term.teacher) == ("plateau", "loss")
    other = parse(["--data", "DIR", "--preset", "paper", "--lr", "0.1", "--lr-schedule", "constant"])
    assert (other.lr, other.lr_schedule, other.data.batch_size) == (0.1, "constant", 100)
    assert (parse([]).preset, parse(["--data", "DIR"]).preset) == ("generated", "finetune")


def test_options_of_the_presets_network_are_not_given_to_another():
    """Constructors differ."""
    assert parse(["--model", "resnet18"]).model.model_options == ()


def started_as_a_script(folder, *options):
    """The recipe in a process of its own."""
    command = [sys.executable, SCRIPT, *TINY, "--fast-dev-run", "--run", folder, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300)


def test_the_script_runs(tmp_path):
    """With its own network; the tables are on the screen."""
    done = started_as_a_script(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Means over 16 generated test images, of which 8 were explained" in " ".join(done.stdout.split())
    assert "Average drop, %; lower is better" in done.stdout


def test_the_script_ends_with_one_line_where_the_command_line_is_wrong(tmp_path):
    """No traceback."""
    done = started_as_a_script(tmp_path / "run", "--data", tmp_path / "none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "`--data` expected a folder with val/<class>/" in done.stderr


@pytest.mark.slow
def test_two_processes_report_once(tmp_path):
    """Every image of both is counted; one process prints and writes."""
    done = started_as_a_script(tmp_path / "run", *NETWORK, "--devices", 2, "--strategy", "ddp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Means over") == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())["values"]
    assert (results["images"], results["explained"]) == (32, 8)
