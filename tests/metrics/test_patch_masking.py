"""Maximal patch masking: a classifier that adds pixels, patches at the border, and the contract."""

import math
from typing import ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from metrics.contract import Batch, MetricContract, alone_and_collected
from metrics.localization_cases import DEGENERATE
from support import random_images, small_net
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_xai.baselines import mean_color
from lightning_xai.metrics import MaximalPatchMasking, patch_masked_scores
from lightning_xai.metrics.patch_masking import patch_masks
from lightning_xai.scores import log_sigmoid, log_softmax, second_best

SIZES = (1, 3, 5, 7, 9)
ZERO = torch.tensor(0.0)


def batch_of(n: int, seed: int) -> Batch:
    """Random log-probabilities of images (n,) and without each of five patches (n,5)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, n, 3, generator=generator, dtype=torch.float64)
    scores = [log_softmax(one, torch.zeros(n, dtype=torch.long)) for one in logits]
    return {"scores": scores[0], "patch_scores": torch.stack(scores[1:], dim=1)}


class TestMaximalPatchMasking(MetricContract):
    """The contract for MaximalPatchMasking."""

    metric_class = MaximalPatchMasking
    higher_is_better = False
    batches: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]

    def reference(self, batches: list[Batch]) -> dict[str, float]:
        rows = [row for b in batches for row in zip(b["scores"].tolist(), b["patch_scores"].tolist(), strict=True)]
        after = {size: [math.exp(patch[i]) for _, patch in rows] for i, size in enumerate(SIZES)}
        before = math.fsum(math.exp(score) for score, _ in rows) / len(rows)
        means = {size: math.fsum(values) / len(rows) for size, values in after.items()}
        return {
            **{f"patch_probability_{size}": mean for size, mean in means.items()},
            **{f"patch_change_{size}": mean - before for size, mean in means.items()},
        }


def sum_of_pixels(images: Tensor) -> Tensor:
    """One logit, the sum of the pixels."""
    return images.sum((1, 2, 3))[:, None]


def log_of_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Reads the sum of the pixels as a probability."""
    return logits[:, 0].log().clamp(max=0)


class TestPatches:
    """Which pixels are masked."""

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("peak", [(0, 0), (5, 6), (5, 0), (2, 3), (0, 4)])
    def test_patch_is_the_square_around_the_maximum_within_the_image(self, size: int, peak: tuple[int, int]) -> None:
        """Corners, borders and the middle of 6 x 7 pixels, against each pixel's distance."""
        maps = torch.zeros(1, 6, 7)
        maps[0, peak[0], peak[1]] = 1.0
        expected = [[max(abs(y - peak[0]), abs(x - peak[1])) <= size // 2 for x in range(7)] for y in range(6)]
        assert patch_masks(maps, size)[0].tolist() == expected

    def test_first_of_tied_maxima_counts(self) -> None:
        """Row by row from the upper left corner."""
        maps = torch.tensor([[[0.0, 0.0, 2.0], [2.0, 2.0, 0.0]]])
        assert patch_masks(maps, 1)[0].nonzero().tolist() == [[0, 2]]

    @pytest.mark.parametrize("name", DEGENERATE)
    def test_map_that_shows_nothing_has_no_patch(self, name: str) -> None:
        """Not the upper left corner, and not the NaN."""
        assert not patch_masks(DEGENERATE[name], 3).any()

    @pytest.mark.parametrize("size", [0, 2, -1])
    def test_patch_without_a_centre_is_refused(self, size: int) -> None:
        """Even sizes and none."""
        with pytest.raises(ValueError, match=f"`size` expected an odd number of pixels.*got {size}"):
            patch_masks(torch.rand(1, 4, 4), size)


class TestScores:
    """The forwards of all sizes."""

    def test_sum_classifier_loses_what_the_patch_holds(self) -> None:
        """Pixels 0.1, 0.2, 0.3, 0.4: the peak at 0.3 takes 0.3, then 0.9, then all."""
        images = torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]], dtype=torch.float64)
        maps = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
        targets = torch.tensor([0])
        found = patch_masked_scores(
            sum_of_pixels, images, maps, targets, baseline=ZERO, sizes=(1, 3, 5), score=log_of_sum
        )
        assert found.exp()[0].tolist() == pytest.approx([0.7, 0.1, 0.0])

    def test_scores_equal_a_loop_over_images_and_sizes(self) -> None:
        """Each image alone, its patch overwritten with the mean colour."""
        model, images = small_net(), random_images(4)
        maps, targets = random_images(4, channels=1)[:, 0], second_best(small_net()(images))
        color = [0.1, 0.2, 0.3]
        baseline = mean_color(images, [0.5] * 3, [0.25] * 3, color=color)
        found = patch_masked_scores(model, images, maps, targets, baseline=baseline)
        for i, c in enumerate(targets.tolist()):
            row, column = divmod(int(maps[i].argmax()), 8)
            for j, half in enumerate((0, 1, 2, 3, 4)):
                image = images[i].clone()
                window = image[:, max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1]
                window[:] = (torch.tensor(color)[:, None, None] - 0.5) / 0.25
                logits = model(image[None])[0].double()
                assert found[i, j].item() == pytest.approx(logits.log_softmax(0)[c].item(), rel=1e-5)

    def test_map_that_shows_nothing_changes_nothing(self) -> None:
        """Every size gives the image's own score."""
        model, images, targets = small_net(), random_images(1), torch.tensor([1])
        found = patch_masked_scores(model, images, torch.zeros(1, 8, 8), targets, baseline=ZERO)
        assert torch.equal(found, log_softmax(model(images).detach().double(), targets)[:, None].expand(1, 5))

    def test_one_forward_is_made_for_each_size(self) -> None:
        """Of all images at once."""
        calls = []

        def counted(images: Tensor) -> Tensor:
            calls.append(len(images))
            return torch.zeros(len(images), 2)

        maps = random_images(3, channels=1)[:, 0]
        patch_masked_scores(counted, random_images(3), maps, torch.tensor([0, 1, 0]), baseline=ZERO, sizes=(1, 9))
        assert calls == [3, 3]

    def test_sigmoid_heads_have_a_log_probability_too(self) -> None:
        """One logit: 1 is left of 3, target 0 is the other side."""
        images, maps = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[0.0, 1.0]]])
        found = patch_masked_scores(
            sum_of_pixels, images, maps, torch.tensor([0]), baseline=ZERO, sizes=(1,), score=log_sigmoid
        )
        assert found.exp().item() == pytest.approx(1 / (1 + math.e))

    def test_arguments_are_not_written_to(self) -> None:
        """Images, maps, targets and baseline are the caller's."""
        given = random_images(2), random_images(2, channels=1)[:, 0], torch.tensor([0, 1]), torch.zeros(3, 1, 1)
        kept = [tensor.clone() for tensor in given]
        patch_masked_scores(small_net(), *given[:3], baseline=given[3])
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))

    def test_maps_of_another_size_are_refused(self) -> None:
        """Maps of a layer that were not upsampled."""
        with pytest.raises(ValueError, match=r"`maps` expected one map for each image.*\(2, 8, 8\), got \(2, 4, 4\)"):
            patch_masked_scores(small_net(), random_images(2), torch.rand(2, 4, 4), torch.tensor([0, 1]), baseline=ZERO)


class TestMetric:
    """What the contract does not ask."""

    def test_scores_of_other_sizes_are_refused(self) -> None:
        """One column for each size."""
        with pytest.raises(ValueError, match=r"`patch_scores` expected one column .*\(2, 5\), got \(2, 3\)"):
            MaximalPatchMasking().update(torch.zeros(2), torch.zeros(2, 3))

    def test_probabilities_are_refused(self) -> None:
        """The error says what to use instead."""
        with pytest.raises(ValueError, match=r"`patch_scores` expected log-probabilities .*log_softmax"):
            MaximalPatchMasking(sizes=(1,)).update(torch.zeros(2), torch.ones(2, 1))

    def test_collection_equals_metrics_alone(self) -> None:
        """The dict's own keys are the names."""
        alone, collected = alone_and_collected({"patch": MaximalPatchMasking()}, TestMaximalPatchMasking.batches)
        assert collected == alone
        assert "patch_change_5" in collected

    def test_metrics_of_other_sizes_do_not_share_states(self) -> None:
        """As many columns and the same values: names must differ all the same."""
        scores = {"scores": torch.tensor([-1.0]), "patch_scores": torch.tensor([[-2.0]])}
        collection = MetricCollection({str(p): MaximalPatchMasking(sizes=(p,)) for p in (1, 3)})
        collection.update(**scores)
        assert len(collection.compute_groups) == 2
        assert set(collection.compute()) == {f"patch_{kind}_{p}" for kind in ("probability", "change") for p in (1, 3)}

    def test_kept_values_are_the_changes_of_the_images(self) -> None:
        """By image and size; their mean is the metric."""
        metric = MaximalPatchMasking(keep_values=True)
        for batch in TestMaximalPatchMasking.batches:
            metric.update(**batch)
        values = metric.compute()
        assert metric.values.shape == (9, 5)
        means = torch.stack([values[f"patch_change_{size}"] for size in SIZES])
        torch.testing.assert_close(metric.values.mean(0), means)

    def test_plot_draws_the_change_by_size(self) -> None:
        """Two methods in one picture, as in figure 11 of Iwana et al. 2019; values are drawn as torchmetrics does."""
        metric = MaximalPatchMasking()
        metric.update(**batch_of(4, 3))
        values = metric.compute()
        figure, axes = metric.plot(label="a")
        assert metric.plot(ax=axes, label="b") == (figure, axes)
        assert [line.get_label() for line in axes.lines] == ["a", "b"]
        assert list(axes.lines[0].get_xdata()) == list(SIZES)
        assert list(axes.lines[0].get_ydata()) == [values[f"patch_change_{size}"].item() for size in SIZES]
        assert isinstance(metric.plot([values, values])[0], Figure)
