"""What every metric of the package keeps to: subclass `MetricContract` for each metric."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric, MetricCollection

Batch = dict[str, Tensor]
Value = float | dict[str, float]
"""What a metric gives: a number, or several by their names in the log."""


class MetricContract:
    """The shared tests. A subclass names the metric, the batches and the value that belongs to all of them."""

    metric_class: ClassVar[type[Metric]]
    batches: ClassVar[list[Batch]]
    """Keywords of ``update``: at least two batches of different sizes."""
    higher_is_better: ClassVar[bool]

    def reference(self, batches: list[Batch]) -> Value:
        """The value written straight from the paper, without the package."""
        raise NotImplementedError

    def check(self, metric: Metric, batches: list[Batch]) -> None:
        self.check_value(metric.compute(), batches)

    def check_value(self, value: Tensor | dict[str, Tensor], batches: list[Batch]) -> None:
        found, expected = by_name("value", value), by_name("value", self.reference(batches))
        exact = {name: torch.tensor(number, dtype=torch.float64) for name, number in expected.items()}
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)

    def filled(self, batches: list[Batch]) -> Metric:
        metric = self.metric_class()
        for batch in batches:
            metric.update(**batch)
        return metric

    def test_value_of_one_batch_is_the_reference(self) -> None:
        """The formula is the paper's."""
        self.check(self.filled(self.batches[:1]), self.batches[:1])

    def test_batches_count_by_their_images(self) -> None:
        """Uneven batches give the value of their union, not the mean of their values."""
        self.check(self.filled(self.batches), self.batches)

    def test_forward_gives_the_value_of_the_batch_and_keeps_the_sum(self) -> None:
        """Calling the metric returns this batch and remembers all."""
        metric = self.filled(self.batches[:1])
        self.check_value(metric(**self.batches[1]), self.batches[1:2])
        self.check(metric, self.batches[:2])

    def test_pickled_metric_goes_on_where_it_was(self) -> None:
        """A copy that crossed a process boundary holds the same sums."""
        metric = pickle.loads(pickle.dumps(self.filled(self.batches[:1])))
        metric.update(**self.batches[1])
        self.check(metric, self.batches[:2])

    def test_state_dict_is_empty(self) -> None:
        """Metrics add nothing to checkpoints."""
        assert self.filled(self.batches).state_dict() == {}

    def test_reset_forgets_everything(self) -> None:
        """The next epoch starts at zero."""
        metric = self.filled(self.batches[:1])
        metric.reset()
        metric.update(**self.batches[1])
        self.check(metric, self.batches[1:2])

    def test_state_stays_float64_through_casts_of_a_module(self) -> None:
        """A metric inside a half-precision LightningModule does not lose its sums' digits."""
        metric = torch.nn.ModuleList([self.metric_class()]).to(torch.bfloat16).half()[0]
        for batch in self.batches:
            metric.update(**batch)
        self.check(metric, self.batches)

    def test_arguments_are_not_written_to(self) -> None:
        """The caller's tensors are the caller's."""
        batch = copy.deepcopy(self.batches[0])
        self.filled([batch])
        for name, tensor in self.batches[0].items():
            assert torch.equal(batch[name], tensor), name

    def test_state_holds_no_graph(self) -> None:
        """Arguments with a graph do not keep it alive in the sums."""
        metric = self.filled([{k: v.clone().requires_grad_(v.is_floating_point()) for k, v in self.batches[0].items()}])
        assert not any(getattr(metric, state).requires_grad for state in metric._defaults)

    def test_metric_tells_its_direction_and_runs_once(self) -> None:
        """Loggers read the direction; torchmetrics needs to know that forward may update once."""
        assert self.metric_class.higher_is_better is self.higher_is_better
        assert self.metric_class.full_state_update is False
        assert self.metric_class.is_differentiable is False

    def test_without_images_the_value_is_nan(self) -> None:
        """Nothing measured is not zero; torchmetrics warns about it."""
        metric = self.metric_class()
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            value = metric.compute()
        assert all(number.isnan() for number in by_name("value", value).values())


def by_name(name: str, value: Any) -> dict[str, Any]:
    """The values of a metric by their names in a MetricCollection, where a dict's own keys replace the name."""
    return dict(value) if isinstance(value, dict) else {name: value}


def alone_and_collected(metrics: dict[str, Metric], batches: list[Batch]) -> tuple[dict[str, float], dict[str, float]]:
    """Values of metrics updated one by one, and of the same metrics inside a MetricCollection."""
    alone = copy.deepcopy(metrics)
    collection = MetricCollection(copy.deepcopy(metrics))
    for batch in batches:
        collection.update(**batch)
        for metric in alone.values():
            metric.update(**metric._filter_kwargs(**batch))  # as a collection does
    collected = {name: value.item() for name, value in collection.compute().items()}
    values = [by_name(name, metric.compute()) for name, metric in alone.items()]
    merged = {name: number.item() for value in values for name, number in value.items()}
    assert len(merged) == sum(map(len, values)), "two metrics use one name"
    return merged, collected


def values_on_two_ranks(
    metrics: dict[str, Metric], scenarios: list[tuple[list[Batch], list[Batch]]], folder: Path
) -> list[list[dict[str, float]]]:
    """Values by rank and scenario, computed by two real processes over gloo.

    Args:
        metrics: Metrics, put into one MetricCollection in each process.
        scenarios: The batches of rank 0 and of rank 1; an empty list is a rank without images.
        folder: Where the processes meet and leave their values.
    """
    mp.spawn(_rank, (metrics, scenarios, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def _rank(rank: int, metrics: dict[str, Metric], scenarios: list[tuple[list[Batch], list[Batch]]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    collection = MetricCollection(dict(metrics))
    values = []
    for scenario in scenarios:
        collection.reset()
        for batch in scenario[rank]:
            collection.update(**batch)
        values.append({name: value.item() for name, value in collection.compute().items()})
    torch.save(values, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
