"""What the choice of the score does: worked examples to the digit, measures on toys, and the recipe end to end."""

import doctest
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import score_choice
import torch
from recipes.image_files import HEN, TENCH, write_images
from score_choice import main, parse
from torch import nn

import lightning_xai as xai
from common.subject import Subject
from lightning_xai.report import Results
from papers.score_choice import examples as score_examples
from papers.score_choice import maps as score_maps
from papers.score_choice import report as score_report
from papers.score_choice.maps import (
    METHODS,
    ROUNDED,
    SCORES,
    Chunk,
    GradientNorm,
    measured,
    peak_moved,
)

QUICK = ["--fast-dev-run", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and results of a short run on images drawn by the recipe."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with torch.random.fork_rng():
        return folder, main([*QUICK, "--run", str(folder)])


def cells(table):
    """Numbers of a table's rows by the name of the row."""
    return {row[0]: row[1:] for row in table.rows}


def of(values, *names):
    """The numbers of one quantity, method and scores."""
    return score_report.numbers(values, *names).tolist()


def pooled(weights):
    """A network whose logits are linear in the mean activations of its layer 0, float32."""
    head = nn.Linear(len(weights[0]), len(weights), bias=False)
    head.weight.data = torch.tensor(weights)
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def subject_of(weights, batch_size=4):
    """A linear classifier of mean colours."""
    return Subject(pooled(weights), [0.0] * 3, [1.0] * 3, layer="0", batch_size=batch_size)


def chunk_of(images, targets=xai.scores.predicted, masks=None, n_path=0):
    """Images without labels."""
    return Chunk(images, torch.zeros(len(images), dtype=torch.long), targets, masks, n_path, n_steps=4)


@pytest.mark.parametrize("module", [score_choice, score_examples, score_maps, score_report])
def test_the_examples_run(module):
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(module).failed == 0


def test_a_shift_of_all_logits_changes_the_pre_softmax_gradient_alone():
    """Section II.B, first case: (1, 2) becomes (11, -8); nothing else changes, on paths neither."""
    found = cells(score_examples.shift_paradox())
    assert found["dz_c/dx, x1"] == pytest.approx([1, 1, 11, 11])
    assert found["dz_c/dx, x2"] == pytest.approx([2, 2, -8, -8])
    y = math.exp(2) / (math.exp(2) + math.exp(-0.5) + math.exp(-1))
    assert found["y_c, eq. 8"] == pytest.approx([y] * 4)
    assert found["IG of z_c, x2"] == pytest.approx([1, 1, -4, -4])
    for name, (hand, ours, hand_shifted, ours_shifted) in found.items():
        if "z_c" not in name or "mean" in name:
            assert ours_shifted == pytest.approx(ours, abs=1e-12), name
        if hand is not None:
            assert (ours, ours_shifted) == pytest.approx((hand, hand_shifted), abs=1e-12), name


def test_inputs_that_move_all_logits_alike_have_no_post_softmax_gradient():
    """Section II.B, second case: K1 and K2 are seen by the pre-softmax score alone, which ranks them either way."""
    found = cells(score_examples.equal_influence_paradox())
    assert found["dz_c/dx, x1"] == pytest.approx([5, 5, 0.5, 0.5])
    assert found["dz_c/dx, x2"] == pytest.approx([0.5, 0.5, 5, 5])
    for name in ("dy_c/dx, eq. 10", "d(z_c - mean z)/dx"):
        assert [*found[f"{name}, x1"], *found[f"{name}, x2"]] == pytest.approx([0] * 8, abs=1e-12)
    e = math.exp(1)
    y = e / (e + 1 + 1 / e)
    assert found["y_c"] == pytest.approx([y] * 4)
    assert found["dy_c/dx, eq. 10, x3"] == pytest.approx([y * (1 - y + y * e**-2)] * 4)


def test_both_sides_of_every_equation_agree_but_those_of_eq_18_as_printed():
    """Which is off by 1 / y_c^2."""
    ratios = {name: row[-1] for name, row in cells(score_examples.loss_equations()).items()}
    y = math.exp(2) / (math.exp(2) + math.exp(-0.5) + math.exp(-1))
    assert ratios.pop("eq. 18, printed: dy_c/dx = -d exp(L)/dx") == pytest.approx(y**-2)
    assert list(ratios.values()) == pytest.approx([1.0] * 6)


def test_torch_softmax_loses_the_gradient_of_certain_classes_in_float32_and_the_library_does_not():
    """Beyond a margin of about 17; the centred score's gradient stays 2/3 throughout."""
    found = {name: [float(cell) for cell in row] for name, row in cells(score_examples.saturation_by_margin()).items()}
    for margin in ("18", "25", "50"):
        exact, post_torch, post, log_torch, log, centred = found[margin]
        assert exact > 0
        assert post_torch == log_torch == 0
        assert [post, log] == pytest.approx([exact] * 2, rel=0.02)
        assert centred == pytest.approx(0.667)


def test_what_torch_softmax_leaves_of_the_gradient_in_float32_does_not_sum_to_zero():
    """The part of the class is lost where the probability is rounded to 1, those of the others are not."""
    score = score_examples.in_dtype(score_examples.torch_softmax, torch.float32)
    found = score_examples.gradient(score_examples.UNIT, (25.0, 0.0, 0.0), score)
    assert found == pytest.approx([0.0, -math.exp(-25), -math.exp(-25)], rel=1e-3)


def test_two_trainings_end_in_one_function_with_other_pre_softmax_maps():
    """A vector that is added to all rows of the last layer is not seen by training."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = score_examples.two_trainings(1, 32, SCORES)
    assert torch.equal(torch.get_rng_state(), before)
    assert found["largest difference of a probability"] < 1e-12
    assert found["pre-softmax"] < 0.9
    assert min(found[name] for name in SCORES if name != "pre-softmax") > 1 - 1e-6


def test_gradient_norm_is_the_length_of_the_gradient():
    """Of z_0 = (3 a + 4 b) / 2 with respect to two pixels of two channels: 5 / 2 sqrt(2)."""
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    model[3].weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    maps = xai.explain(
        model, torch.ones(1, 2, 1, 2).double(), 0, attributions=GradientNorm("0", xai.scores.pre_softmax)
    )
    assert maps.flatten().tolist() == pytest.approx([5 / 2**0.5] * 2)


def test_lengths_are_those_of_theory_where_the_softmax_saturates():
    """Two classes: d log p = (1 - p) d(z_0 - z_1), d p = p of that, and half of d(z_0 - z_1) for the centred score."""
    images = torch.tensor([1.0, 4.0, 16.0, 40.0])[:, None, None, None].expand(4, 3, 2, 2).clone()
    values, _ = measured(subject_of([[0.5, 0.25, 0.25], [-0.5, 0.25, -0.75]]), chunk_of(images))
    margins = [2.0 * x for x in (1.0, 4.0, 16.0, 40.0)]
    left = [math.exp(-m) / (1 + math.exp(-m)) for m in margins]
    assert of(values, "1 - p") == pytest.approx(left, rel=1e-9)
    length = math.sqrt(1 + 1) / 2  # of d(z_0 - z_1), whose weights (1, 0, 1) are spread over four pixels
    assert of(values, "norm", "", "log-softmax") == pytest.approx([length * one for one in left], rel=1e-9)
    assert of(values, "norm", "", "post-softmax") == pytest.approx([length * one * (1 - one) for one in left], rel=1e-9)
    assert of(values, "norm", "", "centred") == pytest.approx([length / 2] * 4, rel=1e-9)
    assert of(values, "p == 1", "float32") == [0, 0, 1, 1]
    assert of(values, "p == 1", "bfloat16") == [0, 1, 1, 1]


def test_the_librarys_scores_keep_gradients_in_float32_that_torch_softmax_loses():
    """Where p is rounded to 1: half of the gradient is gone, in length, for two classes."""
    images = torch.full((1, 3, 2, 2), 16.0)
    values, _ = measured(subject_of([[0.5, 0.25, 0.25], [-0.5, 0.25, -0.75]]), chunk_of(images))
    errors = {name: of(values, "error", "", name)[0] for name in ROUNDED}
    assert errors["post-softmax, torch, float32"] > 0.4
    assert errors["log-softmax, torch, float32"] > 0.4
    assert max(errors[f"{name}, library, float32"] for name in ("post-softmax", "log-softmax", "centred")) < 1e-5


def test_maps_of_the_log_are_those_of_the_probability_for_methods_that_scale_with_the_gradient():
    """However small the maps are; the cosine is 1 in float64."""
    torch.manual_seed(0)
    images = 12 * torch.rand(3, 3, 4, 4)
    values, maps = measured(
        subject_of([[4.0, 1.0, 0.0], [-4.0, 0.0, 1.0], [-5.0, 0.5, 1.0]]), chunk_of(images, n_path=2)
    )
    for method in ("Grad-CAM", "Grad-CAM+"):
        assert maps[method, "post-softmax"].abs().max() < 1e-8
        assert of(values, "cosine", method, "post-softmax", "log-softmax") == pytest.approx([1.0] * 3, abs=1e-12)
    assert len(of(values, "cosine", "RSI Grad-CAM", "post-softmax", "log-softmax")) == 2


def test_empty_maps_have_no_rank_correlation():
    """Grad-CAM+ of a class that nothing speaks for: None, which JSON can hold."""
    values, _ = measured(
        subject_of([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]), chunk_of(torch.rand(2, 3, 4, 4), lambda z, y: 0 * y)
    )
    assert math.isnan(sum(of(values, "rank correlation", "Grad-CAM+", "pre-softmax", "centred")))
    assert math.isnan(sum(of(values, "cosine", "Grad-CAM+", "pre-softmax", "centred")))
    json.dumps(score_choice.listed(values), allow_nan=False)


def test_paths_that_begin_in_the_class_are_told_apart():
    """Two images whose class is that of the black image: small maps, one peak of two at the object."""
    rows = [score_maps._rows(torch.tensor([0.9, 0.1, 0.6]), "p at the baseline")]
    for method in score_maps.PATH_METHODS:
        for score in SCORES:
            rows.append(score_maps._rows(torch.tensor([1e-4, 1.0, 3e-4]), "magnitude", method, score))
            rows.append(score_maps._rows(torch.tensor([1.0, 1.0, 0.0]), "hit", method, score))
    table = score_report.baseline_table(pd.concat(rows))
    assert table.columns[1:] == [
        "size, p below 0.5 (1)",
        "peaks, %, p below 0.5 (1)",
        "size, p above (2)",
        "peaks, %, p above (2)",
    ]
    assert cells(table)["RSI Grad-CAM, centred"] == ["1.0e+00", 100.0, "2.0e-04", 50.0]


def test_probabilities_at_the_baseline_are_those_of_black():
    """Which standardisation makes of it what it is: here -2 in every channel."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    network[2].weight.data = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    subject = Subject(network, [0.5] * 3, [0.25] * 3)
    found = score_maps.baseline_probabilities(subject, torch.rand(2, 3, 4, 4))
    assert found == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


def test_peaks_move_beyond_the_tolerance_of_the_pointing_game():
    """Of 45 pixels three are tolerated, whatever the direction."""
    maps = torch.zeros(4, 45, 45)
    for i, (row, column) in enumerate([(20, 20), (20, 23), (20, 24), (23, 23)]):
        maps[i, row, column] = 1
    assert peak_moved(maps[:1].expand(4, -1, -1), maps).tolist() == [False, False, True, True]


def test_hits_are_counted_for_every_method_score_and_control():
    """Evidence is a bright spot of the first channel."""
    images = torch.full((1, 3, 30, 30), 0.1)
    images[0, 0, 5:8, 5:8] = 1
    masks = torch.zeros(1, 30, 30, dtype=torch.bool)
    masks[0, 5:8, 5:8] = True
    subject = subject_of([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    values, _ = measured(subject, chunk_of(images, masks=masks, n_path=1))
    assert (values["quantity"] == "hit").sum() == len(METHODS) * len(SCORES) + 2
    assert of(values, "hit", "Grad-CAM", "centred") == of(values, "hit", "Integrated Gradients", "post-softmax") == [1]
    assert of(values, "hit", "centred Gaussian") == [0]


def test_a_run_leaves_results_and_figures(finished):
    """In the form that recipes share."""
    folder, results = finished
    files = {path.name for path in folder.iterdir()}
    assert {"results.json", "settings.json", "maps_0.png", "saturation.png", "agreement.png"} <= files
    stored = Results.load(folder)
    assert stored.values == json.loads(json.dumps(results.values))
    assert {one.file for one in stored.pictures} == {"maps_0.png", "saturation.png", "agreement.png"}
    assert len(stored.tables) == 13
    assert len(of(pd.DataFrame(stored.values["images"]), "p")) == 10


def test_every_method_and_score_is_in_the_tables(finished):
    """With as many images as it got."""
    tables = {table.title: cells(table) for table in finished[1].tables}
    correlations = tables["Rank correlation of maps of two scores"]
    assert {name: row[0] for name, row in correlations.items()} == dict(zip(METHODS, (10, 10, 10, 2, 2), strict=True))
    pointing = next(rows for title, rows in tables.items() if title.startswith("Pointing game"))
    assert list(pointing) == [*METHODS, "centred Gaussian (control)", "noise (control)"]
    equal = next(rows for title, rows in tables.items() if "log-softmax score" in title)
    assert [equal[name][1] for name in ("Grad-CAM", "Grad-CAM+")] == pytest.approx([1.0, 1.0], abs=1e-12)
    assert equal["Grad-CAM++"][1] < 1 - 1e-9


def test_ranges_of_the_probability_hold_every_image_once(finished):
    """Also those whose probability is rounded to 1."""
    table = next(one for one in finished[1].tables if one.title.startswith("Length of the gradient"))
    assert sum(row[1] for row in table.rows) == 10
    ranges = score_report._ranges(np.array([1.0, 0.6, 0.3, 0.05, 0.005, 1e-5, 1e-30, 0.0]))
    assert [int(chosen.sum()) for _, chosen in ranges] == [2, 1, 1, 1, 3]


def test_an_interrupted_run_goes_on_to_the_same_results_whatever_the_batch_size(finished, tmp_path, monkeypatch):
    """Stopped after the first of two chunks of images."""
    folder, whole = finished
    shutil.copytree(folder, tmp_path / "run")
    for path in [*(tmp_path / "run" / "parts").glob("drawn_*"), tmp_path / "run" / "results.json"]:
        path.unlink()
    options = [*QUICK, "--resume", "--run", str(tmp_path / "run")]

    def interrupted(subject, chunk):
        if len(chunk.images) == 2:
            raise KeyboardInterrupt
        return measured(subject, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(score_choice, "measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main([*options, "--batch-size", "3"])
    assert not (tmp_path / "run" / "results.json").exists()
    found = main([*options, "--batch-size", "1"])
    assert found.values["two trainings"] == whole.values["two trainings"]
    again, before = (pd.DataFrame(one.values["images"]).fillna({"value": -1.0}) for one in (found, whole))
    pd.testing.assert_frame_equal(again, before, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_a_finished_run_is_never_written_over(finished):
    """Another folder or --resume is to be named; settings that change results cannot change."""
    folder, _ = finished
    with pytest.raises(SystemExit, match="already holds a run"):
        main([*QUICK, "--run", str(folder)])
    with pytest.raises(SystemExit, match="'seed'"):
        main([*QUICK, "--run", str(folder), "--resume", "--seed", "1"])


def test_photographs_with_and_without_boxes(tmp_path):
    """Of a folder, by any classifier; there is no pointing game without boxes."""
    write_images(tmp_path / "data" / "val", {TENCH: 2, HEN: 2}, (80, 100))
    boxed = tmp_path / "boxed"
    boxed.mkdir()
    (boxed / "a.jpg").write_bytes((tmp_path / "data" / "val" / TENCH / "1.JPEG").read_bytes())
    (boxed / "boxes.csv").write_text("file,label,xmin,ymin,xmax,ymax\na.jpg,fish,20,20,60,60\n")
    (boxed / "label_to_imagenet.csv").write_text("label,imagenet_indices\nfish,0 1\n")
    options = [*QUICK, "--data", str(tmp_path / "data"), "--model", "test_resnet", "--image-size", "32"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = main([*options, "--run", str(tmp_path / "first")])
        second = main([*options, "--boxed", str(boxed), "--run", str(tmp_path / "second")])
    assert len(first.tables) + 1 == len(second.tables) == 13
    without, with_boxes = (pd.DataFrame(one.values["images"]) for one in (first, second))
    assert [len(of(one, "p")) for one in (without, with_boxes)] == [4, 5]
    assert set(of(with_boxes, "class")[4:]) <= {0, 1}
    assert len(of(with_boxes, "hit", "Grad-CAM", "centred")) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "x"], "--data expected --model"),
        (["--weights", "x"], "expected --data beside them"),
        (["--boxed", "x"], "expected --data beside them"),
    ],
)
def test_data_and_model_belong_together(options, told, capsys):
    """Said before anything is computed."""
    with pytest.raises(SystemExit):
        parse(options)
    assert told in capsys.readouterr().err


def test_a_folder_without_boxes_is_refused(tmp_path):
    """By the name of the option."""
    write_images(tmp_path / "data" / "val", {TENCH: 1}, (40, 40))
    options = ["--data", str(tmp_path / "data"), "--model", "test_resnet", "--image-size", "32"]
    with pytest.raises(FileNotFoundError, match=r"`--boxed` expected a folder with boxes\.csv"):
        main([*QUICK, *options, "--boxed", str(tmp_path), "--run", str(tmp_path / "run")])
