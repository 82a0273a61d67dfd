"""What metrics share that average over images: what is kept, counted and drawn, alone and in two processes."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from metrics.kept_on_two_ranks import computed, computed_on_two_ranks
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_xai.metrics import (
    ADCC,
    AbsoluteDrop,
    Coherency,
    Complexity,
    GradientAlignment,
    GradientRoughness,
    GradientVariation,
    ImageAverage,
    RelativeGain,
    RelativePerformance,
    Sample,
)

METHODS = ("cam", "random")
METRICS: dict[str, Metric] = {
    "adcc": ADCC(keep_values=True),
    "coherency": Coherency(keep_values=True),
    "complexity": Complexity(keep_values=True),
    "drop": AbsoluteDrop(keep_values=True),
    "gain": RelativeGain(keep_values=True),
    "alignment": GradientAlignment(keep_values=True),
    "variation": GradientVariation(keep_values=True),
    "roughness": GradientRoughness(keep_values=True),
    "relative": RelativePerformance(METHODS, keep_values=True),
}


class Numbers(ImageAverage):
    """The average of the numbers themselves."""

    def measure(self, sample: Sample) -> None:
        """No callback runs it."""

    def update(self, numbers: Tensor) -> None:
        """Add numbers (N,)."""
        self.add(numbers.double())


class OtherNumbers(Numbers):
    """Another metric that agrees as long as numbers are positive."""

    def update(self, numbers: Tensor) -> None:
        """Add the magnitudes of numbers (N,)."""
        self.add(numbers.double().abs())


def batch_of(n: int, seed: int) -> dict[str, Any]:
    """Everything that any of the metrics takes, for n images; the last one has no map and no gradient."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    maps, gradients = noise(n, 4, 4), noise(n, 3, 4, 4)
    maps[-1] = gradients[-1] = 0
    logs = torch.nn.functional.logsigmoid(2 * noise(3, n))
    return {
        "scores": logs[0],
        "masked_scores": logs[1],
        "masked_scores_by_method": dict(zip(METHODS, logs[1:], strict=True)),
        "maps": maps,
        "masked_maps": maps + noise(n, 4, 4),
        "gradients": gradients,
        "guided_gradients": gradients + noise(n, 3, 4, 4),
    }


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Uneven batches and a rank without images: averages, kept values in the order of the ranks, and counts."""
    batches = [batch_of(n, seed) for n, seed in ((6, 0), (2, 1), (5, 2))]
    scenarios = [(batches[:1], batches[1:]), (batches, []), ([], batches[:2])]
    ranks = computed_on_two_ranks(METRICS, scenarios, tmp_path)
    for rank in ranks:
        for found, (first, second) in zip(rank, scenarios, strict=True):
            torch.testing.assert_close(found, computed(METRICS, first + second), rtol=1e-12, atol=1e-12, equal_nan=True)
            assert found["variation undefined"] == found["complexity undefined"] == len(first + second)


def test_values_without_number_are_left_out_and_counted() -> None:
    """The kept values still say which images they are."""
    metric = Numbers(keep_values=True)
    metric.update(torch.tensor([1.0, torch.nan]))
    metric.update(torch.tensor([torch.nan, 4.0, 4.0]))
    assert metric.compute().item() == 3
    assert metric.n_undefined == 2
    assert metric.values is not None
    torch.testing.assert_close(metric.values, torch.tensor([1, torch.nan, torch.nan, 4, 4]).double(), equal_nan=True)
    metric.reset()
    metric.update(torch.tensor([5.0]))
    assert (metric.compute().item(), metric.n_undefined, metric.values.tolist()) == (5, 0, [5])


def test_average_of_values_without_number_is_nan() -> None:
    """Nothing measured is not zero."""
    metric = Numbers()
    metric.update(torch.tensor([torch.nan]))
    assert metric.compute().isnan()
    assert metric.n_undefined == 1


def test_infinite_values_are_values() -> None:
    """A gain from nothing is shown, and not left out."""
    metric = Numbers()
    metric.update(torch.tensor([1.0, torch.inf]))
    assert metric.compute().isinf()
    assert metric.n_undefined == 0


def test_collection_merges_no_metrics_that_agree_by_chance() -> None:
    """Equal sums after the first batch, others after the second."""
    collection = MetricCollection([Numbers(), OtherNumbers()])
    for batch in ([1.0, 2.0], [-3.0]):
        collection.update(torch.tensor(batch))
    assert {name: value.item() for name, value in collection.compute().items()} == {"Numbers": 0, "OtherNumbers": 2}


def test_kept_values_survive_pickling() -> None:
    """A metric that crossed a process boundary goes on keeping."""
    metric = Coherency(keep_values=True)
    metric.update(**{name: batch_of(3, 0)[name] for name in ("maps", "masked_maps")})
    copied = pickle.loads(pickle.dumps(metric))
    copied.update(**{name: batch_of(2, 1)[name] for name in ("maps", "masked_maps")})
    copied.compute()
    assert len(copied.values) == 5


@pytest.mark.parametrize(
    "metric", [AbsoluteDrop(), RelativeGain(), GradientAlignment()], ids=lambda m: type(m).__name__
)
def test_plot_draws_one_or_several_results(metric: ImageAverage) -> None:
    """On axes of its own or the user's; pyplot hears of none."""
    batch = batch_of(4, 3)
    value = metric(**{k: v for k, v in batch.items() if k in metric._update_signature.parameters})
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.lines[0].get_ydata()[0] == pytest.approx(value.item())  # type: ignore[index]
    mine = Figure().subplots()
    assert metric.plot([value, 2 * value], mine) == (mine.figure, mine)
    assert list(mine.lines[0].get_ydata()) == pytest.approx([value.item(), 2 * value.item()])  # type: ignore[arg-type]
