"""A program that `test_ddp.py` runs: Lightning starts it a second time, and both processes train the same networks.

Usage: python two_ranks.py FOLDER. Rank zero writes FOLDER/<network>.pt, each process FOLDER/rank_<i>.json.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from callbacks.trainers import trainer
from regularization.plain_training import IMAGES, LABELS, Net, Trained, term
from torch import Tensor, nn
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


class SumOfAll(torch.autograd.Function):
    """The sum over processes; its backward pass is that sum of gradients, and has none of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class JointBatchNorm(nn.BatchNorm2d):
    """What SyncBatchNorm computes, which torch has on GPUs alone: in training mode statistics of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        n = 2 * x.numel() / x.shape[1]
        mean = SumOfAll.apply(x.sum((0, 2, 3))) / n
        centered = x - mean[:, None, None]
        variance = SumOfAll.apply(centered.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return centered * scale[:, None, None] + self.bias[:, None, None]


def trained(interpretability: Any, norm: nn.Module | None = None) -> tuple[Trained, int]:
    """Two steps of four images in each process."""
    module = Shared(Net(norm), interpretability)
    running = trainer(**PARALLEL)
    running.fit(module)
    return module, running.global_rank


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|DistributedSampler).*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    module, rank = trained(term())
    synchronised, _ = trained(term(batch_norm="evaluation"), JointBatchNorm(6))
    if rank == 0:
        torch.save(module.model.state_dict(), folder / "plain.pt")
        torch.save(synchronised.model.state_dict(), folder / "synchronised.pt")
    following, _ = trained(term(weight=adaptive()))
    parameters = [parameter.sum().item() for parameter in following.parameters()]
    found = {"lambda": following.interpretability.weight(0), "parameters": parameters}
    (folder / f"rank_{rank}.json").write_text(json.dumps(found))
