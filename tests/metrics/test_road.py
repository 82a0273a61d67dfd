"""ROAD: imputation against a dense solution of the paper's system, removal by loops, and the shared contract."""

import math
from typing import ClassVar

import pytest
import torch
from metrics.contract import Batch, MetricContract
from support import random_images, small_net
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_xai.metrics.road import ROAD, RoadScores, linear_imputation, noisy_linear_imputation, road_scores

NAMES = ("morf_correct", "morf_probabilities", "lerf_correct", "lerf_probabilities")


def batch_of(n: int, seed: int) -> Batch:
    """Random predictions and probabilities at the four default percentages."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.rand(4, n, 4, generator=generator, dtype=torch.float64)
    return {name: column > 0.3 if "correct" in name else column for name, column in zip(NAMES, columns, strict=True)}


class TestROAD(MetricContract):
    """The contract for ROAD."""

    metric_class = ROAD
    higher_is_better = None
    batches: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]

    def reference(self, batches: list[Batch]) -> dict[str, float]:
        """Means over images and percentages, by loops."""
        found = {}
        for kind in ("morf", "lerf"):
            for name, key in (("accuracy", "correct"), ("probability", "probabilities")):
                numbers = [float(v) for batch in batches for row in batch[f"{kind}_{key}"].tolist() for v in row]
                found[f"road_{kind}_{name}"] = math.fsum(numbers) / len(numbers)
        return {**found, "road_gap": found["road_lerf_probability"] - found["road_morf_probability"]}


def dense_imputation(image: Tensor, removed: Tensor) -> Tensor:
    """The paper's system for one channel (H,W), one equation for each pixel, solved as a dense matrix."""
    height, width = image.shape
    matrix, right = torch.eye(height * width, dtype=torch.float64), image.flatten().clone()
    for i in range(height):
        for j in range(width):
            if not removed[i, j]:
                continue
            row = i * width + j
            right[row] = 0.0
            weights = {
                (i + di, j + dj): 1 / 12 if di and dj else 1 / 6
                for di in (-1, 0, 1)
                for dj in (-1, 0, 1)
                if (di or dj) and 0 <= i + di < height and 0 <= j + dj < width
            }
            for (k, m), weight in weights.items():
                matrix[row, k * width + m] = -weight / sum(weights.values())
    return torch.linalg.solve(matrix, right).view(height, width)


def example(n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Images, maps and targets of small_net, float64."""
    images = random_images(n, dtype=torch.float64)
    return images, random_images(n, channels=1, dtype=torch.float64)[:, 0], torch.arange(n) % 3


def holes(n: int = 4, size: int = 8) -> Tensor:
    """Scattered pixels, all but one, a half with two borders, and none; bool (4,H,W)."""
    removed = torch.rand(n, size, size, generator=torch.Generator().manual_seed(3)) < 0.5
    removed[1] = True
    removed[1, 2, 5] = False
    removed[2] = torch.arange(size)[:, None] < size // 2
    removed[3] = False
    return removed


class TestImputation:
    """What stands where pixels were removed."""

    def test_one_pixel_is_the_weighted_mean_of_its_neighbours(self) -> None:
        """Direct neighbours 1/6, diagonal ones 1/12; in the corner the three that there are."""
        image = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 99.0, 6.0], [7.0, 8.0, 90.0]]]], dtype=torch.float64)
        removed = torch.zeros(1, 3, 3, dtype=torch.bool)
        removed[0, 1, 1] = True
        found = linear_imputation(image, removed)[0, 0, 1, 1].item()
        assert found == pytest.approx((2 + 4 + 6 + 8) / 6 + (1 + 3 + 7 + 90) / 12)
        corner = torch.zeros(1, 3, 3, dtype=torch.bool)
        corner[0, 2, 2] = True
        found = linear_imputation(image, corner)[0, 0, 2, 2].item()
        assert found == pytest.approx((6 / 6 + 8 / 6 + 99 / 12) / (1 / 6 + 1 / 6 + 1 / 12))

    def test_imputation_equals_the_dense_solution(self) -> None:
        """Scattered pixels, a border, and a single pixel that is left."""
        images, removed = random_images(dtype=torch.float64), holes()
        found = linear_imputation(images, removed)
        for n in range(4):
            for channel in range(3):
                expected = dense_imputation(images[n, channel], removed[n])
                torch.testing.assert_close(found[n, channel], expected, rtol=0, atol=1e-4)

    def test_pixels_that_were_left_are_the_same(self) -> None:
        """Bit for bit, in the images' dtype, and whatever stood in the hole."""
        images, removed = random_images(), holes()
        spoilt = images.masked_fill(removed[:, None], math.nan)
        found = linear_imputation(spoilt, removed)
        assert found.dtype == images.dtype
        assert torch.equal(found[~removed[:, None].expand_as(found)], images[~removed[:, None].expand_as(images)])
        assert found.isfinite().all()

    def test_hole_inside_black_ends(self) -> None:
        """No neighbour differs from zero though the image does: the residual has nothing to be relative to."""
        images = torch.zeros(1, 1, 9, 9)
        images[..., 0] = 5.0
        removed = torch.zeros(1, 9, 9, dtype=torch.bool)
        removed[:, 3:6, 3:6] = True
        assert linear_imputation(images, removed).abs()[..., 1:].max().item() < 1e-4

    def test_image_with_nan_ends_as_nan_and_spares_the_others(self) -> None:
        """A spoilt image keeps nobody waiting."""
        images, removed = random_images(dtype=torch.float64), holes()
        images[0, :, ~removed[0]] = math.nan
        found = linear_imputation(images, removed)
        assert found[0].isnan().any()
        torch.testing.assert_close(found[1:], linear_imputation(images[1:], removed[1:]), rtol=0, atol=1e-12)

    def test_noise_is_that_of_the_image(self) -> None:
        """The same in every batch and order, another for another seed, none where pixels are left."""
        images, removed = random_images(), holes()
        removed[3] = removed[0]
        found = noisy_linear_imputation(images, removed)
        back = noisy_linear_imputation(images.flip(0), removed.flip(0)).flip(0)
        torch.testing.assert_close(back, found, rtol=0, atol=1e-6)
        torch.testing.assert_close(noisy_linear_imputation(images[1:2], removed[1:2]), found[1:2], rtol=0, atol=1e-6)
        assert not torch.allclose(noisy_linear_imputation(images, removed, seed=1), found, atol=1e-3)
        left = ~removed[:, None].expand_as(found)
        assert torch.equal(found[left], images[left])

    def test_noise_has_the_deviation_of_the_paper(self) -> None:
        """0.01 around the solution, to a few percent of 1536 pixels."""
        images = random_images(8)
        removed = torch.ones(8, 8, 8, dtype=torch.bool)
        removed[:, 0, 0] = False
        noise = noisy_linear_imputation(images, removed) - linear_imputation(images, removed)
        assert noise.std().item() == pytest.approx(0.01, rel=0.06)
        assert noise.mean().item() == pytest.approx(0.0, abs=0.001)

    def test_random_state_is_left_alone(self) -> None:
        """Noise of its own generators."""
        before = torch.get_rng_state()
        noisy_linear_imputation(random_images(), holes())
        assert torch.equal(torch.get_rng_state(), before)

    def test_image_of_which_nothing_is_left_is_refused(self) -> None:
        """There is nothing to impute from."""
        with pytest.raises(ValueError, match="`removed` expected to leave a pixel of each image"):
            linear_imputation(random_images(1), torch.ones(1, 8, 8, dtype=torch.bool))

    def test_masks_of_another_kind_are_refused(self) -> None:
        """Floats would be weights."""
        with pytest.raises(ValueError, match=r"`removed` expected bool of shape \(1, 8, 8\), got torch.float32"):
            linear_imputation(random_images(1), torch.ones(1, 8, 8))


class TestScores:
    """Which pixels are removed, and what is predicted then."""

    def test_scores_equal_a_loop_over_images_and_percentages(self) -> None:
        """The most relevant pixels of the signed map, then the least relevant ones."""
        net, (images, maps, targets) = small_net().double(), example(3)
        scores = road_scores(net, images, maps, targets, percentages=[10, 50])
        for n in range(3):
            pixels = sorted(range(64), key=lambda p: -maps[n].flatten()[p].item())
            for p, count in enumerate([6, 32]):
                for order, correct, probabilities in ((pixels, *scores[:2]), (pixels[::-1], *scores[2:])):
                    removed = torch.zeros(64, dtype=torch.bool)
                    removed[order[:count]] = True
                    logits = net(noisy_linear_imputation(images[n : n + 1], removed.view(1, 8, 8)))[0]
                    expected = logits.softmax(0)[targets[n]].item()
                    assert probabilities[n, p].item() == pytest.approx(expected, rel=1e-6)
                    assert correct[n, p].item() == (logits.argmax() == targets[n]).item()

    @pytest.mark.parametrize("sign", [1, -1])
    def test_perfect_and_inverted_maps_reach_the_ends(self, sign: int) -> None:
        """A bright block is the class: it goes with the first pixels of one order, and stays in the other."""
        images = torch.zeros(2, 1, 10, 10)
        images[0, :, 2:4, 2:4] = images[1, :, 6:8, 5:7] = 1.0

        def bright(images: Tensor) -> Tensor:
            return 1e3 * (images.amax((2, 3)) - 0.5) * torch.tensor([1.0, -1.0])

        metric = ROAD(keep_values=True)
        targets = torch.tensor([0, 0])
        metric.update(**road_scores(bright, images, sign * images[:, 0], targets, noise=0.0)._asdict())
        found = {name.removeprefix("road_"): value.item() for name, value in metric.compute().items()}
        removed, stayed = ("morf", "lerf") if sign > 0 else ("lerf", "morf")
        assert found[f"{removed}_accuracy"] == 0
        assert found[f"{stayed}_accuracy"] == 1
        assert found["gap"] == pytest.approx(sign)
        assert metric.values.tolist() == pytest.approx([sign, sign])

    @pytest.mark.parametrize("sizes", [[6], [4, 2], [1] * 6, [1, 5]])
    def test_result_uses_all_batches(self, sizes: list[int]) -> None:
        """Quantus keeps the first batch only, so that six images in batches of 6, 2 and 1 give three results."""
        net, given = small_net().double(), example(6)
        metric = ROAD()
        for part in zip(*(tensor.split(sizes) for tensor in given), strict=True):
            metric.update(**road_scores(net, *part)._asdict())
        whole = road_scores(net, *given)
        found = metric.compute()
        assert found["road_morf_accuracy"].item() == pytest.approx(whole.morf_correct.double().mean().item())
        assert found["road_lerf_probability"].item() == pytest.approx(whole.lerf_probabilities.mean().item(), rel=1e-6)
        first = whole.morf_correct[0].double().mean().item()
        assert found["road_morf_accuracy"].item() != pytest.approx(first), "the first image alone gives the same"

    def test_order_of_images_is_of_no_consequence(self) -> None:
        """Imputation, noise and scores are each image's own."""
        net, given, order = small_net().double(), example(), [3, 0, 4, 2, 1]
        there, back = road_scores(net, *given), road_scores(net, *(tensor[order] for tensor in given))
        for before, after in zip(there, back, strict=True):
            torch.testing.assert_close(after.double(), before[order].double(), rtol=1e-6, atol=0)

    def test_two_forwards_are_made_for_each_percentage(self) -> None:
        """With all images."""
        sizes = []

        def counted(images: Tensor) -> Tensor:
            sizes.append(len(images))
            return torch.zeros(len(images), 3)

        road_scores(counted, *example(), percentages=[10, 20, 30])
        assert sizes == [5] * 6

    def test_arguments_are_not_written_to(self) -> None:
        """Images, maps and targets are the caller's, and no graph is kept."""
        given = example()
        kept = [tensor.clone() for tensor in given]
        scores = road_scores(small_net().double(), *given)
        assert not scores.morf_probabilities.requires_grad
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))

    @pytest.mark.parametrize("percentage", [0, 0.5, 99.5, 100])
    def test_percentages_that_remove_nothing_or_all_are_refused(self, percentage: float) -> None:
        """Of 64 pixels."""
        with pytest.raises(ValueError, match=r"`percentages` expected .* some of the 64 pixels and leave some"):
            road_scores(small_net(), *example(), percentages=[percentage])


class TestMetric:
    """What is known after compute."""

    def test_curves_are_means_over_images(self) -> None:
        """At each percentage."""
        metric = TestROAD().filled(TestROAD.batches)
        metric.compute()
        for curve, name in zip(metric.curves.values(), NAMES, strict=True):
            torch.testing.assert_close(curve, torch.cat([batch[name] for batch in TestROAD.batches]).double().mean(0))

    def test_images_without_a_probability_are_left_out_and_counted(self) -> None:
        """Of accuracy and probability alike."""
        metric, right = ROAD(percentages=[50], keep_values=True), torch.tensor([[True], [True]])
        metric.update(right, torch.tensor([[0.25], [math.nan]]), right, torch.tensor([[0.5], [0.5]]))
        assert metric.compute()["road_morf_probability"].item() == 0.25
        assert metric.n_undefined == 1
        assert metric.values.isnan().tolist() == [False, True]

    def test_other_percentages_are_refused(self) -> None:
        """Function and metric were given different ones."""
        with pytest.raises(ValueError, match=r"four tensors \(N, 3\).*Give function and metric the same"):
            ROAD(percentages=[10, 20, 30]).update(**batch_of(2, 0))

    def test_plot_draws_both_orders(self) -> None:
        """Accuracy over percentages, one colour for one method."""
        metric = TestROAD().filled(TestROAD.batches)
        figure, axes = metric.plot(label="gradcam")
        assert axes.lines[0].get_ydata() == pytest.approx(metric.curves["morf_accuracy"].tolist())
        assert axes.lines[1].get_ydata() == pytest.approx(metric.curves["lerf_accuracy"].tolist())
        assert axes.lines[0].get_color() == axes.lines[1].get_color()
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["gradcam morf", "gradcam lerf"]
        assert metric.plot(ax=axes)[1] is axes
        assert axes.lines[2].get_color() != axes.lines[0].get_color()
        assert figure is axes.figure

    def test_collection_takes_the_scores_by_name(self) -> None:
        """Values keep their own names."""
        collection = MetricCollection([ROAD()])
        collection.update(**RoadScores(*TestROAD.batches[0].values())._asdict(), targets=torch.zeros(5))
        assert {name: v.item() for name, v in collection.compute().items()} == pytest.approx(
            TestROAD().reference(TestROAD.batches[:1])
        )
