"""Perturbation curves: sums of pixels whose curves are known on paper, a loop over pixels, and the shared contract."""

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from metrics.contract import Batch, MetricContract
from support import random_images, small_net
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_xai.baselines import black, blurred
from lightning_xai.metrics import (
    Curve,
    Deletion,
    Insertion,
    curve_area,
    deletion_curve,
    featureless,
    insertion_curve,
    perturbation_curves,
)
from lightning_xai.metrics.sweep import relevance_ranks
from lightning_xai.scores import pre_softmax

ZERO = torch.tensor(0.0)
FIRST = torch.tensor([0])

each_curve = pytest.mark.parametrize("function", [deletion_curve, insertion_curve])


def batch_of(n: int, seed: int) -> Batch:
    """Random curves (n,17) at uneven fractions, which are others in each batch."""
    generator = torch.Generator().manual_seed(seed)
    fractions = torch.rand(16, generator=generator, dtype=torch.float64).cumsum(0)
    fractions = torch.cat([torch.zeros(1), fractions / fractions[-1]])
    deletion, insertion = torch.rand(2, n, 17, generator=generator, dtype=torch.float64)
    return {"fractions": fractions, "deletion_curve": deletion, "insertion_curve": insertion}


def mean_area(name: str, batches: list[Batch]) -> float:
    """Mean over images of the trapezoids' areas, by loops."""
    areas = [
        sum((f1 - f0) * (p0 + p1) / 2 for (f0, p0), (f1, p1) in itertools.pairwise(zip(grid, curve, strict=True)))
        for batch in batches
        for grid in [batch["fractions"].tolist()]
        for curve in batch[name].tolist()
    ]
    return math.fsum(areas) / len(areas)


class _Curves(MetricContract):
    all_batches: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]
    curve: ClassVar[str]

    def reference(self, batches: list[Batch]) -> float:
        return mean_area(self.curve, batches)


def batches_with(curve: str) -> list[Batch]:
    """The batches with the keywords of one metric."""
    return [{name: batch[name] for name in ("fractions", curve)} for batch in _Curves.all_batches]


class TestDeletion(_Curves):
    """The contract for Deletion."""

    metric_class = Deletion
    higher_is_better = False
    curve = "deletion_curve"
    batches = batches_with("deletion_curve")


class TestInsertion(_Curves):
    """The contract for Insertion."""

    metric_class = Insertion
    higher_is_better = True
    curve = "insertion_curve"
    batches = batches_with("insertion_curve")


def sum_of_pixels(images: Tensor) -> Tensor:
    """One output, the sum of the pixels."""
    return images.sum((1, 2, 3))[:, None]


def output(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of the pixels itself."""
    return outputs[:, 0]


def toy(function: Callable[..., Curve], image: list[list[float]], its_map: list[list[float]], steps: int) -> Curve:
    """Curve of one image (H,W) whose score is the sum of its pixels, before a baseline of zeros."""
    images, maps = torch.tensor([[image]], dtype=torch.float64), torch.tensor([its_map], dtype=torch.float64)
    return function(sum_of_pixels, images, maps, FIRST, baseline=ZERO, steps=steps, score=output)


class Forwards:
    """A classifier of three classes that remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.net = small_net().double()

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.net(images)


def example(n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Images, maps and targets of small_net, float64."""
    images = random_images(n, dtype=torch.float64)
    return images, random_images(n, channels=1, dtype=torch.float64)[:, 0], torch.arange(n) % 3


class TestOrder:
    """Which pixels come first."""

    def test_ranks_follow_the_signed_map_and_ties_the_page(self) -> None:
        """Negative relevance last, not by its magnitude; equal pixels as they are read."""
        ranks = relevance_ranks(torch.tensor([[[0.0, -9.0, 0.0], [2.0, 0.0, 3.0]]]))
        assert ranks.tolist() == [[[2, 5, 3], [1, 4, 0]]]

    @pytest.mark.parametrize("value", [0.0, 3.0, -3.0, math.nan])
    def test_constant_maps_are_read_row_by_row(self, value: float) -> None:
        """Whatever the constant; NaN counts as constant."""
        maps = torch.full((1, 2, 3), value)
        assert featureless(maps).tolist() == [True]
        assert relevance_ranks(maps).flatten().tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_one_value_that_is_not_finite_spoils_the_map(self, value: float) -> None:
        """NaN is not the most relevant pixel, as sorting alone would have it."""
        maps = torch.tensor([[[1.0, 2.0, value]], [[1.0, 2.0, 3.0]]])
        assert featureless(maps).tolist() == [True, False]
        assert relevance_ranks(maps).tolist() == [[[0, 1, 2]], [[2, 1, 0]]]

    def test_rounding_of_a_constant_map_is_no_order(self) -> None:
        """What upsampling leaves of a constant map."""
        maps = torch.nn.functional.interpolate(torch.full((1, 1, 7, 7), -0.1), (64, 64), mode="bicubic")[:, 0]
        assert maps.unique().numel() > 1
        assert relevance_ranks(maps).flatten().tolist() == list(range(64 * 64))

    def test_negative_maps_have_an_order(self) -> None:
        """Without a positive value there is still a least negative one."""
        assert featureless(torch.tensor([[[-1.0, -2.0]]])).tolist() == [False]


class TestExact:
    """Sums of pixels."""

    def test_curves_of_four_pixels_in_two_steps_are_exact(self) -> None:
        """torch-cam's known answer: 1, 0.3, 0 and 0, 0.7, 1 with areas 0.4 and 0.6."""
        image = [[0.4, 0.3], [0.2, 0.1]]
        deletion, insertion = (toy(function, image, image, 2) for function in (deletion_curve, insertion_curve))
        assert deletion.fractions.tolist() == insertion.fractions.tolist() == [0.0, 0.5, 1.0]
        assert deletion.probabilities[0].tolist() == pytest.approx([1.0, 0.3, 0.0], abs=1e-15)
        assert insertion.probabilities[0].tolist() == pytest.approx([0.0, 0.7, 1.0], abs=1e-15)
        assert [curve_area(*curve).item() for curve in (deletion, insertion)] == pytest.approx([0.4, 0.6])

    def test_area_uses_the_fractions_of_a_short_last_step(self) -> None:
        """Five pixels in three steps, torch-cam's known answer: fractions 0, 0.4, 0.8, 1 and areas 0.41 and 0.59."""
        image = [[0.3, 0.25, 0.2, 0.15, 0.1]]
        deletion, insertion = (toy(function, image, image, 3) for function in (deletion_curve, insertion_curve))
        assert deletion.fractions.tolist() == [0.0, 0.4, 0.8, 1.0]
        assert deletion.probabilities[0].tolist() == pytest.approx([1.0, 0.45, 0.1, 0.0], abs=1e-15)
        assert [curve_area(*curve).item() for curve in (deletion, insertion)] == pytest.approx([0.41, 0.59])

    @each_curve
    @pytest.mark.parametrize("steps", [1, 2, 5, 10, 100])
    def test_area_does_not_grow_with_the_steps(self, function: Callable[..., Curve], steps: int) -> None:
        """On a uniform image every curve is the diagonal, however finely it is drawn."""
        image = torch.full((10, 10), 1 / 64)
        curve = toy(function, image.tolist(), torch.arange(100.0).view(10, 10).tolist(), steps)
        assert len(curve.fractions) == steps + 1
        assert curve_area(*curve).item() == pytest.approx(50 / 64, rel=1e-12)

    @pytest.mark.parametrize(("sign", "expected"), [(1, [0.005, 0.995]), (-1, [0.995, 0.005])])
    def test_perfect_and_inverted_maps_reach_the_ends(self, sign: int, expected: list[float]) -> None:
        """One pixel in a hundred holds the class: it leaves first or last, and no area can be smaller or larger."""
        image = torch.zeros(10, 10)
        image[6, 3] = 1.0
        curves = [toy(f, image.tolist(), (sign * image).tolist(), 100) for f in (deletion_curve, insertion_curve)]
        assert [curve_area(*curve).item() for curve in curves] == pytest.approx(expected)


class TestReference:
    """The definition with loops, on a network."""

    @pytest.mark.parametrize("steps", [1, 5, 64])
    def test_curves_equal_loops_over_steps_and_pixels(self, steps: int) -> None:
        """Baselines of their own for deletion and insertion, as in the paper."""
        net, (images, maps, targets) = small_net().double(), example(3)
        hidden = black(images, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
        soft = blurred(images, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
        curves = perturbation_curves(net, images, maps, targets, baseline=hidden, insertion_baseline=soft, steps=steps)
        for n in range(3):
            pixels = sorted(range(64), key=lambda p: -maps[n].flatten()[p].item())
            for k in range(steps + 1):
                deleted, inserted = images[n].clone(), soft[n].clone()
                for p in pixels[: math.ceil(k * 64 / steps)]:
                    deleted[:, p // 8, p % 8] = hidden[:, 0, 0]
                    inserted[:, p // 8, p % 8] = images[n, :, p // 8, p % 8]
                for found, image in ((curves.deletion_curve, deleted), (curves.insertion_curve, inserted)):
                    expected = net(image[None]).softmax(1)[0, targets[n]].item()
                    assert found[n, k].item() == pytest.approx(expected, rel=1e-10)

    @each_curve
    def test_both_curves_are_the_single_ones(self, function: Callable[..., Curve]) -> None:
        """Sharing the ends changes nothing."""
        net, given = small_net().double(), example()
        both = perturbation_curves(net, *given, baseline=ZERO, steps=6)
        alone = function(net, *given, baseline=ZERO, steps=6)
        torch.testing.assert_close(getattr(both, function.__name__), alone.probabilities, rtol=1e-12, atol=0)
        assert torch.equal(both.fractions, alone.fractions)

    @each_curve
    @pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
    def test_batch_size_is_of_no_consequence(self, function: Callable[..., Curve], batch_size: int) -> None:
        """Steps may be split or joined."""
        net, given = small_net().double(), example()
        whole = function(net, *given, baseline=ZERO, steps=6)
        parts = function(net, *given, baseline=ZERO, steps=6, batch_size=batch_size)
        torch.testing.assert_close(parts.probabilities, whole.probabilities, rtol=1e-12, atol=0)

    @each_curve
    def test_order_of_images_is_of_no_consequence(self, function: Callable[..., Curve]) -> None:
        """Each image has its own curve."""
        net, given, order = small_net().double(), example(), [3, 0, 4, 2, 1]
        there = function(net, *given, baseline=ZERO, steps=6).probabilities
        back = function(net, *(tensor[order] for tensor in given), baseline=ZERO, steps=6).probabilities
        torch.testing.assert_close(back, there[order], rtol=1e-12, atol=0)


class TestForwards:
    """What a curve costs."""

    @pytest.mark.parametrize(("steps", "both"), [(1, 2), (2, 4), (10, 20)])
    def test_both_curves_share_their_ends(self, steps: int, both: int) -> None:
        """2 (s - 1) + 2 forwards of all images, against s + 1 for one curve."""
        predict, alone = Forwards(), Forwards()
        perturbation_curves(predict, *example(), baseline=ZERO, steps=steps)
        deletion_curve(alone, *example(), baseline=ZERO, steps=steps)
        assert predict.sizes == [5] * both
        assert alone.sizes == [5] * (steps + 1)

    def test_another_baseline_for_insertion_costs_one_more(self) -> None:
        """The image itself is still shared."""
        predict = Forwards()
        perturbation_curves(predict, *example(), baseline=ZERO, insertion_baseline=torch.tensor(1.0), steps=10)
        assert predict.sizes == [5] * 21

    def test_batch_size_bounds_every_forward(self) -> None:
        """Five images and three points in batches of four."""
        predict = Forwards()
        deletion_curve(predict, *example(), baseline=ZERO, steps=2, batch_size=4)
        assert predict.sizes == [4, 4, 4, 3]

    def test_no_graph_is_kept_and_nothing_is_written_to(self) -> None:
        """The network's parameters require gradients; images, maps and targets are the caller's."""
        given = example()
        kept = [tensor.clone() for tensor in given]
        assert not deletion_curve(small_net().double(), *given, baseline=ZERO).probabilities.requires_grad
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))


class TestTolerance:
    """Curves that are computed where they bend."""

    @pytest.mark.parametrize("function", [deletion_curve, insertion_curve])
    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 16, 30])
    def test_without_tolerance_every_point_is_computed(self, function: Any, steps: int) -> None:
        """Also where neighbours are equal: the image is black but for one pixel."""
        images, predict = torch.zeros(1, 1, 8, 8, dtype=torch.float64), Forwards()
        images[0, 0, 2, 3] = 1.0
        function(
            lambda shown: predict(shown.expand(-1, 3, -1, -1)), images, images[:, 0], FIRST, baseline=ZERO, steps=steps
        )
        assert sum(predict.sizes) == steps + 1

    @pytest.mark.parametrize("tolerance", [0.005, 0.015])
    def test_no_point_is_computed_between_neighbours_that_agree(self, tolerance: float) -> None:
        """The rule itself, for each image: a straight line there, the exact value everywhere else."""
        data, predict = example(), Forwards()
        options: dict[str, Any] = {"baseline": ZERO, "steps": 16, "score": pre_softmax}
        exact = deletion_curve(predict, *data, **options).probabilities
        predict.sizes.clear()
        found = deletion_curve(predict, *data, tolerance=tolerance, **options).probabilities
        expected, computed = exact.clone(), 0
        for curve in expected:
            computed += 5
            for low in (0, 4, 8, 12):
                computed += refined(curve, low, low + 4, tolerance, True)
        torch.testing.assert_close(found, expected)
        assert 25 < computed < 5 * 17
        assert sum(predict.sizes) == computed

    def test_scores_that_are_not_finite_are_looked_at_closely(self) -> None:
        """They agree with nothing."""
        predict = Forwards()
        broken = lambda images: predict(images) * torch.nan  # noqa: E731
        curve = deletion_curve(broken, *example(), baseline=ZERO, steps=16, tolerance=0.9)
        assert sum(predict.sizes) == 5 * 17
        assert curve.probabilities.isnan().all()

    def test_methods_share_a_sweep(self) -> None:
        """Maps (M,N,H,W) give the curves of each method, in passes that are filled across them."""
        images, maps, targets = example()
        both, predict = torch.stack([maps, -maps]), Forwards()
        curves = deletion_curve(predict, images, both, targets, baseline=ZERO, steps=4).probabilities
        assert curves.shape == (2, 5, 5)
        assert predict.sizes == [5] * 10
        for found, one in zip(curves, both, strict=True):
            alone = deletion_curve(predict, images, one, targets, baseline=ZERO, steps=4).probabilities
            torch.testing.assert_close(found, alone)


def refined(curve: Tensor, low: int, high: int, tolerance: float, known: bool) -> int:
    """Make a curve straight between neighbours that agree, downwards; returns how many points are left to compute."""
    if high - low < 2:
        return 0
    middle, bent = (low + high) // 2, known and abs(float(curve[high] - curve[low])) >= tolerance
    if not bent:
        curve[middle] = curve[low] + (curve[high] - curve[low]) * (middle - low) / (high - low)
    return bent + refined(curve, low, middle, tolerance, bent) + refined(curve, middle, high, tolerance, bent)


class TestErrors:
    """What is refused."""

    @each_curve
    @pytest.mark.parametrize("steps", [0, 65])
    def test_steps_beyond_the_pixels_are_refused(self, function: Callable[..., Curve], steps: int) -> None:
        """A step of no pixel would repeat a fraction."""
        with pytest.raises(ValueError, match=rf"`steps` expected a number in \[1, 64\], .* got {steps}"):
            function(small_net().double(), *example(), baseline=ZERO, steps=steps)

    @each_curve
    def test_maps_of_a_layer_are_refused(self, function: Callable[..., Curve]) -> None:
        """The remedy is named."""
        images, maps, targets = example()
        with pytest.raises(ValueError, match=r"`maps` expected .* \(5, 8, 8\), got \(5, 4, 4\). Upsample"):
            function(small_net(), images, maps[:, :4, :4], targets, baseline=ZERO)

    def test_targets_of_another_number_are_refused(self) -> None:
        """One class for each image."""
        images, maps, targets = example()
        with pytest.raises(ValueError, match=r"`targets` expected one class for each image, \(5,\), got \(4,\)"):
            deletion_curve(small_net(), images, maps, targets[:4], baseline=ZERO)

    def test_output_that_is_no_logits_is_refused(self) -> None:
        """Feature maps instead of logits."""
        with pytest.raises(ValueError, match=r"`predict` expected to return logits \(5, K\), got \(5, 3, 8, 8\)"):
            deletion_curve(torch.nn.Identity(), *example(), baseline=ZERO)

    def test_batches_of_nothing_are_refused(self) -> None:
        """Zero would never end."""
        with pytest.raises(ValueError, match="`batch_size` expected 1 or more, or None for all images, got 0"):
            deletion_curve(small_net(), *example(), baseline=ZERO, batch_size=0)

    @pytest.mark.parametrize("fractions", [[0.0, 0.5], [0.5, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0]])
    def test_curves_without_both_ends_are_refused(self, fractions: list[float]) -> None:
        """Their areas could not be compared with others."""
        with pytest.raises(ValueError, match="`fractions` expected to increase from 0 to 1"):
            curve_area(torch.tensor(fractions), torch.zeros(1, len(fractions)))

    def test_curves_of_another_length_are_refused(self) -> None:
        """Points and fractions belong together."""
        with pytest.raises(ValueError, match=r"expected \(S\+1,\) and \(N,S\+1\), got \(2,\) and \(1, 3\)"):
            Deletion().update(torch.tensor([0.0, 1.0]), torch.zeros(1, 3))

    def test_curves_of_another_number_of_steps_are_refused(self) -> None:
        """The remedy is named."""
        with pytest.raises(ValueError, match=r"17 points for 16 steps, got 3. Create `Insertion\(steps=2\)`"):
            Insertion().update(torch.tensor([0.0, 0.5, 1.0]), torch.zeros(1, 3))


class TestMetric:
    """What is known after compute."""

    def test_mean_curve_and_values_of_images_are_kept(self) -> None:
        """In the order of the updates; areas are those of each batch's own fractions."""
        metric = Deletion(keep_values=True)
        for batch in TestDeletion.batches:
            metric.update(**batch)
        area = metric.compute()
        curves = torch.cat([batch["deletion_curve"] for batch in TestDeletion.batches])
        areas = [curve_area(*batch.values()) for batch in TestDeletion.batches]
        torch.testing.assert_close(metric.curve, curves.mean(0))
        torch.testing.assert_close(metric.values, torch.cat(areas))
        torch.testing.assert_close(area, metric.values.mean())

    def test_area_of_the_mean_curve_is_the_average(self) -> None:
        """Where all images have the same fractions."""
        metric = TestDeletion().filled(TestDeletion.batches[:1])
        area = metric.compute()
        torch.testing.assert_close(curve_area(metric.fractions, metric.curve[None])[0], area)

    def test_images_without_a_finite_score_are_left_out_and_counted(self) -> None:
        """Of the curve and of the area alike."""
        metric, fractions = Insertion(steps=2, keep_values=True), torch.tensor([0.0, 0.5, 1.0])
        curves = torch.tensor([[0.0, 1.0, 1.0], [0.0, math.nan, 1.0], [math.inf, 1.0, 1.0]])
        metric.update(fractions, curves)
        assert metric.compute().item() == 0.75
        assert metric.curve.tolist() == [0.0, 1.0, 1.0]
        assert metric.fractions.tolist() == fractions.tolist()
        assert metric.values.isnan().tolist() == [False, True, True]
        assert metric.n_undefined == 2

    def test_calls_of_the_metric_add_up_to_the_same_curve(self) -> None:
        """Forward merges states of its own making."""
        updated, called = Deletion(keep_values=True), Deletion(keep_values=True)
        for batch in TestDeletion.batches:
            updated.update(**batch)
            called(**batch)
        torch.testing.assert_close(called.compute(), updated.compute())
        torch.testing.assert_close(called.curve, updated.curve)
        torch.testing.assert_close(called.values, updated.values)

    def test_plot_draws_the_mean_curve(self) -> None:
        """With its area in the legend, and a second metric on the same axes."""
        deletion, insertion = TestDeletion().filled(TestDeletion.batches), TestInsertion().filled(TestInsertion.batches)
        _, axes = deletion.plot()
        figure, same = insertion.plot(ax=axes)
        assert same is axes
        assert figure is axes.figure
        assert axes.lines[0].get_ydata() == pytest.approx(deletion.curve.tolist())
        assert axes.lines[1].get_xdata() == pytest.approx(insertion.fractions.tolist())
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == [f"Deletion, area {deletion.compute():.3f}", f"Insertion, area {insertion.compute():.3f}"]


def test_collection_equals_metrics_alone() -> None:
    """Also after a first batch on which both agree, which makes torchmetrics merge states of equal names."""
    still = batch_of(2, 9)
    still["insertion_curve"] = still["deletion_curve"]
    batches = [still, *_Curves.all_batches]
    collection = MetricCollection([Deletion(), Insertion()])
    for batch in batches:
        collection.update(**batch)
    expected = {name: mean_area(f"{name.lower()}_curve", batches) for name in ("Deletion", "Insertion")}
    assert {name: value.item() for name, value in collection.compute().items()} == pytest.approx(expected, rel=1e-12)
