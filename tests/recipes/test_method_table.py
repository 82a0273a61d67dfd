"""Methods x metrics, from the command line to the tables, and who wins them."""

import doctest
import math

import method_table
import numpy as np
import pytest
from method_table import CONTROLS, METHODS, SHUFFLED, Settings, main
from recipes.image_files import HEN, TENCH, write_images
from torch import tensor

from common.method_report import Found, summary, tables
from common.options import parsed
from lightning_xai.metrics import AbsoluteDrop, AverageDrop, AverageGain, AverageIncrease, RelativePerformance
from lightning_xai.report import Results

FEW = ["--methods", "gradcam", "guided_gradient", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and results of a run on planted evidence, with every method that is usual."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, main(["--fast-dev-run", "--accelerator", "cpu", "--run", str(folder)])


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(method_table).failed == 0


def test_every_metric_of_every_method_and_control_has_the_values_of_each_image(finished):
    """And what is written is what is returned."""
    folder, results = finished
    assert Results.load(folder).values == results.values
    names = {*METHODS, *CONTROLS, SHUFFLED} - method_table.DEAR
    assert len(results.values["columns"]) == 18
    for column in results.values["columns"]:
        assert set(column["methods"]) == names
        lengths = {len(one["values"]) for one in column["methods"].values()}
        assert len(lengths) == 1
    drops = next(one for one in results.values["columns"] if one["title"] == "Average drop, %")
    assert drops["images"] == 2
    assert {"machine", "python"} <= set(results.versions)


def test_similarity_to_randomised_networks_is_that_of_each_layer(finished):
    """Controls that do not see the network fail entirely; no method is below 0, however its map is reversed."""
    _, results = finished
    column = next(one for one in results.values["columns"] if one["group"] == "randomization")
    assert [column["methods"][name]["mean"] for name in CONTROLS] == pytest.approx([1.0] * len(CONTROLS))
    values = [value for one in column["methods"].values() for value in one["values"] if value is not None]
    assert 0 <= min(values) < 0.5


def test_tables_and_figures_are_in_the_run_folder(finished):
    """Every table says who wins; every figure is in the report."""
    folder, results = finished
    figures = {"curves.png", "relative_performance.png", "randomization.png"}
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"results.json", "report.html", "settings.json", *figures}
    assert {one.file for one in results.pictures} == figures
    assert len(results.tables) == 6
    for table in results.tables:
        assert [row[0] for row in table.rows[-2:]] == ["won by", "best method - best control"]


def test_a_resumed_run_measures_what_is_missing_alone(tmp_path, monkeypatch):
    """And ends with the numbers and figures that it would have had."""
    options = [*FEW, "--fast-dev-run", "--metrics", "confidence", "stability", "randomization"]
    options += ["--run", str(tmp_path / "run")]
    whole = main(options)
    (tmp_path / "run" / "parts" / "stability.json").unlink()
    (tmp_path / "run" / "randomization.png").unlink()
    asked = []
    group = method_table.Experiment.group
    monkeypatch.setattr(method_table.Experiment, "group", lambda *a: asked.append(a[-1]) or group(*a))
    again = main([*options, "--resume"])
    assert asked == ["stability"]
    assert again.values["columns"] == whole.values["columns"]
    assert (tmp_path / "run" / "randomization.png").exists()


def test_a_run_is_never_overwritten(finished):
    """Another folder is to be named."""
    folder, _ = finished
    with pytest.raises(SystemExit, match="already holds a run"):
        main(["--fast-dev-run", "--run", str(folder)])


def test_folders_of_photographs_with_and_without_boxes(tmp_path):
    """Without boxes there is no table of where maps lie; groups that are not asked for are left out."""
    write_images(tmp_path / "data" / "val", {TENCH: 2, HEN: 2}, (80, 100))
    boxed = tmp_path / "boxed"
    boxed.mkdir()
    image = tmp_path / "data" / "val" / TENCH / "1.JPEG"
    (boxed / "a.jpg").write_bytes(image.read_bytes())
    (boxed / "boxes.csv").write_text("file,label,xmin,ymin,xmax,ymax\na.jpg,fish,20,20,60,60\n")
    (boxed / "label_to_imagenet.csv").write_text("label,imagenet_indices\nfish,0 1\n")
    options = [*FEW, "--fast-dev-run", "--data", str(tmp_path / "data"), "--model", "test_resnet", "--image-size", "64"]
    first = main([*options, "--metrics", "confidence", "--run", str(tmp_path / "first")])
    assert {one["group"] for one in first.values["columns"]} == {"confidence"}
    second = main(
        [
            *options,
            "--metrics",
            "boxes",
            "--boxed",
            str(boxed),
            "--boxes-images",
            "1",
            "--run",
            str(tmp_path / "second"),
        ]
    )
    assert [one["title"] for one in second.values["columns"]] == [
        "Pointing game",
        "Energy in box",
        "Energy pointing, mean of images",
    ]
    assert second.values["images"]["boxes"] == 1


def test_photographs_without_boxes_have_no_table_of_boxes():
    """As for metrics that were not asked for."""
    counts = parsed(Settings, None, ["--data", "DIR"]).counts
    assert counts["boxes"] == 0 < counts["confidence"]
    counts = parsed(Settings, None, ["--metrics", "boxes", "--boxes-images", "7"]).counts
    assert {group for group, count in counts.items() if count} == {"boxes"}
    assert counts["boxes"] == 7


def found_by(drops):
    """Confidence metrics as if methods had left these probabilities of 0.8."""
    scores = tensor([0.8, 0.8, 0.8]).double().log()
    masked = {name: tensor(left).double().log() for name, left in drops.items()}
    relative = RelativePerformance(tuple(drops), keep_values=True)
    relative.update(scores, masked)
    relative.compute()
    states = {}
    for name, left in masked.items():
        kinds = (AverageDrop, AverageIncrease, AverageGain, AbsoluteDrop)
        states[name] = {kind.__name__: kind(keep_values=True) for kind in kinds}
        for metric in states[name].values():
            metric.update(scores, left)
            metric.compute()
    return {"confidence": Found(states, {"RelativePerformance": relative})}


def test_a_metric_that_a_control_wins_is_shown_to_be_won_by_it():
    """In the results, and in the table beside its difference to the best method."""
    columns = summary(found_by({"cam": [0.4, 0.2, 0.4], "fake": [0.8, 0.8, 0.4]}), ["fake"], seed=0)
    drop = columns[0]
    assert (drop["best"], drop["won_by_control"]) == (["fake"], True)
    assert drop["methods"]["fake"]["mean"] == pytest.approx(50 / 3)
    assert drop["difference"]["methods"] == ["cam", "fake"]
    assert drop["difference"]["mean"] == pytest.approx(125 / 3)
    table = tables(columns[:1], ["fake"])[0]
    rows = dict(table.rows)
    assert table.columns == ["", "Average drop, % ↓ (3)"]
    assert rows["won by"] == "fake (control)"
    assert rows["fake (control)"].startswith("★ 16.7 [")
    assert not rows["cam"].startswith("★")


def test_a_metric_that_a_method_wins_is_not_won_by_a_control():
    """The other way round."""
    columns = summary(found_by({"cam": [0.8, 0.8, 0.4], "fake": [0.4, 0.2, 0.4]}), ["fake"], seed=0)
    assert (columns[0]["best"], columns[0]["won_by_control"]) == (["cam"], False)
    assert ["won by", "cam"] in tables(columns[:1], ["fake"])[0].rows


def test_a_control_that_draws_level_wins_too():
    """Nobody increased anything."""
    columns = summary(found_by({"cam": [0.4, 0.2, 0.4], "fake": [0.8, 0.8, 0.4]}), ["fake"], seed=0)
    assert (columns[1]["best"], columns[1]["won_by_control"]) == (["cam", "fake"], True)


def test_relative_performance_is_the_log_ratio_to_the_first_method():
    """Zero for itself."""
    columns = summary(found_by({"cam": [0.4, 0.2, 0.4], "fake": [0.8, 0.8, 0.4]}), ["fake"], seed=0)
    relative = next(one for one in columns if one["metric"] == "RelativePerformance")
    assert relative["methods"]["cam"]["values"] == [0, 0, 0]
    assert relative["methods"]["fake"]["mean"] == pytest.approx(math.log(2 * 4) / 3)


def test_metrics_without_a_value_have_no_winner():
    """No image is confident enough for relative performance, say."""
    found = found_by({"cam": [0.4, 0.2, 0.4], "fake": [0.8, 0.8, 0.4]})
    for states in found["confidence"].methods.values():
        states["AverageDrop"].values[:] = np.nan
    drop = summary(found, ["fake"], seed=0)[0]
    assert (drop["best"], drop["won_by_control"], drop["difference"]) == ([], False, None)
    assert ["cam", "none"] in tables([drop], ["fake"])[0].rows


def test_images_without_a_value_are_counted_and_left_out():
    """Of the mean, and of the paired difference."""
    found = found_by({"cam": [0.4, 0.2, 0.4], "fake": [0.8, 0.8, 0.4]})
    found["confidence"].methods["cam"]["AverageDrop"].values[1] = np.nan
    drop = summary(found, ["fake"], seed=0)[0]
    assert drop["methods"]["cam"]["undefined"] == 1
    assert drop["methods"]["cam"]["mean"] == pytest.approx(50)
    assert drop["difference"]["mean"] == pytest.approx(25)
    assert tables([drop], ["fake"])[0].text(0, 1).endswith(", 1 without")
