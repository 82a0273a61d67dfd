"""The recipe on Grad-CAM++ and Grad-CAM+, from its command line to its tables, and the numbers behind them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gradcam_plus import chosen, main, parse
from recipes.image_files import HEN, TENCH, write_images
from torch import nn

import lightning_xai as xai
from common.run import joined
from lightning_xai.report import Results
from papers.gradcam_plus.alphas import BINS, Witness, box, facts_of_images, histograms, quantiles
from papers.gradcam_plus.equations import equation_checks
from papers.gradcam_plus.measures import AllGradients
from papers.gradcam_plus.tables import OTHERS, PAPER, performance

FAST = ["--fast-dev-run", "--device", "cpu"]
FIGURES = {f"figure_{number}.png" for number in (3, 4, 5, 6)}


def run(folder, *options):
    """Results of a short run; the random state is as before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return main([*FAST, "--run", str(folder), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and results of a short run on images drawn by the recipe."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run(folder)


def numbers(results):
    """All numbers in the tables."""
    cells = [cell for table in results.tables for row in table.rows for cell in row]
    found = [list(cell.values()) if isinstance(cell, dict) else [cell] for cell in cells]
    return [value for values in found for value in values if isinstance(value, float)]


def test_a_run_leaves_results_and_figures(finished):
    """Under its folder, in the form that all recipes share."""
    folder, results = finished
    files = {"results.json", "report.html", "settings.json", "parts", "network.safetensors", *FIGURES}
    assert {path.name for path in folder.iterdir()} == files
    assert {picture.file for picture in results.pictures} == FIGURES
    assert Results.load(folder).title == results.title
    json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_tables_are_those_of_the_paper(finished):
    """Its rows first, with its numbers beside ours, then the controls."""
    first, second = finished[1].tables[:2]
    assert [row[0] for row in first.rows] == [" vs ".join(pair) for pair in (*PAPER, *OTHERS)]
    assert [row[2] for row in first.rows[:3]] == [1.24, 1.16, 1.06]
    assert [row[4] for row in first.rows[:3]] == [1.27, 1.25, 1.01]
    assert [(row[2], row[4]) for row in second.rows[:3]] == [(0.21, 0.64), (0.15, 0.66), (0.06, 0.41)]
    assert all(row[2] is None for row in first.rows[3:])


def test_table_1_is_the_geometric_mean_of_ratios(finished):
    """Computed again from the values of the images."""
    results = finished[1]
    left = results.values["masked_scores"]
    plus, plain = (np.array(left[f"{name}, post-softmax"]) for name in ("Grad-CAM+", "Grad-CAM"))
    expected = np.exp(plus - plain).prod() ** (1 / len(plus))
    assert results.tables[0].rows[1][3]["mean"] == pytest.approx(expected)
    assert results.tables[1].rows[4][1]["mean"] == pytest.approx(np.log(expected))
    assert results.tables[1].rows[4][3] == pytest.approx((plus - plain).std(ddof=1))


def test_only_images_with_a_confident_right_class_count(finished):
    """Alphas are those of all images, as in the paper."""
    values = finished[1].values
    confident = sum(score > np.log(0.5) for score in values["scores"])
    assert 0 < confident <= len(values["scores"]) == 30
    assert {len(one) for one in values["masked_scores"].values()} == {confident}
    assert len(values["alphas"]["pre-softmax"]["weighted"]) == 30


def test_alphas_that_count_are_at_most_a_half(finished):
    """Rectified activations: (0, 1/2] where g > 0, everything else where g < 0."""
    for facts in finished[1].values["alphas"].values():
        assert min(facts["least_activation"]) >= 0
        for one in facts["distribution"]:
            assert 0 < one["positive"]["minimum"] <= one["positive"]["maximum"] <= 0.5
        assert any(one["negative"]["minimum"] < 0 for one in facts["distribution"])


def test_resuming_gives_the_results_of_an_uninterrupted_run(finished, tmp_path, monkeypatch):
    """An interrupt after the first chunk, then another batch size than before."""
    import gradcam_plus

    measured, calls = gradcam_plus.measured_chunk, []

    def interrupted(subject, images, indices):
        calls.append(indices)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(subject, images, indices)

    monkeypatch.setattr(gradcam_plus, "measured_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "parts").iterdir()] == ["images_0000.json"]
    results = run(tmp_path / "run", "--resume")
    assert len(calls) == 3  # the first chunk is not measured again
    assert results.values == finished[1].values
    assert results.tables == finished[1].tables


def test_batch_size_changes_nothing_but_rounding(finished, tmp_path):
    """Seven images in a pass instead of 25."""
    results = run(tmp_path / "run", "--batch-size", "7")
    np.testing.assert_allclose(numbers(results), numbers(finished[1]), rtol=1e-3, atol=1e-4)


def test_a_run_is_not_written_over(finished):
    """It is resumed or another folder is named."""
    with pytest.raises(SystemExit, match="already holds a run"):
        run(finished[0])


def test_images_of_a_folder_and_any_classifier(tmp_path):
    """Of a network that is right about none of them the alphas are told, and no relative performance."""
    write_images(tmp_path / "images" / "val", {TENCH: 4, HEN: 4}, size=(40, 40))
    data = ["--data", str(tmp_path / "images"), "--image-size", "32", "--model", "test_resnet", "--layer", "layer3"]
    results = run(tmp_path / "run", *data)
    assert len(results.values["scores"]) == 8
    assert "of which 0" in results.summary
    assert results.tables[0].rows[0][1] is None
    assert all(np.isfinite(numbers(results)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "x"], "--model and --layer beside it"),
        (["--weights", "x"], "--data beside them"),
        (["--data", "x.tar", "--model", "resnet18", "--layer", "layer4"], "got shards"),
        (["--n-images", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_told(options, told, capsys):
    """Before anything is computed."""
    with pytest.raises(SystemExit):
        parse(options)
    assert told in capsys.readouterr().err


def test_images_are_taken_evenly():
    """Folders are sorted by class; all images where fewer are there than are asked for."""
    assert chosen(9, 3) == [0, 4, 8]
    assert chosen(9, 20) == list(range(9))


def test_parts_are_put_end_to_end():
    """Whatever the depth."""
    assert joined([{"a": {"b": [1]}}, {"a": {"b": []}}, {"a": {"b": [2]}}]) == {"a": {"b": [1, 2]}}


def test_performance_takes_controls_without_a_score():
    """And leaves out images below the threshold."""
    found = {
        "scores": np.log([0.9, 0.4, 0.8]).tolist(),
        "masked_scores": {
            "Grad-CAM, pre-softmax": np.log([0.2, 0.3]).tolist(),
            "Fake-CAM": np.log([0.4, 0.6]).tolist(),
        },
    }
    metric = performance(found, "pre-softmax", ("Grad-CAM", "Fake-CAM"))
    assert metric.performance[1, 0].item() == pytest.approx(2.0)


def witness(activations, gradients):
    """A witness of one channel of these units."""
    one = Witness()
    one(torch.tensor(activations).view(1, 1, 1, -1), torch.tensor(gradients).view(1, 1, 1, -1))
    return one


def test_extremes_of_the_paper_are_spacings_of_float32():
    """-1398101.4 is -2^22 / 3 and 559240.56 is 2^23 / 15: g sum A is -2 but for the last bits, so that g < 0."""
    below, above = -2 - 3 * 2**-22, -2 + 15 * 2**-23
    (facts,) = facts_of_images(witness([1.0, 0.0], [below, above]))["distribution"]
    assert facts["positive"]["count"] == 0
    assert round(facts["negative"]["minimum"], 1) == -1398101.4
    assert round(facts["negative"]["maximum"], 2) == 559240.56


def test_alphas_are_split_by_the_sign_of_the_gradient():
    """Four units with sum A = 4; a gradient of zero has no alpha."""
    (facts,) = facts_of_images(witness([4.0, 0.0, 0.0, 0.0], [1.0, 0.01, -1.0, 0.0]))["distribution"]
    assert facts["positive"] == pytest.approx({"count": 2, "minimum": 1 / 6, "maximum": 1 / 2.04, "near_half": 0.5})
    assert facts["negative"] == pytest.approx({"count": 1, "minimum": -0.5, "maximum": -0.5, "near_half": 0.0})


def test_weighted_alpha_and_equation_6_by_hand():
    """Of g sum A = 2, 6 and -1 the first two count: alphas 1/4 and 1/8 with weights 2 and 6."""
    facts = facts_of_images(witness([1.0, 1.0, 0.0], [1.0, 3.0, -0.5]))
    assert facts["equation_6"] == pytest.approx([2 / 4 + 6 / 8])
    assert facts["weighted"] == pytest.approx([(2 / 4 + 6 / 8) / 8])


def test_an_alpha_whose_denominator_is_zero_stays_a_number():
    """JSON has no infinity; it is counted in the last bin."""
    one = witness([1.0], [-2.0])
    (facts,) = facts_of_images(one)["distribution"]
    assert facts["negative"]["maximum"] == torch.finfo(torch.float32).max
    assert facts["positive"]["minimum"] is None
    assert histograms(one)["negative"][-1] == 1


def test_quantiles_of_a_histogram_are_near_those_of_the_alphas():
    """To the width of a bin, by sign."""
    generator = torch.Generator().manual_seed(0)
    one = Witness()
    one(torch.rand(1, 8, 9, 9, generator=generator), 0.1 * torch.randn(1, 8, 9, 9, generator=generator))
    counts = histograms(one)
    for sign, of in {"positive": one.gradients > 0, "negative": one.gradients < 0}.items():
        alphas = (1 / (2 + one.second_term))[of].numpy()
        assert sum(counts[sign]) == len(alphas)
        shares = [0.01, 0.25, 0.5, 0.75, 0.99]
        found = quantiles(np.array(counts[sign]), shares)
        np.testing.assert_allclose(
            np.tanh(np.array(found) - 0.5), np.tanh(np.quantile(alphas, shares) - 0.5), atol=0.02
        )


def test_a_box_of_one_value_is_a_line():
    """Alpha = 1/2 lies in the middle of the middle bin."""
    counts = np.zeros(BINS, dtype=int)
    counts[BINS // 2] = 3
    assert set(box(counts).values()) == {0.5}


def test_all_gradients_by_hand():
    """Weights sum alpha g: of sum A = 1, g = 2 and -1 they are 2/4 - 1."""
    model = nn.Sequential(nn.Identity(), Weighted(torch.tensor([2.0, -1.0])))
    images = torch.tensor([[[[0.5, 0.5]]]])
    maps = xai.explain(model, images, 0, attributions=AllGradients("0", score=xai.scores.pre_softmax, relu=False))
    torch.testing.assert_close(maps, torch.full((1, 1, 2), -0.25))


class Weighted(nn.Module):
    """A weighted sum of the pixels, and 0, as two logits."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, images):
        """Logits (N,2)."""
        total = (images.flatten(1) * self.weights).sum(1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_statements_about_equations_hold_or_fail_clearly(seed):
    """Rounding or more than a hundredth: eq. 7 is wrong, 18 and 19 are right, whatever the function."""
    for name, error in equation_checks(seed).items():
        wrong = name.startswith(("eq. 7", "eq. 6", "eq. 8 is eq. 9 for a score that is not linear"))
        assert error > 0.01 if wrong else error < 1e-12, name


def test_head_names_what_is_needed():
    """Command, data, time, and where the numbers are."""
    import gradcam_plus

    head = Path(gradcam_plus.__file__).read_text()[:4000]
    for word in ("python recipes/gradcam_plus.py", "Data:", "Time", "papers/gradcam_plus/README.md"):
        assert word in head
