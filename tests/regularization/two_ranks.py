"""A program that `test_ddp.py` runs: Lightning starts it a second time, and both processes train one network.

Usage: python two_ranks.py FOLDER. Rank zero writes FOLDER/model.pt, each process FOLDER/rank_<i>.json.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from callbacks.trainers import trainer
from regularization.plain_training import IMAGES, LABELS, Net, Trained, term
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai.regularization import AdaptiveWeight, GradientShare

PARALLEL: dict[str, Any] = {"strategy": "ddp", "devices": 2, "precision": "64-true", "use_distributed_sampler": False}


class Shared(Trained):
    """Every second image goes to each process, in order: Lightning's own sampler for training shuffles."""

    def train_dataloader(self) -> DataLoader:
        share = slice(self.global_rank, None, 2)
        return DataLoader(TensorDataset(IMAGES[share].double(), LABELS[share]), 4)


def adaptive() -> AdaptiveWeight:
    """A weight that is measured in the first step alone."""
    return AdaptiveWeight(GradientShare(0.3), start=0.1, smoothing=0.5, every_n_steps=100)


def trained(interpretability: Any) -> tuple[Trained, int]:
    """Two steps of four images in each process."""
    module = Shared(Net(), interpretability)
    running = trainer(**PARALLEL)
    running.fit(module)
    return module, running.global_rank


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|DistributedSampler).*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    module, rank = trained(term())
    if rank == 0:
        torch.save(module.model.state_dict(), folder / "model.pt")
    following, _ = trained(term(weight=adaptive()))
    parameters = [parameter.sum().item() for parameter in following.parameters()]
    found = {"lambda": following.interpretability.weight(0), "parameters": parameters}
    (folder / f"rank_{rank}.json").write_text(json.dumps(found))
