"""A program that `test_model_integrity_ddp.py` runs: Lightning starts it a second time, and both do the same.

Usage: python two_processes_integrity.py FOLDER. Each process writes FOLDER/rank_<i>.json.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from callbacks.trainers import Forwards, classifier, trainer
from integrity.toys import data, trained
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai.callbacks import ModelIntegrity
from papers.logit_shift.attacks import PositionShift

PARALLEL: dict[str, Any] = {"strategy": "ddp", "devices": 2, "num_sanity_val_steps": 2}


def fitted(callback: ModelIntegrity, folder: Path) -> dict[str, Any]:
    """One epoch of an altered classifier, and what this process sees of it."""
    module = classifier(model=PositionShift("relu2", (1, 2))(trained()))
    forwards = Forwards(module.model.model)
    loader = DataLoader(TensorDataset(*data(64)), 8)
    kept = ModelCheckpoint(folder, filename="kept", monitor="val/xai/integrity/suspicion", mode="min")
    running = trainer(callbacks=[callback, kept], enable_checkpointing=True, **PARALLEL)
    error = ""
    try:
        running.fit(module, loader, loader)
    except RuntimeError as raised:
        error = str(raised)
    logged = {key: value.item() for key, value in running.callback_metrics.items()}
    weights = sum(parameter.double().sum().item() for parameter in module.parameters())
    return {
        "rank": running.global_rank,
        "error": error,
        "logged": logged,
        "passes": len(forwards.sizes),
        "weights": weights,
        "trained": module.trained,
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    warnings.filterwarnings("ignore", message=".*(LeafSpec|many workers|DistributedSampler).*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    calls: list[int] = []
    results = {"told": fitted(ModelIntegrity(action=lambda finding: calls.append(finding.step)), folder / "told")}
    results["told"]["calls"] = calls
    results["raised"] = fitted(ModelIntegrity(action="raise"), folder / "raised")
    torch.distributed.barrier()
    (folder / f"rank_{results['told']['rank']}.json").write_text(json.dumps(results))
