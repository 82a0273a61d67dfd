"""What metrics keep of each image when two processes share the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import Metric, MetricCollection

Found = dict[str, Any]


def computed(metrics: dict[str, Metric], batches: list[dict[str, Any]]) -> Found:
    """All values of a collection, and by metric what it kept and how many images had no value."""
    collection = MetricCollection(metrics)
    collection.reset()
    for batch in batches:
        collection.update(**batch)
    found: Found = dict(collection.compute())
    for name, metric in collection.items(keep_base=True):
        found[f"{name} kept"] = metric.values
        found[f"{name} undefined"] = torch.tensor(getattr(metric, "n_undefined", 0))
    return found


def computed_on_two_ranks(
    metrics: dict[str, Metric], scenarios: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]], folder: Path
) -> list[list[Found]]:
    """The same by rank and scenario, from two real processes over gloo; an empty list is a rank without images."""
    mp.spawn(_rank, (metrics, scenarios, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def _rank(rank: int, metrics: dict[str, Metric], scenarios: list[Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save([computed(metrics, scenario[rank]) for scenario in scenarios], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
