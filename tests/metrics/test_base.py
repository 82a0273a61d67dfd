"""The contract of metrics: titles, units and directions of every number, and metrics of others."""

import pytest
import torch
from torchmetrics import MeanMetric, Metric

from lightning_xai import metrics
from lightning_xai.metrics import (
    ROAD,
    AverageDrop,
    ExplanationMetric,
    FromMetric,
    MaximalPatchMasking,
    Sample,
    number_of,
)

CLASSES = [kind for kind in vars(metrics).values() if isinstance(kind, type) and issubclass(kind, ExplanationMetric)]
FINISHED = [kind for kind in CLASSES if not getattr(kind, "__abstractmethods__", None)]


def test_metrics_of_ours_are_found() -> None:
    """The next tests are of something."""
    assert len(FINISHED) == 26
    assert AverageDrop in FINISHED


@pytest.mark.parametrize("kind", [one for one in FINISHED if one is not FromMetric])
def test_every_metric_says_what_it_is(kind: type[ExplanationMetric]) -> None:
    """A title in words, a unit that fits the range, a scope, and a method of its own."""
    assert kind.title[0].isupper()
    assert " " in kind.title or len(kind.title) < 16
    assert kind.unit in ("", "%", "points")
    assert (kind.unit == "") == (kind.plot_upper_bound not in (100.0,) and kind.__name__ != "RelativeGain")
    assert kind.scope in ("map", "methods", "model")
    assert kind.measure is not ExplanationMetric.measure


def test_numbers_are_told_apart() -> None:
    """By their whole name, or by how it begins; unknown ones keep their name."""
    assert number_of(AverageDrop)[:3] == ("Average drop", "%", False)
    assert number_of(ROAD, "road_gap")[:3] == ("ROAD gap", "", True)
    assert number_of(ROAD, "road_morf_accuracy").higher_is_better is False
    assert number_of(MaximalPatchMasking(sizes=(3,)), "patch_change_3").higher_is_better is False
    assert number_of(metrics.RelativePerformance, "plus_vs_cam")[:3] == ("plus vs cam", "", None)
    assert number_of(metrics.RelativePerformance, "n_used").label == "Images that count, images"


class Largest(ExplanationMetric):
    """A metric without words of its own."""

    def measure(self, sample: Sample) -> None:
        """Nobody asks."""

    def update(self) -> None:
        """Nothing."""

    def compute(self) -> torch.Tensor:
        """One."""
        return torch.tensor(1.0)


def test_a_title_is_made_of_the_name() -> None:
    """Unless there is one."""

    class Named(Largest):
        title = "Other words"

    class SecondLargest(Named):
        pass

    assert (Largest.title, Named.title, SecondLargest.title) == ("Largest", "Other words", "Second largest")


def test_a_metric_without_measure_cannot_be_made() -> None:
    """It would fail in the middle of a validation."""

    class Unfinished(ExplanationMetric):
        def update(self) -> None: ...

        def compute(self) -> None: ...

    with pytest.raises(TypeError, match=r"abstract method .?measure"):
        Unfinished()  # type: ignore[abstract]


class Aggregate(Metric):
    """Somebody's metric with a direction."""

    higher_is_better = True

    def update(self, value: torch.Tensor) -> None:
        """Nothing."""

    def compute(self) -> torch.Tensor:
        """One."""
        return torch.tensor(1.0)


def test_other_metrics_keep_their_direction_and_values() -> None:
    """And forget them in reset."""
    metric = FromMetric(MeanMetric(), lambda sample: {}, title="Mean of something", unit="px")
    metric.update(torch.tensor([1.0, 3.0]))
    assert metric.compute() == 2
    assert number_of(metric)[:3] == ("Mean of something", "px", None)
    assert number_of(FromMetric(Aggregate(), lambda sample: {}))[:3] == ("Aggregate", "", True)
    metric.reset()
    metric.update(torch.tensor([5.0]))
    assert metric.compute() == 5
