"""Pointing accuracy over energy: Iwana et al. 2019's equations in integers, both means, and the curve."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from metrics.contract import Batch, MetricContract
from metrics.localization_cases import batch_of, maps_and_masks, shows_nothing
from torchmetrics import MetricCollection

from lightning_xai.metrics import EnergyPointingAccuracy, energy_pointing, pointing_game

LEVELS = tuple(range(0, 101, 5))


def slow_counts(one: list[list[float]], mask: list[list[bool]], level: int) -> tuple[int, int]:
    """Hits and points of one map at one energy, equations 11 and 12 by going down through all thresholds."""
    pixels = [(v, m) for row, marks in zip(one, mask, strict=True) for v, m in zip(row, marks, strict=True)]
    positive = [v for v, _ in pixels if v > 0]
    if shows_nothing(one):
        return 0, 0
    for tau in sorted(set(positive), reverse=True):
        points = [m for v, m in pixels if v >= tau]
        if Fraction(len(points), len(positive)) >= Fraction(level, 100):
            return sum(points), len(points)
    raise AssertionError("the smallest positive value has all energy")


def trapezoid(curve: list[float]) -> float:
    """Area over evenly spaced points, divided by the range."""
    return math.fsum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


class TestEnergyPointingAccuracy(MetricContract):
    """The contract for EnergyPointingAccuracy."""

    metric_class = EnergyPointingAccuracy
    higher_is_better = True
    batches: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(2, 1), batch_of(3, 2)]

    def reference(self, batches: list[Batch]) -> dict[str, float]:
        images = [
            (one.tolist(), mask.tolist()) for b in batches for one, mask in zip(b["maps"], b["boxes"], strict=True)
        ]
        counts = [[slow_counts(*image, level) for level in LEVELS] for image in images]
        pooled = [sum(h for h, _ in column) / sum(p for _, p in column) for column in zip(*counts, strict=True)]
        means = [math.fsum(h / max(p, 1) for h, p in c) / len(images) for c in zip(*counts, strict=True)]
        shares = [sum(map(sum, mask)) / 42 for _, mask in images]
        return {
            "energy_pointing_pooled": trapezoid(pooled),
            "energy_pointing_mean": trapezoid(means),
            "energy_pointing_random": math.fsum(shares) / len(shares),
        }


def test_levels_take_the_largest_pixels_first() -> None:
    """Four positive pixels 4, 3, 2, 1, of which the first and the last are in the mask."""
    one, mask = (
        torch.tensor([[[1.0, -9.0, 3.0, 0.0, 4.0, 2.0]]]),
        torch.tensor([[[True, True, False, True, True, False]]]),
    )
    hits, points = energy_pointing(one, mask, levels=(0, 25, 26, 50, 75, 100))
    assert points.tolist() == [[1, 1, 2, 2, 3, 4]]
    assert hits.tolist() == [[1, 1, 1, 1, 1, 2]]


def test_zeros_and_negative_values_are_no_points() -> None:
    """At 100 percent only the one positive pixel is."""
    hits, points = energy_pointing(
        torch.tensor([[[0.0, 1.0, -1.0]]]), torch.tensor([[[True, True, True]]]), levels=(0, 100)
    )
    assert (hits.tolist(), points.tolist()) == ([[1, 1]], [[1, 1]])


def test_pixels_tied_with_the_threshold_are_points() -> None:
    """R >= tau: of four equal pixels none is left out, so their order says nothing."""
    one, mask = torch.tensor([[[5.0, 1.0, 1.0, 1.0, 1.0, 0.0]]]), torch.tensor([[[True, True] + 4 * [False]]])
    hits, points = energy_pointing(one, mask, levels=(0, 20, 40, 100))
    assert points.tolist() == [[1, 1, 5, 5]]
    assert hits.tolist() == [[1, 1, 2, 2]]


def test_number_of_points_is_exact() -> None:
    """7 percent of 100 pixels are 7; 0.07 * 100 rounds up to 8."""
    one = torch.arange(1.0, 101.0).view(1, 10, 10)
    levels = list(range(101))
    _, points = energy_pointing(one, torch.ones(1, 10, 10, dtype=torch.bool), levels=levels)
    assert points[0].tolist() == [1, *range(1, 101)]


def test_zero_energy_is_the_pointing_game_without_tolerance() -> None:
    """The maximum alone, or all that share it."""
    maps, masks = maps_and_masks(20, 9)
    hits, points = energy_pointing(maps, masks, levels=(0, 100))
    assert torch.equal(hits[:, 0] / points[:, 0].double(), pointing_game(maps, masks, tolerance=0))


def test_pooled_and_mean_differ_where_images_have_different_numbers_of_points() -> None:
    """One point that hits and three that miss: a quarter of the points, half of the images."""
    maps, masks = (
        torch.tensor([[[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.5]]]),
        torch.tensor([[[True, False, False]], [[False, False, False]]]),
    )
    metric = EnergyPointingAccuracy(levels=(99, 100))
    metric.update(maps, masks)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == {
        "energy_pointing_pooled": 0.25,
        "energy_pointing_mean": 0.5,
        "energy_pointing_random": pytest.approx(1 / 6),
    }


def test_area_does_not_grow_with_the_number_of_levels() -> None:
    """Quantus' areas take steps of one; a map that always hits has area 1 at any resolution."""
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, :2] = True
    for levels in ((0, 100), (10, 50, 60), range(101)):
        metric = EnergyPointingAccuracy(levels=levels)
        metric.update(mask.float(), mask)
        assert metric.compute()["energy_pointing_mean"].item() == pytest.approx(1.0)


def test_without_any_point_the_pool_is_zero_and_not_nan() -> None:
    """Maps that show nothing were measured: they hit nothing."""
    metric = EnergyPointingAccuracy()
    metric.update(torch.zeros(2, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool))
    assert metric.compute()["energy_pointing_pooled"].item() == 0.0


def test_kept_areas_are_those_of_the_images() -> None:
    """Their mean is the area of the mean curve."""
    metric = EnergyPointingAccuracy(keep_values=True)
    metric.update(*maps_and_masks(4, 10))
    torch.testing.assert_close(metric.compute()["energy_pointing_mean"], metric.values.mean())
    assert metric.values.shape == (4,)


def test_metrics_of_other_levels_do_not_share_states() -> None:
    """As many levels, and the same counts in the first batch, from which on torchmetrics would merge them."""
    mask = torch.zeros(1, 6, 7, dtype=torch.bool)
    mask[0, :2] = True
    metrics = {"low": EnergyPointingAccuracy(levels=(0, 1)), "high": EnergyPointingAccuracy(levels=(50, 100))}
    collection = MetricCollection({name: metric.clone() for name, metric in metrics.items()})
    for maps in (mask.double(), maps_and_masks(1, 11)[0]):
        for metric in (collection, *metrics.values()):
            metric.update(maps, mask)
    key = "energy_pointing_mean"
    alone = {f"{name}_{key}": metric.compute()[key].item() for name, metric in metrics.items()}
    collected = collection.compute()
    assert {name: collected[name].item() for name in alone} == alone
    assert len(set(alone.values())) == 2


@pytest.mark.parametrize("levels", [(), (50,), (50, 50), (60, 50), (0, 101), (-1, 50), (0.0, 0.5, 1.0)])
def test_levels_that_are_no_increasing_percentages_are_refused(levels) -> None:
    """Fractions above all, of which 1.0 would mean one percent."""
    with pytest.raises(ValueError, match=r"`levels` expected at least two increasing integers in \[0, 100\]"):
        EnergyPointingAccuracy(levels=levels)


def test_plot_draws_two_curves_a_method_and_the_random_level_once() -> None:
    """Two methods in one picture, as in figure 13 of Iwana et al. 2019."""
    axes = Figure().subplots()
    for label, seed in (("a", 0), ("b", 1)):
        metric = EnergyPointingAccuracy()
        metric.update(*maps_and_masks(5, seed))
        metric.plot(ax=axes, label=label)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "random level", "b"]
    assert axes.lines[3].get_ydata() == pytest.approx(metric.mean_curve.tolist())
    assert axes.lines[2].get_ydata()[0] == pytest.approx(0.3, abs=0.1)
