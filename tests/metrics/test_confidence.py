"""Confidence metrics: toys with answers on paper, references in 60 decimal digits, and the shared contract."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from metrics.contract import Batch, MetricContract, alone_and_collected, values_on_two_ranks
from support import random_images, small_net
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_xai.baselines import black
from lightning_xai.metrics import (
    AbsoluteDrop,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    RelativeGain,
    absolute_drop,
    average_drop,
    average_gain,
    average_increase,
    masked_scores,
    relative_gain,
)
from lightning_xai.scores import log_sigmoid, log_softmax, post_softmax, pre_softmax

FUNCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [average_drop, average_increase, average_gain]
VARIANTS: list[Callable[[Tensor, Tensor], Tensor]] = [absolute_drop, relative_gain]
METRICS: dict[str, Metric] = {
    "drop": AverageDrop(),
    "increase": AverageIncrease(),
    "gain": AverageGain(),
    "absolute drop": AbsoluteDrop(),
    "relative gain": RelativeGain(),
}
ZERO = torch.tensor(0.0)

each_function = pytest.mark.parametrize("function", FUNCTIONS + VARIANTS)


def logs(*probabilities: float) -> Tensor:
    """Log-probabilities, float64."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def batch_of(n: int, seed: int) -> Batch:
    """Random log-probabilities (n,) of images and masked images, small and large ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 8 * torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    targets = torch.zeros(n, dtype=torch.long)
    return {"scores": log_softmax(logits[0], targets), "masked_scores": log_softmax(logits[1], targets)}


def exact_mean(formula: Callable[[Decimal, Decimal], Decimal], batches: list[Batch]) -> float:
    """Mean of a formula in p and o over all images, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        pairs = [pair for b in batches for pair in zip(b["scores"].tolist(), b["masked_scores"].tolist(), strict=True)]
        values = [formula(Decimal(before).exp(), Decimal(after).exp()) for before, after in pairs]
        return float(100 * sum(values) / len(values))


class _Confidence(MetricContract):
    batches: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]
    formula: ClassVar[Callable[[Decimal, Decimal], Decimal]]

    def reference(self, batches: list[Batch]) -> float:
        return exact_mean(type(self).formula, batches)


class TestAverageDrop(_Confidence):
    """The contract for AverageDrop."""

    metric_class = AverageDrop
    higher_is_better = False
    formula = staticmethod(lambda p, o: max(Decimal(0), p - o) / p)


class TestAverageIncrease(_Confidence):
    """The contract for AverageIncrease."""

    metric_class = AverageIncrease
    higher_is_better = True
    formula = staticmethod(lambda p, o: Decimal(o > p))


class TestAverageGain(_Confidence):
    """The contract for AverageGain."""

    metric_class = AverageGain
    higher_is_better = True
    formula = staticmethod(lambda p, o: max(Decimal(0), o - p) / (1 - p))


class TestAbsoluteDrop(_Confidence):
    """The contract for AbsoluteDrop."""

    metric_class = AbsoluteDrop
    higher_is_better = False
    formula = staticmethod(lambda p, o: max(Decimal(0), p - o))


class TestRelativeGain(_Confidence):
    """The contract for RelativeGain."""

    metric_class = RelativeGain
    higher_is_better = True
    formula = staticmethod(lambda p, o: max(Decimal(0), o - p) / p)


def sum_of_pixels(images: Tensor) -> Tensor:
    """torch-cam's toy classifier (its tests/test_metrics.py): one output, the sum of the pixels."""
    return images.sum((1, 2, 3))[:, None]


def log_of_sum(outputs: Tensor, targets: Tensor) -> Tensor:
    """Reads the sum of the pixels as a probability."""
    return outputs[:, 0].log().clamp(max=0)


def toy(image: list[list[float]], its_map: list[list[float]]) -> list[float]:
    """Drop, increase and gain of one image (H,W) whose probability is the sum of its pixels."""
    images, maps = torch.tensor([[image]], dtype=torch.float64), torch.tensor([its_map], dtype=torch.float64)
    targets = torch.tensor([0])
    after = masked_scores(sum_of_pixels, images, maps, targets, baseline=ZERO, score=log_of_sum)
    before = log_of_sum(sum_of_pixels(images), targets)
    return [function(before, after).item() for function in FUNCTIONS]


class TestMaskedScores:
    """The one masked forward that all metrics share."""

    def test_sum_classifier_that_is_shown_one_pixel_drops_by_the_others(self) -> None:
        """0.4 of 1.0 is left: torch-cam's known answer."""
        assert toy([[0.4, 0.3], [0.2, 0.1]], [[9.0, -1.0], [0.0, 0.0]]) == pytest.approx([60, 0, 0])

    def test_sum_classifier_gains_when_a_negative_pixel_is_hidden(self) -> None:
        """From 0.4 to 0.7: half of the 0.6 that were missing."""
        assert toy([[0.4, -0.3], [0.2, 0.1]], [[1.0, 0.0], [1.0, 1.0]]) == pytest.approx([0, 100, 50])

    def test_constant_map_shows_the_baseline_only(self) -> None:
        """A map without contrast loses everything that the baseline does not hold."""
        assert toy([[0.4, 0.3], [0.2, 0.1]], [[1.0, 1.0], [1.0, 1.0]]) == [100, 0, 0]

    def test_scores_equal_a_loop_over_images(self) -> None:
        """One batched forward is the formula of each image alone, in float64."""
        model, targets = small_net().double(), torch.tensor([0, 1, 2, 0, 1])
        images, maps = random_images(5).double(), random_images(5, channels=1)[:, 0].double()
        baseline = black(images, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
        found = masked_scores(model, images, maps, targets, baseline=baseline)
        for i, c in enumerate(targets.tolist()):
            mask = maps[i].relu() / maps[i].max()  # each map has negative values, so its minimum is 0 after ReLU
            logits = model((images[i] * mask + baseline * (1 - mask))[None])[0]
            assert found[i].item() == pytest.approx(logits.softmax(0)[c].log().item(), rel=1e-10)

    def test_scores_of_a_float32_model_keep_float64_digits(self) -> None:
        """1 - p of a margin of 40 is e^-40, though p is 1.0."""

        def certain(images: Tensor) -> Tensor:
            return torch.tensor([[40.0, 0.0]]).expand(len(images), 2)

        images, maps, targets = torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([0])
        found = masked_scores(certain, images, maps, targets, baseline=ZERO)
        assert found.dtype == torch.float64
        assert -torch.expm1(found).item() == pytest.approx(math.exp(-40), rel=1e-12)

    def test_sigmoid_heads_have_a_log_probability_too(self) -> None:
        """One logit of 1, target 0: the probability of the other side."""
        images, maps, targets = torch.ones(1, 1, 1, 2), torch.tensor([[[1.0, 0.0]]]), torch.tensor([0])
        found = masked_scores(sum_of_pixels, images, maps, targets, baseline=ZERO, score=log_sigmoid)
        assert found.exp().item() == pytest.approx(1 / (1 + math.e), rel=1e-12)

    def test_one_forward_is_made(self) -> None:
        """The model is called once, with all masked images."""
        calls = []

        def counted(images: Tensor) -> Tensor:
            calls.append(len(images))
            return torch.zeros(len(images), 2)

        masked_scores(counted, random_images(3), torch.rand(3, 8, 8), torch.tensor([0, 1, 0]), baseline=ZERO)
        assert calls == [3]

    def test_arguments_are_not_written_to(self) -> None:
        """Images, maps and targets are the caller's."""
        given = random_images(2), random_images(2, channels=1)[:, 0], torch.tensor([0, 1])
        kept = [tensor.clone() for tensor in given]
        masked_scores(small_net(), *given, baseline=ZERO)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))

    def test_targets_of_another_number_are_refused(self) -> None:
        """Gathering would silently shorten the batch."""
        with pytest.raises(ValueError, match=r"`targets` expected one class for each image, \(2,\), got \(1,\)"):
            masked_scores(small_net(), random_images(2), torch.rand(2, 8, 8), torch.tensor([0]), baseline=ZERO)

    def test_output_that_is_no_logits_is_refused(self) -> None:
        """Feature maps instead of logits."""
        targets = torch.tensor([0, 0])
        with pytest.raises(ValueError, match=r"`predict` expected to return logits \(2, K\), got \(2, 3, 8, 8\)"):
            masked_scores(torch.nn.Identity(), random_images(2), torch.rand(2, 8, 8), targets, baseline=ZERO)


class TestFormulas:
    """The per-image functions where floating point would betray a naive form."""

    def test_gain_is_exact_where_p_rounds_to_one(self) -> None:
        """Margins 40 and 50 between two logits: 1 - sigmoid(-50) / sigmoid(-40), though both p are 1.0 in float64."""
        targets = torch.tensor([0])
        scores = [log_softmax(torch.tensor([[m, 0.0]], dtype=torch.float64), targets) for m in (40.0, 50.0)]
        assert [score.exp().item() for score in scores] == [1.0, 1.0]
        with localcontext() as context:
            context.prec = 60
            missing = [1 / (1 + Decimal(m).exp()) for m in (40, 50)]
            expected = float(100 * (1 - missing[1] / missing[0]))
        assert average_gain(*scores).item() == pytest.approx(expected, rel=1e-14)
        assert average_increase(*scores).item() == 100

    def test_drop_is_exact_where_p_underflows(self) -> None:
        """exp(-800) is 0 in float64, its ratio to exp(-801) is not."""
        scores = torch.tensor([-800.0, -801.0], dtype=torch.float64)[:, None]
        assert scores.exp().eq(0).all()
        assert average_drop(*scores).item() == pytest.approx(100 * (1 - math.exp(-1)), rel=1e-14)

    @each_function
    @pytest.mark.parametrize("score", [0.0, -math.inf, -1.0])
    def test_unchanged_confidence_is_nothing(self, function: Callable[[Tensor, Tensor], Tensor], score: float) -> None:
        """Also at p = 1 and p = 0, where the formulas read 0/0."""
        scores = torch.tensor([score], dtype=torch.float64)
        assert function(scores, scores.clone()).tolist() == [0.0]

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [(1.0, 0.0, [100, 0, 0]), (0.0, 1.0, [0, 100, 100]), (1.0, 0.5, [50, 0, 0]), (0.0, 0.5, [0, 100, 50])],
    )
    def test_certain_and_impossible_classes_have_their_limits(
        self, before: float, after: float, expected: list[float]
    ) -> None:
        """Drop, increase and gain from and to probabilities of exactly 0 and 1."""
        assert [function(logs(before), logs(after)).item() for function in FUNCTIONS] == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            (1.0, 0.0, [100, 0]),
            (0.0, 1.0, [0, math.inf]),
            (1.0, 0.5, [50, 0]),
            (0.2, 0.6, [0, 200]),
            (0.2, 0.1, [10, 0]),
        ],
    )
    def test_variants_differ_by_their_denominators(self, before: float, after: float, expected: list[float]) -> None:
        """Absolute drop p - o and relative gain (o - p) / p, infinite from nothing."""
        assert [function(logs(before), logs(after)).item() for function in VARIANTS] == pytest.approx(expected)

    def test_variants_are_the_defaults_times_their_denominators(self) -> None:
        """Dividing the absolute drop by p, or taking the relative gain's p for 1 - p, gives back the default."""
        batch = batch_of(50, 5)
        p = batch["scores"].exp()
        torch.testing.assert_close(absolute_drop(**batch) / p, average_drop(**batch))
        torch.testing.assert_close(relative_gain(**batch) * p / (1 - p), average_gain(**batch))

    @pytest.mark.parametrize("function", [*FUNCTIONS, absolute_drop])
    def test_values_stay_between_0_and_100(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Over margins from certain to impossible, not a digit outside."""
        margins = torch.linspace(-60, 60, 121, dtype=torch.float64)
        scores = torch.cartesian_prod(*[torch.nn.functional.logsigmoid(margins)] * 2).T
        values = function(*scores)
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert (values <= 100).all()

    @each_function
    def test_result_is_float64_per_image(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """float32 scores are widened before anything is computed."""
        values = function(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0]))
        assert values.dtype == torch.float64
        assert values.shape == (2,)

    @each_function
    @pytest.mark.parametrize("score", [post_softmax, pre_softmax])
    def test_probabilities_and_logits_are_refused(
        self, function: Callable[[Tensor, Tensor], Tensor], score: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        """The error says what to use instead."""
        scores = score(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        with pytest.raises(ValueError, match=r"`scores` expected log-probabilities .*Use `lightning_xai.scores.log"):
            function(scores, scores)

    @each_function
    def test_nan_is_refused(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """A model that diverged is not averaged away."""
        with pytest.raises(ValueError, match=r"`masked_scores` expected log-probabilities in .*got nan"):
            function(logs(0.5), torch.tensor([math.nan], dtype=torch.float64))

    @each_function
    def test_shapes_that_differ_are_refused(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """No broadcasting of one masked score over all images."""
        with pytest.raises(ValueError, match=r"one number for each image, .* got \(2,\) and \(1,\)"):
            function(logs(0.5, 0.5), logs(0.5))

    @each_function
    def test_dtypes_that_differ_are_refused(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """float32 against float64 of the same logits would count as increases."""
        with pytest.raises(ValueError, match=r"expected one dtype.*Compute both from `logits.double\(\)`"):
            function(logs(0.5).float(), logs(0.5))


def test_collection_equals_metrics_alone() -> None:
    """Also after a first batch on which all agree, which makes torchmetrics merge states of equal names."""
    still = {"scores": logs(0.5, 0.25), "masked_scores": logs(0.5, 0.25)}
    alone, collected = alone_and_collected(METRICS, [still, *_Confidence.batches])
    assert collected == alone
    assert len(set(alone.values())) == len(METRICS)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Uneven batches on two ranks, and a rank without images, give every rank the value of all images."""
    batches = _Confidence.batches
    scenarios = [(batches[:1], batches[1:]), (batches, []), ([], batches[:2])]
    expected = [alone_and_collected(METRICS, first + second)[0] for first, second in scenarios]
    ranks = values_on_two_ranks(METRICS, scenarios, tmp_path)
    assert ranks[0] == ranks[1]
    for found, value in zip(ranks[0], expected, strict=True):
        assert found == pytest.approx(value, rel=1e-12)


def test_kept_values_are_those_of_the_images() -> None:
    """In the order of the updates; the average is their mean, in a collection too."""
    scores, masked = torch.tensor([0.8, 0.5, 1.0]).double().log(), torch.tensor([0.2, 0.6, 0.5]).double().log()
    collection = MetricCollection([type(metric)(keep_values=True) for metric in METRICS.values()])
    collection.update(scores[:2], masked[:2])
    collection.update(scores[2:], masked[2:])
    averages = collection.compute()
    functions = {metric.__name__: metric.formula for metric in map(type, METRICS.values())}
    for name, metric in collection.items():
        function = functions[name]
        torch.testing.assert_close(metric.values, function(scores, masked))
        torch.testing.assert_close(averages[name], metric.values.mean())
    alone = AverageDrop()
    alone.update(scores, masked)
    alone.compute()
    assert alone.values is None
