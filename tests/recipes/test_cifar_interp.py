"""The experiment on the training term, at a scale of seconds."""

import io
import json

import numpy as np
import pytest
import torch
from cifar_interp import LAMBDAS, chosen, main, parse
from PIL import Image

from common.data.cifar import CifarResNet, cifar10
from lightning_xai.report import Results
from papers.interpretable_gradients.report import advantage
from papers.interpretable_gradients.term import TEACHERS, squared_norm
from papers.interpretable_gradients.training import Setting, held_out, search


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("cifar") / "run"
    main(["--fast-dev-run", "--run", str(folder)])
    return folder


def table_of(results, title):
    """The table whose title begins so."""
    return next(table for table in results.tables if table.title.startswith(title))


def test_a_run_compares_settings_with_the_same_fixed_maps(finished):
    """Every setting of the comparison has its row, and a row of differences, for every metric."""
    results = Results.load(finished)
    table = table_of(results, "Average drop")
    assert {"gradcam", "gradcam_plus_plus", "scorecam", "another network's gradcam *"} < set(table.columns)
    names = [row[0] for row in table.rows]
    assert "plain" in names
    assert [f"{name} - plain" for name in names if " - plain" not in name and name != "plain"] == [
        name for name in names if " - plain" in name
    ]
    assert {"cosine, loss, lambda 0.0075"} < set(names)
    assert any("every 4" in name for name in names)
    assert any("fraction 0.25" in name for name in names)
    assert (finished / "search.png").stat().st_size > 10_000
    assert (finished / "comparison.png").stat().st_size > 10_000


def test_an_interrupted_run_goes_on_to_the_same_results(finished, tmp_path):
    """A part that is missing is computed again, to the digit."""
    before = Results.load(finished)
    lost = sorted((finished / "parts").glob("final_cosine*seed1.json"))[0]
    (finished / "results.json").rename(tmp_path / "earlier.json")
    lost.unlink()
    main(["--fast-dev-run", "--run", str(finished), "--resume"])
    assert Results.load(finished).values == before.values


def test_fixed_maps_are_equal_for_networks_of_equal_weights(finished):
    """With two steps and a weight of nearly nothing two trainings are nearly one: no metric can tell them apart."""
    found = {(one["weight"], one["teacher"]): one["seeds"][0] for one in Results.load(finished).values["comparison"]}
    plain, literal = found[0.0, "-loss"], found[LAMBDAS[0], "loss"]
    for name in ("gaussian", "edges"):
        assert literal["maps"][name]["AverageDrop"] == pytest.approx(plain["maps"][name]["AverageDrop"], abs=2)


def result(accuracy, gradcam, fixed=50.0):
    """What a training might have given."""
    drops = {"gradcam": gradcam, "gaussian": fixed, "edges": fixed}
    return {"accuracy": accuracy, "maps": {name: {"AverageDrop": drop} for name, drop in drops.items()}}


def test_families_are_chosen_by_their_advantage_at_the_highest_lambda_that_costs_no_accuracy():
    """A lower drop of all maps alike is no advantage; the default family and the control are always among them."""
    best, careless_lambda, second = Setting(0.1, "l1"), Setting(1.0, "l1"), Setting(0.1, teacher="score")
    careless, robust = Setting(0.1, teacher="loss"), Setting(0.1, "l2")
    low, default = Setting(0.1), Setting(1.0)
    norm = Setting(0.1, "gradient norm")
    found = {
        Setting(): result(80, 30),
        careless_lambda: result(70, 5),
        best: result(79, 20),
        second: result(80, 22),
        careless: result(70, 0),
        robust: result(80, 10, fixed=30.0),
        default: result(80, 40),
        low: result(80, 0),
        norm: result(80, 1),
    }
    assert chosen(found) == [best, second, default, norm]
    assert advantage(found[robust]) == 20


def test_the_search_crosses_teachers_modes_and_lambdas():
    """Plain once, 3 x 2 x 4 with the cosine, 5 x 2 of the others, 4 of the control, all different."""
    settings = search(LAMBDAS)
    assert len(settings) == len(set(settings)) == 1 + 24 + 10 + 4
    assert {one.teacher for one in settings} == set(TEACHERS)
    assert len({str(one) for one in settings}) == len(settings)


def test_the_control_is_the_squared_norm_of_each_gradient():
    """It does not look at the guided gradient."""
    assert squared_norm(torch.full((2, 1, 1, 3), 2.0), torch.full((2, 1, 1, 3), torch.nan)).tolist() == [12.0, 12.0]


def test_validation_images_are_not_trained_on():
    """They are the last ones of the training file."""
    splits = held_out(None, 96, 32)
    assert [len(splits[name][1]) for name in ("train", "validation", "test")] == [64, 32, 96]


def test_images_are_read_from_the_compact_file(tmp_path):
    """All JPEG files end to end."""
    files = []
    for shade in (0, 255):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (shade,) * 3).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "cifar10_test.npz", jpeg=jpeg, offsets=offsets, labels=np.array([3, 5]))
    images, labels = cifar10(tmp_path, "test")
    assert labels.tolist() == [3, 5]
    assert images[1, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)
    assert len(cifar10(tmp_path, "test", 1)[0]) == 1


def test_the_network_has_the_parameters_of_the_paper():
    """0.27 million in ResNet-20."""
    assert sum(parameter.numel() for parameter in CifarResNet(3).parameters()) == 269_722


def test_a_finished_folder_is_not_overwritten(finished):
    """It is told how to go on."""
    with pytest.raises(SystemExit, match="--resume"):
        main(["--fast-dev-run", "--run", str(finished)])
    assert json.loads((finished / "settings.json").read_text())["fast_dev_run"]


def test_without_data_the_images_are_generated():
    """So that anyone can try it."""
    assert parse([]).data is None
