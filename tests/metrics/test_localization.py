"""Pointing game and energy in box: toys, slow references, ends of the range, and maps that show nothing."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from metrics.contract import Batch, MetricContract, alone_and_collected, by_name, values_on_two_ranks
from metrics.localization_cases import DEGENERATE, batch_of, maps_and_masks, shows_nothing
from torchmetrics import MetricCollection

from lightning_xai.metrics import (
    EnergyInBox,
    EnergyPointingAccuracy,
    GridPointingGame,
    MaximalPatchMasking,
    PointingGame,
    energy_in_box,
    pointing_game,
)
from lightning_xai.scores import log_softmax

each_metric = pytest.mark.parametrize("metric_class", [PointingGame, EnergyInBox, EnergyPointingAccuracy])
each_degenerate = pytest.mark.parametrize("name", DEGENERATE)


def slow_pointing_game(one: list[list[float]], mask: list[list[bool]], tolerance: int) -> float:
    """Share of a map's maxima with a pixel of the mask within the tolerance."""
    if shows_nothing(one):
        return 0.0
    pixels = [(y, x) for y in range(len(one)) for x in range(len(one[0]))]
    highest = max(one[y][x] for y, x in pixels)
    peaks = [(y, x) for y, x in pixels if one[y][x] == highest]
    inside = [(y, x) for y, x in pixels if mask[y][x]]
    hits = [any(math.dist(peak, pixel) <= tolerance for pixel in inside) for peak in peaks]
    return sum(hits) / len(hits)


def slow_energy_in_box(one: list[list[float]], mask: list[list[bool]]) -> float:
    """Positive energy in the mask over all positive energy."""
    if shows_nothing(one):
        return 0.0
    energies = [(max(v, 0.0), m) for row, marks in zip(one, mask, strict=True) for v, m in zip(row, marks, strict=True)]
    return math.fsum(v for v, m in energies if m) / math.fsum(v for v, _ in energies)


class _Localization(MetricContract):
    higher_is_better = True
    batches: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]

    def value(self, one: list[list[float]], mask: list[list[bool]]) -> float:
        """The value of one image."""
        raise NotImplementedError

    def reference(self, batches: list[Batch]) -> float:
        pairs = [
            (one.tolist(), mask.tolist()) for b in batches for one, mask in zip(b["maps"], b["boxes"], strict=True)
        ]
        return math.fsum(self.value(*pair) for pair in pairs) / len(pairs)


class _Near(PointingGame):
    """Pointing game for images of 6 x 7 pixels."""

    def __init__(self) -> None:
        super().__init__(tolerance=1)


class TestPointingGame(_Localization):
    """The contract for PointingGame."""

    metric_class = _Near

    def value(self, one: list[list[float]], mask: list[list[bool]]) -> float:
        return slow_pointing_game(one, mask, 1)


class TestEnergyInBox(_Localization):
    """The contract for EnergyInBox."""

    metric_class = EnergyInBox

    def value(self, one: list[list[float]], mask: list[list[bool]]) -> float:
        return slow_energy_in_box(one, mask)


class TestHits:
    """What the pointing game calls a hit."""

    @pytest.mark.parametrize(("distance", "expected"), [(14, 1.0), (15, 1.0), (16, 0.0)])
    def test_fifteen_pixels_beside_the_box_still_hit(self, distance: int, expected: float) -> None:
        """Counted between centres of pixels: the box's last column is 9."""
        one = torch.zeros(1, 1, 40)
        one[0, 0, 9 + distance] = 1.0
        assert pointing_game(one, [torch.tensor([[0, 0, 10, 1]])]).item() == expected

    def test_distance_is_euclidean(self) -> None:
        """Three and four pixels off are five, not four and not seven."""
        one, mask = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)
        one[0, 3, 4], mask[0, 0, 0] = 1.0, True
        assert [pointing_game(one, mask, tolerance=t).item() for t in (4, 5)] == [0.0, 1.0]

    def test_tied_maxima_count_by_their_share(self) -> None:
        """One of four maxima in the box: a quarter, neither a hit (any of them) nor a matter of their order."""
        one = torch.tensor([[[5.0, 5.0, 1.0, 5.0, 5.0]]])
        for column in (0, 1, 3, 4):
            assert pointing_game(one, [torch.tensor([[column, 0, column + 1, 1]])], tolerance=0).item() == 0.25

    def test_fake_cam_gets_the_random_level(self) -> None:
        """A map of ones but for one pixel points everywhere."""
        one, mask = torch.ones(1, 10, 10), torch.zeros(1, 10, 10, dtype=torch.bool)
        one[0, 9, 9], mask[0, :5] = 0.0, True
        metric = PointingGame(tolerance=0)
        metric.update(one, mask)
        assert metric.compute().item() == pytest.approx(50 / 99)
        assert metric.random_level == 0.5

    def test_negative_tolerance_is_refused(self) -> None:
        """In the class at once, in the function when used."""
        with pytest.raises(ValueError, match="`tolerance` expected 0 or more pixels, got -1"):
            PointingGame(tolerance=-1)

    def test_random_level_grows_with_the_tolerance(self) -> None:
        """It is the share within the tolerance: a third, then all three pixels."""
        levels = []
        for tolerance in (0, 2):
            metric = PointingGame(tolerance=tolerance)
            metric.update(torch.tensor([[[0.0, 0.0, 1.0]]]), [torch.tensor([[0, 0, 1, 1]])])
            metric.compute()
            levels.append(metric.random_level)
        assert levels == [pytest.approx(1 / 3), 1.0]


class TestEnergy:
    """What energy in box calls energy."""

    def test_negative_relevance_is_no_energy(self) -> None:
        """Inside or outside, it neither adds nor cancels."""
        one = torch.tensor([[[3.0, -7.0, 1.0, -9.0]]])
        assert energy_in_box(one, [torch.tensor([[0, 0, 2, 1]])]).item() == 0.75

    def test_value_of_an_image_does_not_depend_on_its_batch(self) -> None:
        """Quantus' AttributionLocalisation takes the image's size from the batch: infinite for two images."""
        maps, masks = maps_and_masks(6, 3)
        together = energy_in_box(maps, masks)
        alone = torch.cat([energy_in_box(maps[i : i + 1], masks[i : i + 1]) for i in range(6)])
        assert torch.equal(together, alone)
        for size in (1, 2, 3):
            metric = EnergyInBox()
            for pair in zip(maps.split(size), masks.split(size), strict=True):
                metric.update(*pair)
            assert metric.compute().item() == pytest.approx(together.mean().item(), rel=1e-14)

    def test_half_precision_maps_are_summed_in_float64(self) -> None:
        """The sum of 5000 ones is not 2048, nor infinite."""
        one = torch.ones(1, 50, 100, dtype=torch.float16) * 100
        one[0, 0, 0] = 0
        assert energy_in_box(one, [torch.tensor([[0, 0, 100, 25]])]).item() == pytest.approx(2499 / 4999, rel=1e-12)


@each_metric
class TestFamily:
    """What the three metrics with boxes share."""

    def values(self, metric_class, maps, boxes):
        """All numbers of a metric but the random level."""
        metric = metric_class()
        metric.update(maps, boxes)
        values = by_name("value", metric.compute())
        return [value.item() for name, value in values.items() if "random" not in name], metric

    def test_perfect_and_inverted_maps_reach_the_ends(self, metric_class) -> None:
        """Relevance where the mask is gives 1, where it is not 0, for masks further apart than the tolerance."""
        masks = torch.zeros(3, 40, 40, dtype=torch.bool)
        masks[:, :5, :7] = True
        far = masks.flip(1)
        assert self.values(metric_class, masks.float(), masks)[0] in ([1.0], [1.0, 1.0])
        assert self.values(metric_class, far.float(), masks)[0] in ([0.0], [0.0, 0.0])

    @each_degenerate
    def test_map_that_shows_nothing_never_hits_and_is_counted(self, metric_class, name) -> None:
        """Not even where the mask is the whole image."""
        values, metric = self.values(metric_class, DEGENERATE[name], torch.ones(1, 4, 4, dtype=torch.bool))
        assert set(values) == {0.0}
        assert (metric.n_degenerate, metric.n_empty) == (1, 0)

    def test_image_without_evidence_never_hits_and_is_counted(self, metric_class) -> None:
        """Quantus' PointingGame counts an empty mask as a hit."""
        one = torch.arange(16.0).view(1, 4, 4)
        for boxes in (torch.zeros(1, 4, 4, dtype=torch.bool), [torch.zeros(0, 4)], [torch.tensor([[9, 9, 12, 12]])]):
            values, metric = self.values(metric_class, one, boxes)
            assert set(values) == {0.0}
            assert (metric.n_degenerate, metric.n_empty) == (0, 1)

    def test_images_that_never_hit_stay_in_the_mean(self, metric_class) -> None:
        """One perfect map and one that shows nothing make one half; the pool has points of the first only."""
        mask = torch.zeros(2, 40, 40, dtype=torch.bool)
        mask[:, :4, :4] = True
        maps = mask.float()
        maps[1] = 0.0
        values, _ = self.values(metric_class, maps, mask)
        assert values in ([0.5], [1.0, 0.5])

    def test_boxes_and_their_masks_give_the_same(self, metric_class) -> None:
        """Several boxes per image, in a list."""
        maps, _ = maps_and_masks(2, 4)
        boxes = [torch.tensor([[0, 0, 2, 2], [4, 1, 6, 3]]), torch.tensor([[1.5, 2.5, 4.0, 5.0]])]
        masks = torch.zeros(2, 6, 7, dtype=torch.bool)
        masks[0, :2, :2] = masks[0, 1:3, 4:6] = masks[1, 2:5, 1:4] = True  # the half pixels' centres lie on the minima
        assert self.values(metric_class, maps, boxes)[0] == self.values(metric_class, maps, masks)[0]

    def test_order_of_the_images_does_not_matter(self, metric_class) -> None:
        """Reversed."""
        maps, masks = maps_and_masks(7, 5)
        found, reverse = (self.values(metric_class, maps.flip(d), masks.flip(d))[0] for d in ((), (0,)))
        assert found == pytest.approx(reverse, rel=1e-14)

    def test_scale_of_a_map_does_not_matter(self, metric_class) -> None:
        """A power of two, which rounds nothing."""
        maps, masks = maps_and_masks(7, 6)
        assert self.values(metric_class, maps, masks)[0] == self.values(metric_class, maps * 2.0**-20, masks)[0]

    def test_noise_is_near_the_random_level(self, metric_class) -> None:
        """Which is the share of the image, not nearly zero as Iwana et al. 2019 says."""
        generator = torch.Generator().manual_seed(0)
        maps, masks = torch.rand(400, 30, 30, generator=generator), torch.zeros(400, 30, 30, dtype=torch.bool)
        masks[:, :10, :9] = True
        metric = metric_class(tolerance=0) if metric_class is PointingGame else metric_class()
        metric.update(maps, masks)
        values = by_name("value", metric.compute())
        assert metric.random_level == pytest.approx(0.1)
        assert all(abs(value.item() - 0.1) < 4 * 0.3 / 20 for value in values.values())

    def test_plot_gives_a_figure_and_its_axes(self, metric_class) -> None:
        """Without values, with a value, with several, and into axes of the caller's."""
        _, metric = self.values(metric_class, *maps_and_masks(3, 7))
        value = metric.compute()
        axes = Figure().subplots()
        for figure, ax in (metric.plot(), metric.plot(value), metric.plot([value, value]), metric.plot(ax=axes)):
            assert isinstance(figure, Figure)
            assert ax.figure is figure
            assert ax.lines
        assert metric.plot(ax=axes)[1] is axes


def test_metrics_of_other_options_do_not_share_states() -> None:
    """All agree on the first batch, which makes torchmetrics merge states of equal names and values."""
    perfect = torch.zeros(2, 6, 7, dtype=torch.bool)
    perfect[:, 2:4, 3:5] = True
    near = torch.zeros(1, 6, 7)
    near[0, 2, 2] = 1.0  # one pixel beside the mask
    batches = [{"maps": perfect.double(), "boxes": perfect}, {"maps": near, "boxes": perfect[:1]}]
    metrics = {"0": PointingGame(tolerance=0), "1": PointingGame(tolerance=1), "energy": EnergyInBox()}
    alone, collected = alone_and_collected(metrics, batches)
    assert collected == alone == {"0": pytest.approx(2 / 3), "1": 1.0, "energy": pytest.approx(2 / 3)}


def test_kept_values_are_those_of_the_images() -> None:
    """In the order of the updates; the average is their mean."""
    maps, masks = maps_and_masks(5, 8)
    collection = MetricCollection([PointingGame(tolerance=1, keep_values=True), EnergyInBox(keep_values=True)])
    collection.update(maps[:2], masks[:2])
    collection.update(maps[2:], masks[2:])
    averages = collection.compute()
    expected = {"PointingGame": pointing_game(maps, masks, tolerance=1), "EnergyInBox": energy_in_box(maps, masks)}
    for name, metric in collection.items():
        assert torch.equal(metric.values, expected[name])
        torch.testing.assert_close(averages[name], metric.values.mean())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """All metrics of boxes, cells and patches: uneven batches on two ranks, and a rank without images."""
    metrics = {
        "pointing": PointingGame(tolerance=1, keep_values=True),
        "energy": EnergyInBox(),
        "curve": EnergyPointingAccuracy(),
        "grid": GridPointingGame(),
        "patch": MaximalPatchMasking(sizes=(1, 3), keep_values=True),
    }
    batches = []
    for number, batch in enumerate(_Localization.batches):
        logits = torch.randn(3, len(batch["maps"]), 4, generator=torch.Generator().manual_seed(number)).double()
        scores = [log_softmax(one, torch.zeros(len(one), dtype=torch.long)) for one in logits]
        patches = {"scores": scores[0], "patch_scores": torch.stack(scores[1:], dim=1)}
        batches.append({**batch, "cells": batch["boxes"], **patches})
    scenarios = [(batches[:1], batches[1:]), (batches, []), ([], batches[:2])]
    expected = [alone_and_collected(metrics, first + second)[0] for first, second in scenarios]
    ranks = values_on_two_ranks(metrics, scenarios, tmp_path)
    assert ranks[0] == ranks[1]
    for found, value in zip(ranks[0], expected, strict=True):
        assert found == pytest.approx(value, rel=1e-12)
