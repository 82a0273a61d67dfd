"""Reads what an offline W&B run has recorded, once it has ended."""

from pathlib import Path
from typing import Any

import wandb

from common.offline_runs import history, records

__all__ = ["end_run", "history", "metrics", "records"]


def end_run() -> None:
    """Finish the run and stop W&B's service: only then is the file complete, finishing alone does not wait for it."""
    wandb.finish()
    wandb.teardown()


def metrics(folder: Path) -> dict[str, Any]:
    """The metric definitions of the run by name, the last one for each."""
    defined = [record.metric for record in records(folder) if record.HasField("metric")]
    return {metric.name or metric.glob_name: metric for metric in defined}
