"""A program that `test_sharded.py` runs: Lightning starts it a second time, and both processes do the same.

Usage: python two_processes_sharded.py FOLDER. Each process writes FOLDER/rank_<i>.json with what it logged.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from callbacks.trainers import MEAN, STD, classifier, confident_net, loader, trainer
from integrity.toys import trained
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lightning_xai import AverageDrop, Faithfulness, FromCallable, GradCAM, InputGradient, ModelIntegrity, SaliencyMaps
from papers.logit_shift.attacks import PositionShift

METHODS = {"gradcam": GradCAM("conv2"), "gradient": InputGradient()}


def sharded_over_both() -> ModelParallelStrategy:
    """Parameters are spread over both processes, and neither has a whole layer."""
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")


def module_of(model: nn.Module, parts: tuple[str, ...]) -> Any:
    """A LightningModule that shards a classifier and some parts of it."""
    module = classifier(model=model)

    def configure_model() -> None:
        for part in (*parts, ""):
            fully_shard(module.model.get_submodule(part), mesh=module.device_mesh["data_parallel"])

    module.configure_model = configure_model
    return module


def fitted(callbacks: list[Any], folder: Path, model: nn.Module, parts: tuple[str, ...]) -> dict[str, Any]:
    """One epoch; the second process has an image less in its last batch than the first has to explain."""
    module = module_of(model, parts)
    logger = CSVLogger(folder, name="", version="run")
    running = trainer(callbacks=callbacks, logger=logger, strategy=sharded_over_both(), devices=2)
    data = loader(7, 2)
    running.fit(module, loader(8, 2), data)
    weights = running.strategy.lightning_module_state_dict()
    return {
        "rank": running.global_rank,
        "logged": {key: value.item() for key, value in running.callback_metrics.items()},
        "weights": sum(one.double().sum().item() for one in weights.values()),
    }


def explained(folder: Path) -> dict[str, Any]:
    """Pictures of rank zero alone, and an odd number of images to measure."""
    drawn = SaliencyMaps(METHODS, mean=MEAN, std=STD, n_images=3)
    measured = Faithfulness(METHODS, [AverageDrop()], mean=MEAN, std=STD, controls={}, n_images=5)
    return fitted([drawn, measured], folder, confident_net(), ("conv2", "head"))


def judged(folder: Path) -> dict[str, Any]:
    """An altered classifier, which rank zero finds out."""
    callback = ModelIntegrity(action=lambda finding: None)
    results = fitted([callback], folder, PositionShift("relu2", (1, 2))(trained()), ("model.head",))
    return {**results, "position": callback.finding and callback.finding.place.position}


def ended(work: Callable[[], object]) -> dict[str, Any]:
    """How a run ended, and after how long."""
    begun, error = time.monotonic(), ""
    try:
        work()
    except Exception as raised:
        error = str(raised)
    return {"error": error, "seconds": time.monotonic() - begun}


def fails_in_one_process(stage: str) -> None:
    """The user's function raises there, and the other process has nothing to complain of."""

    def fail(logits: Tensor, labels: Any = None) -> Tensor:
        raise ArithmeticError("unhappy")

    def alarmed(finding: Any) -> None:
        raise ArithmeticError("unhappy")

    def fail_in_the_second(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images.sum(1) if torch.distributed.get_rank() == 0 else fail(images)

    broken = {"mine": FromCallable(fail_in_the_second)}
    callbacks: dict[str, Any] = {
        "measuring": Faithfulness(broken, [AverageDrop()], mean=MEAN, std=STD, controls={}, classifier="model"),
        "drawing": SaliencyMaps(METHODS, mean=MEAN, std=STD, targets=fail, classifier="model"),
        "acting": ModelIntegrity(action=alarmed),
    }
    model = PositionShift("relu2", (1, 2))(trained()) if stage == "acting" else confident_net()
    running = trainer(callbacks=[callbacks[stage]], logger=CSVLogger(sys.argv[1]), strategy="ddp", devices=2)
    running.fit(classifier(model=model), loader(8, 2), loader(8, 2))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    results: dict[str, Any] = {"plain": fitted([], folder / "plain", confident_net(), ("conv2", "head"))}
    results["explained"] = explained(folder / "explained")
    results["judged"] = judged(folder / "judged")
    for stage in ("drawing", "acting", "measuring"):
        results[stage] = ended(lambda stage=stage: fails_in_one_process(stage))
    (folder / f"rank_{results['plain']['rank']}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    os._exit(0)  # gloo may hang on its way out, with or without callbacks
