"""The metrics of one dataloader: which images they have seen, and what is logged of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torchmetrics import Metric

from lightning_xai.log_keys import OVER_CONTROLS
from lightning_xai.metrics import Batch, ConstantMaps, ExplanationMetric, number_of


@dataclass
class Tally:
    """The metrics of one dataloader, and how many more images they are to see: None for all there are."""

    metrics: dict[str, dict[str, ExplanationMetric]]
    shared: dict[str, ExplanationMetric]
    constant: dict[str, ConstantMaps]
    left: int | None
    left_for_controls: int | None
    beside_controls: dict[str, dict[str, ExplanationMetric]] | None = None
    """The methods' metrics as they were when the last control image had been seen."""

    @classmethod
    def begun(
        cls,
        metrics: Mapping[str, ExplanationMetric],
        names: Sequence[str],
        device: torch.device,
        left: int | None,
        left_for_controls: int | None,
    ) -> Tally:
        """Empty copies of the metrics: of those of a map one for each method."""
        alone = {name: metric for name, metric in metrics.items() if metric.scope == "map"}
        shared = {name: metric for name, metric in metrics.items() if metric.scope != "map"}
        constant = {name: ConstantMaps().to(device) for name in names}
        of_methods = {name: _copies(alone, device) for name in names}
        return cls(of_methods, _copies(shared, device), constant, left, left_for_controls)

    def with_controls(self, n: int) -> int:
        """How many of the next n images controls see."""
        return n if self.left_for_controls is None else min(n, self.left_for_controls)

    def count(self, n: int) -> None:
        """Note that n images were seen."""
        self.left = None if self.left is None else self.left - n
        self.left_for_controls = None if self.left_for_controls is None else max(0, self.left_for_controls - n)

    def leave_controls(self, controls: Sequence[str]) -> None:
        """Keep the methods' metrics of the images that controls have seen, as soon as there are others."""
        if self.beside_controls is None:
            own = {name: metrics for name, metrics in self.metrics.items() if name not in controls}
            self.beside_controls = {
                name: {metric: deepcopy(one) for metric, one in metrics.items()} for name, metrics in own.items()
            }

    def measure(self, batch: Batch) -> None:
        """Ask every metric about one batch."""
        for name, sample in batch.samples.items():
            self.constant[name].measure(sample)
            for metric in self.metrics[name].values():
                metric.measure(sample)
        for metric in self.shared.values():
            metric.measure(next(iter(batch.samples.values())))

    def results(self, controls: Sequence[str]) -> Iterator[tuple[str, str, bool | None, float]]:
        """Name of the method, name of the number, direction and value, of everything that is logged."""
        self.leave_controls(controls)  # on every rank, since computing waits for all of them
        of_controls = []
        for name, metrics in self.metrics.items():
            found = list(_numbers(metrics))
            yield from ((name, *number) for number in found)
            yield name, ConstantMaps.__name__, ConstantMaps.higher_is_better, float(_computed(self.constant[name]))
            of_controls += found if name in controls else []
        for name, metrics in (self.beside_controls or {}).items() if controls else ():
            for part, better, value in _numbers(metrics):
                others = [other for known, _, other in of_controls if known == part]
                if better is not None:
                    margin = value - max(others) if better else min(others) - value
                    yield name, f"{part}{OVER_CONTROLS}", True, margin
        for name, metric in self.shared.items():
            for part, better, value in _numbers({name: metric}):
                yield "model" if part == name else name, part, better, value


def _copies(metrics: dict[str, ExplanationMetric], device: torch.device) -> dict[str, ExplanationMetric]:
    return {name: deepcopy(metric).to(device) for name, metric in metrics.items()}


def _computed(metric: Metric) -> Any:
    with warnings.catch_warnings():  # a rank without images has updated nothing
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        return metric.compute()


def _numbers(metrics: Mapping[str, ExplanationMetric]) -> Iterator[tuple[str, bool | None, float]]:
    """Name, direction and value of each number."""
    for name, metric in metrics.items():
        value = _computed(metric)
        if not isinstance(value, Mapping):
            yield name, number_of(metric).higher_is_better, float(value)
            continue
        own_name = name == type(metric).__name__
        for part, number in value.items():
            yield part if own_name else f"{name}_{part}", number_of(metric, part).higher_is_better, float(number)
