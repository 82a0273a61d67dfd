"""Callbacks in a Trainer on a GPU: what they log is what they log on a CPU, and they keep nothing there."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from callbacks.trainers import MEAN, STD, classifier, loader, trainer
from gpu.device import CUDA, DEVICE, held, there
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_xai import (
    Faithfulness,
    GradCAM,
    GuidedGradientLoss,
    GuidedGradientMixin,
    InputGradient,
    ModelIntegrity,
    SaliencyMaps,
    metrics,
)

pytestmark = [*there, pytest.mark.filterwarnings("ignore")]  # of undecided networks and of one process

STANDARD: dict[str, Any] = {"mean": MEAN, "std": STD}
METHODS = {"cam": GradCAM(), "gradient": InputGradient()}
METRICS: dict[str, Any] = {
    "confidence": lambda: [metrics.AverageDrop(), metrics.AverageIncrease(), metrics.AverageGain()],
    "curves": lambda: [metrics.Deletion(steps=8), metrics.Insertion(steps=8), metrics.MaximalPatchMasking(sizes=(3,))],
    "coherence": lambda: [metrics.ADCC(), metrics.RelativePerformance([*METHODS])],
    "gradients": lambda: [metrics.GradientAlignment(), metrics.GradientRoughness(), metrics.GradientVariation()],
    "road": lambda: [metrics.ROAD()],
    "disturbed": lambda: [metrics.Infidelity(), metrics.MaxSensitivity(), metrics.ClassSensitivity()],
}


def there_or(device: torch.device, **options: Any) -> Any:
    """A Trainer of a device."""
    return trainer(accelerator="gpu" if device.type == "cuda" else "cpu", **options)


def logged(device: torch.device, callbacks: list[Any], **options: Any) -> dict[str, float]:
    """What a validation epoch logs."""
    run = there_or(device, callbacks=callbacks, **options)
    run.validate(classifier(), loader(8), verbose=False)
    return {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("family", METRICS)
def test_faithfulness_is_that_of_the_cpu(family: str) -> None:
    """With its controls, to a thousandth of what metrics range over."""
    found, expected = (
        logged(device, [Faithfulness(METHODS, METRICS[family](), **STANDARD)])
        for device in (DEVICE, torch.device("cpu"))
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-3, abs=2e-2, nan_ok=True), name


def test_the_verdict_is_that_of_the_cpu() -> None:
    """And its figures."""
    found, expected = (logged(device, [ModelIntegrity(**STANDARD)]) for device in (DEVICE, torch.device("cpu")))
    assert expected
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_all_callbacks_and_the_term_in_one_fit(precision: str, tmp_path: Any) -> None:
    """Two epochs, with the pictures in a logger; everything is finite."""
    if precision == "16-mixed" and not CUDA:
        pytest.skip("Lightning has float16 on GPUs alone")
    callbacks = [
        Faithfulness(METHODS, [metrics.AverageDrop()], **STANDARD),
        SaliencyMaps(METHODS, n_images=4, **STANDARD),
        ModelIntegrity(**STANDARD),
    ]
    logger = TensorBoardLogger(tmp_path)
    run = there_or(DEVICE, callbacks=callbacks, max_epochs=2, precision=precision, logger=logger)
    run.fit(guided(), loader(8), loader(8))
    assert any("AverageDrop" in name for name in run.callback_metrics)
    assert torch.tensor([float(one) for one in run.callback_metrics.values()]).isfinite().any()
    assert run.callback_metrics["train/guided_gradient/regularization_loss"].isfinite()


def guided() -> Any:
    """A classifier that is trained with the term."""
    plain = classifier()

    class Guided(GuidedGradientMixin, type(plain)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.guided_gradient_loss(*batch, F.cross_entropy)[0]

    module = Guided()
    module.interpretability = GuidedGradientLoss()
    return module


def test_one_process_of_a_distributed_strategy(tmp_path: Any) -> None:
    """By nccl on a GPU, by gloo elsewhere."""
    callbacks = [Faithfulness(METHODS, [metrics.AverageDrop()], **STANDARD), SaliencyMaps(METHODS, **STANDARD)]
    run = there_or(DEVICE, callbacks=callbacks, strategy="ddp", logger=CSVLogger(tmp_path))
    try:
        run.fit(guided(), loader(8), loader(8))
        assert dist.get_backend() == ("nccl" if CUDA else "gloo")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_memory_does_not_grow_over_a_hundred_validations(tmp_path: Any) -> None:
    """Nor is more than the sums of metrics kept on the device when the run is over."""
    before = held()
    callbacks = [
        Faithfulness(METHODS, [metrics.AverageDrop(), metrics.Deletion(steps=4)], **STANDARD),
        SaliencyMaps(METHODS, n_images=4, **STANDARD),
        ModelIntegrity(**STANDARD),
    ]
    sizes: list[int] = []

    class Noted(pl.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            gc.collect()
            sizes.append(held())

    epochs = 100 if CUDA else 4
    run = there_or(DEVICE, callbacks=[*callbacks, Noted()], max_epochs=epochs, logger=CSVLogger(tmp_path))
    run.fit(classifier(), loader(8), loader(8))
    assert len(sizes) >= epochs
    assert max(sizes[10:], default=0) <= max(sizes[:10]) + 4096
    del run
    gc.collect()
    assert held() <= before + 200_000
