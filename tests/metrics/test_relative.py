"""Relative performance: the paper's equations in plain Python, and what is left out and said."""

import copy
import math
import statistics
from typing import Any, ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from metrics.contract import Batch, MetricContract
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_xai.metrics import AverageDrop, RelativePerformance, log_relative_performance

METHODS = ("gradcam", "gradcam+", "random")


class ThreeMethods(RelativePerformance):
    """The metric without arguments, as the contract makes it."""

    def __init__(self) -> None:
        super().__init__(METHODS)


def batch_of(n: int, seed: int) -> dict[str, Any]:
    """Random log-probabilities (n,) of images, half of them above 0.5, and of the images masked by three methods."""
    generator = torch.Generator().manual_seed(seed)
    logs = torch.nn.functional.logsigmoid(3 * torch.randn(4, n, generator=generator, dtype=torch.float64))
    return {"scores": logs[0], "masked_scores_by_method": dict(zip(METHODS, logs[1:], strict=True))}


def logs(*probabilities: float) -> Tensor:
    """Log-probabilities, float64."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def two_methods(before: Tensor, first: Tensor, second: Tensor, **options: Any) -> tuple[Metric, dict[str, float]]:
    """The metric of methods a and b after one batch, and what it computes."""
    metric = RelativePerformance(("a", "b"), **options)
    metric.update(before, {"a": first, "b": second})
    return metric, {name: value.item() for name, value in metric.compute().items()}


class TestContract(MetricContract):
    """The contract for three methods."""

    metric_class = ThreeMethods
    higher_is_better = None  # type: ignore[assignment]
    batches: ClassVar[list[Batch]] = [batch_of(20, 0), batch_of(15, 1), batch_of(12, 2)]

    def reference(self, batches: list[Batch]) -> dict[str, float]:
        """Equations 16 and 17, image by image, with the product under the root."""
        images: list[tuple[float, list[float]]] = []
        for batch in batches:
            columns: dict[str, Tensor] = batch["masked_scores_by_method"]  # type: ignore[assignment]
            rows = zip(*(columns[name].exp().tolist() for name in METHODS), strict=True)
            images += list(zip(batch["scores"].exp().tolist(), map(list, rows), strict=True))
        used = [after for before, after in images if before > 0.5]
        values = {}
        for i, j in ((1, 0), (2, 0), (2, 1)):
            ratios = [after[i] / after[j] for after in used]
            name = f"{METHODS[i]}_vs_{METHODS[j]}"
            values[name] = math.prod(ratios) ** (1 / len(ratios))
            values[f"{name}_log_mean"] = statistics.fmean(map(math.log, ratios))
            values[f"{name}_log_std"] = statistics.stdev(map(math.log, ratios))
        return values | {"n_used": len(used), "n_below_threshold": len(images) - len(used), "n_zero": 0}

    def test_arguments_are_not_written_to(self) -> None:
        """Neither the dict nor its tensors."""
        batch = copy.deepcopy(self.batches[0])
        self.filled([batch])
        torch.testing.assert_close(batch, self.batches[0], rtol=0, atol=0)

    def test_state_holds_no_graph(self) -> None:
        """Arguments with a graph do not keep it alive in the sums."""
        batch: dict[str, Any] = copy.deepcopy(self.batches[0])
        for tensor in (batch["scores"], *batch["masked_scores_by_method"].values()):
            tensor.requires_grad_()
        metric = self.filled([batch])
        assert not any(getattr(metric, state).requires_grad for state in metric._defaults)

    def test_without_images_the_value_is_nan(self) -> None:
        """And the counts are 0."""
        metric = self.metric_class()
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            value = metric.compute()
        assert {name for name, number in value.items() if number == 0} == {"n_used", "n_below_threshold", "n_zero"}
        assert sum(number.isnan() for number in value.values()) == 9


def test_geometric_mean_of_inverse_ratios_is_one() -> None:
    """4 times and a quarter: the arithmetic mean of the ratios would be above 2 for both."""
    metric, found = two_methods(logs(0.9, 0.9), logs(0.2, 0.8), logs(0.8, 0.2))
    assert found["b_vs_a"] == pytest.approx(1, rel=1e-15)
    assert found["b_vs_a_log_std"] == pytest.approx(math.sqrt(2) * math.log(4))
    torch.testing.assert_close(metric.performance, torch.ones(2, 2, dtype=torch.float64))


def test_table_is_antisymmetric_in_logs_and_transitive() -> None:
    """Row against column; a against c is a against b times b against c."""
    metric = ThreeMethods()
    metric.update(**batch_of(50, 3))
    values = metric.compute()
    performance = metric.performance
    assert performance is not None
    torch.testing.assert_close(performance * performance.T, torch.ones(3, 3, dtype=torch.float64))
    torch.testing.assert_close(performance[2, 0], performance[2, 1] * performance[1, 0])
    assert performance[1, 0] == values["gradcam+_vs_gradcam"]
    assert metric.log_std is not None
    assert torch.equal(metric.log_std, metric.log_std.T)


def test_equal_methods_have_no_spread() -> None:
    """Exactly 1 and 0: sums of differences rather than differences of sums."""
    same = batch_of(30, 4)["masked_scores_by_method"]["random"]
    _, found = two_methods(torch.zeros(30, dtype=torch.float64), same, same.clone())
    assert (found["b_vs_a"], found["b_vs_a_log_mean"], found["b_vs_a_log_std"]) == (1, 0, 0)


def test_ratio_survives_probabilities_that_underflow() -> None:
    """exp(-800) and exp(-801) are both 0 in float64, their ratio is e."""
    small = torch.tensor([-801.0, -801.0], dtype=torch.float64)
    _, found = two_methods(logs(1.0, 1.0), small, small + 1)
    assert found["b_vs_a"] == pytest.approx(math.e, rel=1e-12)


@pytest.mark.parametrize(("threshold", "used", "ratio"), [(0.5, 1, 2), (0.6, 1, 2), (0.4, 2, 4), (0.0, 3, 1)])
def test_images_above_the_threshold_count(threshold: float, used: int, ratio: float) -> None:
    """Strictly above, as the paper's more than 0.5; 0 takes every image. Ratios of 2, 8 and 1/16."""
    _, found = two_methods(logs(0.9, 0.5, 0.1), logs(0.4, 0.1, 0.8), logs(0.8, 0.8, 0.05), threshold=threshold)
    assert (found["n_used"], found["n_below_threshold"]) == (used, 3 - used)
    assert found["b_vs_a"] == pytest.approx(ratio)


def test_probability_of_zero_is_left_out_of_all_pairs_and_counted() -> None:
    """One method leaves nothing of the second image; images below the threshold are not counted twice."""
    metric = ThreeMethods()
    masked = {"gradcam": logs(0.2, 0.4, 0.0), "gradcam+": logs(0.4, 0.0, 0.0), "random": logs(0.1, 0.2, 0.1)}
    metric.update(logs(0.9, 0.8, 0.3), masked)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert (found["n_used"], found["n_below_threshold"], found["n_zero"]) == (1, 1, 1)
    assert found["random_vs_gradcam"] == pytest.approx(0.5)
    assert math.isnan(found["random_vs_gradcam_log_std"])


def test_kept_values_are_the_log_ratios_of_the_images_that_count() -> None:
    """Over several batches, in order; the table is their mean and standard deviation."""
    metric = RelativePerformance(METHODS, keep_values=True)
    batches = [batch_of(9, 5), batch_of(4, 6)]
    for batch in batches:
        metric.update(**batch)
    metric.compute()
    columns = [torch.cat([b["masked_scores_by_method"][name] for b in batches]) for name in METHODS]
    used = torch.cat([b["scores"] for b in batches]).exp() > 0.5
    assert metric.values is not None
    torch.testing.assert_close(metric.values[:, 2, 1], (columns[2] - columns[1])[used])
    torch.testing.assert_close(metric.values, log_relative_performance(torch.stack(columns, 1)[used]))
    torch.testing.assert_close(metric.values.mean(0), metric.log_mean)
    torch.testing.assert_close(metric.values.std(0), metric.log_std)


def test_collection_merges_no_two_thresholds() -> None:
    """On a first batch that both take whole their states are equal; the second tells them apart."""
    collection = MetricCollection(
        {"low": RelativePerformance(("a", "b"), threshold=0.0), "high": RelativePerformance(("a", "b"))}
    )
    sure, unsure = logs(0.9), logs(0.1)
    collection.update(scores=sure, masked_scores_by_method={"a": logs(0.2), "b": logs(0.4)})
    collection.update(scores=unsure, masked_scores_by_method={"a": logs(0.2), "b": logs(0.1)})
    found = collection.compute()
    assert found["low_b_vs_a"].item() == pytest.approx(1)
    assert found["high_b_vs_a"].item() == pytest.approx(2)


def test_one_collection_takes_the_drop_of_one_method_and_the_table_of_all() -> None:
    """The keywords do not collide: one plain and one masked pass for each method serve both."""
    batch = batch_of(6, 7)
    collection = MetricCollection([AverageDrop(), RelativePerformance(METHODS)])
    collection.update(masked_scores=batch["masked_scores_by_method"]["gradcam"], **batch)
    assert {"AverageDrop", "random_vs_gradcam"} <= set(collection.compute())


def test_plot_draws_a_box_for_each_pair() -> None:
    """Medians of the log ratios, named by both methods."""
    metric = RelativePerformance(METHODS, keep_values=True)
    metric.update(**batch_of(40, 8))
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["gradcam+ vs gradcam", "random vs gradcam", "random vs gradcam+"]
    medians = {
        round(float(line.get_ydata()[0]), 9) for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[-1]
    }
    assert metric.values is not None
    for row, column in ((1, 0), (2, 0), (2, 1)):
        values = metric.values[:, row, column].tolist()
        assert round(statistics.median(values), 9) in medians


def test_plot_without_values_says_how_to_keep_them() -> None:
    """Sums are not enough for boxes."""
    metric = ThreeMethods()
    metric.update(**batch_of(4, 9))
    with pytest.raises(RuntimeError, match=r"`plot` expected the values of the images\. Use `keep_values=True`"):
        metric.plot()


@pytest.mark.parametrize("methods", [("a",), (), ("a", "a"), "ab"])
def test_methods_that_are_not_two_names_are_refused(methods: Any) -> None:
    """A string is a sequence of letters, and meant as one name."""
    with pytest.raises(ValueError, match="`methods` expected two or more different names, got"):
        RelativePerformance(methods)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, math.nan])
def test_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    """1 would leave out every image."""
    with pytest.raises(ValueError, match=r"`threshold` expected a probability in \[0, 1\), got"):
        RelativePerformance(("a", "b"), threshold=threshold)


def test_other_methods_than_named_are_refused() -> None:
    """A missing column would shift the others."""
    with pytest.raises(
        ValueError, match=r"`masked_scores_by_method` expected the methods \['a', 'b'\], got \['a', 'c'\]"
    ):
        RelativePerformance(("a", "b")).update(logs(0.9), {"a": logs(0.5), "c": logs(0.5)})


def test_scores_that_are_no_log_probabilities_are_refused_by_name() -> None:
    """The error says which method gave them."""
    with pytest.raises(ValueError, match=r"`masked_scores_by_method\['b'\]` expected log-probabilities in \[-inf, 0\]"):
        RelativePerformance(("a", "b")).update(logs(0.9), {"a": logs(0.5), "b": logs(0.5).exp()})
