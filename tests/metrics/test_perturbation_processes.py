"""Curves, ROAD, robustness and sanity metrics in two processes, all in one collection."""

import math
from pathlib import Path

import pytest
import torch
from metrics.contract import Batch, values_on_two_ranks
from torchmetrics import Metric, MetricCollection

from lightning_xai.metrics import (
    ROAD,
    ClassSensitivity,
    Deletion,
    Infidelity,
    Insertion,
    MaxSensitivity,
    ParameterRandomization,
)

METRICS: dict[str, Metric] = {
    "deletion": Deletion(steps=3, keep_values=True),
    "insertion": Insertion(steps=3),
    "road": ROAD(percentages=[25, 50], keep_values=True),
    "infidelity": Infidelity(keep_values=True),
    "sensitivity": MaxSensitivity(),
    "class": ClassSensitivity(),
    "randomization": ParameterRandomization(["top", "bottom"], keep_values=True),
}


def batch_of(n: int, seed: int) -> Batch:
    """Keywords of every metric for n images, of which the last has no sensitivity and no similarity."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    batch = {
        "fractions": torch.tensor([0.0, 0.4, 0.8, 1.0], dtype=torch.float64),
        "deletion_curve": random(n, 4),
        "insertion_curve": random(n, 4),
        "morf_correct": random(n, 2) < 0.5,
        "morf_probabilities": random(n, 2),
        "lerf_correct": random(n, 2) < 0.5,
        "lerf_probabilities": random(n, 2),
        "infidelities": random(n),
        "sensitivities": random(n),
        "class_similarities": random(n, 3),
        "randomization_similarities": random(n, 2, 3),
    }
    for name in ("sensitivities", "class_similarities", "randomization_similarities"):
        batch[name][n - 1] = math.nan
    return batch


def values_of(batches: list[Batch]) -> dict[str, float]:
    """What one process gives."""
    collection = MetricCollection({name: metric.clone() for name, metric in METRICS.items()})
    for batch in batches:
        collection.update(**batch)
    return {name: value.item() for name, value in collection.compute().items()}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Uneven batches on two ranks, and a rank without images, give every rank the value of all images."""
    batches = [batch_of(5, 0), batch_of(2, 1), batch_of(3, 2)]
    scenarios = [(batches[:1], batches[1:]), (batches, []), ([], batches[:2])]
    ranks = values_on_two_ranks(METRICS, scenarios, tmp_path)
    assert ranks[0] == ranks[1]
    for found, (first, second) in zip(ranks[0], scenarios, strict=True):
        assert len(found) == 15
        assert found == pytest.approx(values_of(first + second), rel=1e-12)
