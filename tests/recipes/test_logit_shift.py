"""The recipe on logit shifts, from its command line to the files it leaves, and the numbers behind them."""

import dataclasses
import json

import pytest
import torch
from integrity.toys import RectifiedToy, data, trained
from logit_shift import main
from recipes.image_files import HEN, TENCH, write_images
from torch import nn

import lightning_xai as xai
from papers.logit_shift.attacks import PositionShift
from papers.logit_shift.maps import (
    ActivationSum,
    Explained,
    attacks_on,
    layer_in,
    paper_numbers,
    probabilities,
    sensitivity,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and results of a short run on images drawn by the recipe."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with torch.random.fork_rng():
        return folder, main(["--fast-dev-run", "--run", str(folder)])


def subject(kind=None):
    """A trained toy in float64 with sixteen images."""
    model = trained() if kind is None else trained(kind)
    zero, one = [0.0] * 3, [1.0] * 3
    return Explained(model.double(), zero, one, layer="relu2", batch_size=6, images=data(16)[0].double())


def test_a_run_leaves_results_and_figures(finished):
    """Under its folder; labelled as generated."""
    folder, results = finished
    files = {"results.json", "report.html", "settings.json", "network.safetensors", "maps.png", "second_class.png"}
    assert {path.name for path in folder.iterdir() if path.is_file()} == files
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(results)))
    assert "on 8 generated images, of which 4 for the table of methods" in results.summary


def test_tables_show_what_is_immune_and_what_moved(finished):
    """One row for each method and score, one for each model."""
    numbers, sensitivity, verdicts = finished[1].tables
    assert [*numbers.columns] == ["", "(0, 0)", "(-1, -1)"]
    rows = {(row[0], row[1]): row[2:] for row in sensitivity.rows}
    assert set(rows["Grad-CAM", "centred"]) == {"immune"}
    assert rows["Grad-CAM", "raw logit"][0].startswith("moved")
    assert [row[0] for row in verdicts.rows] == [row["model"] for row in finished[1].values["verdicts"]]


def test_predictions_stay_and_centred_maps_too(finished):
    """In float64 to 1e-12, in float32 to a few times eps |t|; wherever t comes from."""
    for numbers in finished[1].values["numbers"].values():
        assert numbers["softmax change in float64"] <= 1e-12
        assert numbers["softmax change in float32"] > 0
        assert numbers["softmax change in float32 / (eps |t|)"] < 4
        assert max(numbers[f"{name} centred change"] for name in ("Grad-CAM", "HiResCAM")) < 1e-9


def test_every_edit_is_flagged_and_repaired(finished):
    """The clean network is not; the one computed from the image is seen at the image alone."""
    rows = {row["model"]: row for row in finished[1].values["verdicts"]}
    edits = ["position", "uniform", "random", "rows", "image"]
    assert list(rows) == ["clean", *(name for edit in edits for name in (edit, f"{edit}, repaired"))]
    assert rows["clean"]["with reference"] == "unchanged"
    for edit in edits:
        assert (rows[edit]["alone"], rows[edit]["with reference"]) == ("logit shift", "logit shift")
        repaired = rows[f"{edit}, repaired"]
        assert repaired["alone"] == "raw and centred maps agree"
        assert repaired["with reference"] in ("unchanged", "the code differs; its maps on the probes do not")
        assert repaired["repair"] > 0.999
    assert rows["position"]["located"] == "model.6 (0, 0)"
    assert rows["image"]["at layer"] == pytest.approx(rows["clean"]["at layer"])


def test_a_run_is_never_written_over(finished):
    """Another folder is to be named."""
    with pytest.raises(SystemExit, match="already holds a run"):
        main(["--fast-dev-run", "--run", str(finished[0])])


def test_images_of_a_folder_and_any_classifier(tmp_path):
    """With the names of ImageNet's classes."""
    write_images(tmp_path / "images" / "val", {TENCH: 4, HEN: 4}, size=(40, 40))
    options = ["--model", "test_resnet", "--layer", "layer3", "--image-size", "32", "--data", str(tmp_path / "images")]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        results = main(["--fast-dev-run", "--run", str(tmp_path / "run"), *options])
    assert results.values["images"] == 8
    assert "test_resnet before and after" in results.summary
    assert "on 8 photographs" in results.summary
    rows = {row["model"]: row for row in results.values["verdicts"]}
    assert rows["position"]["alone"] in ("logit shift", "raw and centred maps differ")
    assert rows["position"]["with reference"] == "logit shift"


@pytest.mark.parametrize("options", [["--data", "x"], ["--weights", "x"]])
def test_data_model_and_layer_belong_together(options, capsys):
    """Said before anything is computed."""
    with pytest.raises(SystemExit):
        main(options)
    assert "beside" in capsys.readouterr().err


def test_sum_of_activations_is_what_a_strong_edit_shows():
    """By hand: the activations of one image, and Grad-CAM's raw map."""
    model, images = trained(), data(2)[0]
    with torch.no_grad():
        pooled = nn.functional.max_pool2d(model.relu1(model.bn1(model.conv1(images))), 2)
        expected = model.relu2(model.conv2(pooled)).sum(1)
    maps = xai.explain(model, images, attributions=ActivationSum("relu2"))
    assert maps.shape == (2, 12, 12)
    torch.testing.assert_close(
        nn.functional.interpolate(expected[:, None], (12, 12), mode="bilinear")[:, 0], maps, rtol=1e-5, atol=1e-6
    )


def test_paper_numbers_tell_gradcam_from_hirescam():
    """Grad-CAM turns into the sum of the activations, HiResCAM's peak goes to the position; nothing else changes."""
    numbers = paper_numbers(subject(), (4, 1), 1000.0)
    assert numbers["Grad-CAM correlation with sum, least"] > 0.99
    assert numbers["Grad-CAM peak at position"] < 0.3
    assert numbers["HiResCAM peak at position"] > 0.8  # where the position has any activation
    assert numbers["largest shift"] > 100


def test_peaks_are_found_in_cells_of_the_layer():
    """Row and column under the largest pixel."""
    from papers.logit_shift.maps import _at, _cells

    maps = torch.zeros(2, 12, 12)
    maps[0, 3, 11], maps[1, 0, 0] = 1, 1
    assert _cells(maps, (6, 6)).tolist() == [[1, 5], [0, 0]]
    assert _at(maps, (6, 6), (1, -1)).tolist() == [True, False]


def test_zero_sum_scores_are_immune_as_proved():
    """What is called proved agrees to the last digits; a proof of nothing would be no proof."""
    one = subject()
    rows = sensitivity(one, attacks_on(one, (0, 0), 10.0))
    assert len(rows) == 8 * 3 * 5
    for row in rows:
        if row["proved"]:
            assert row["agreement"] > 1 - 1e-6, row
            assert row["peaks"] == 0, row
    moved = [row for row in rows if row["agreement"] < 0.9]
    assert {row["score"] for row in moved} == {"raw logit"}
    assert {row["edit"] for row in moved} == {"position", "uniform", "random", "rows", "image"}


def test_rows_are_left_out_where_something_follows_them():
    """As in SqueezeNet: the edit would change the softmax."""
    assert "rows" not in attacks_on(subject(RectifiedToy), (0, 0), 10.0)


def test_layers_are_found_behind_wrappers():
    """Altered once, and repaired on top."""
    model = trained()
    assert layer_in(model, "relu2") == "relu2"
    assert layer_in(PositionShift("model.relu2")(PositionShift("relu2")(model)), "relu2") == "model.model.relu2"


def test_probabilities_leave_the_model_in_its_dtype():
    """They are taken of a copy."""
    one = subject()
    assert probabilities(one, one.network, torch.float32)[0].dtype is torch.float32
    assert next(one.network.parameters()).dtype is torch.float64
