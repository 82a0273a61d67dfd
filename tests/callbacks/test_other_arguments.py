"""Classifiers that take more than images: passes of our own repeat what was heard, each row with its image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from callbacks.definitions import by_hand
from callbacks.trainers import MEAN, STD, classifier, confident_net, trainer
from pytorch_lightning.loggers.logger import DummyLogger
from support import random_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import (
    ADCC,
    ROAD,
    AverageDrop,
    Deletion,
    Faithfulness,
    GradCAM,
    InputGradient,
    Insertion,
    ModelIntegrity,
    SaliencyMaps,
)
from lightning_xai.baselines import blurred
from lightning_xai.callbacks import saliency_maps as drawing
from lightning_xai.explain import explain
from lightning_xai.integrity import Threshold, inspect_model
from lightning_xai.metrics import Complexity, Infidelity, MaxSensitivity, ParameterRandomization, insertion_curve
from lightning_xai.trace import Calling

METHODS = {"gradcam": GradCAM("net.conv2")}
IMAGES = random_images(8)
META = torch.eye(3)[torch.arange(8) % 3] * 4 + 0.5


class WithMeta(nn.Module):
    """Logits that something else has a say in; for one image or for many."""

    def __init__(self, meta: Tensor | None = None) -> None:
        super().__init__()
        self.net, self.meta = confident_net(), meta

    def forward(self, images: Tensor, meta: Tensor | None = None) -> Tensor:
        given = self.meta if meta is None else meta
        if given is None:
            raise TypeError("`meta` is missing")
        return self.net(images) * given


def run_with(*callbacks: Any, epochs: int = 1, batch_size: int = 3) -> tuple[Any, Any]:
    """The Trainer and the module after a fit, or a validation in 0 epochs, whose steps hand over both."""
    module = classifier(model=WithMeta())
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module.model(batch[0], batch[1]), batch[2])
    module.validation_step = lambda batch, batch_idx: module.model(batch[0], meta=batch[1])
    data = DataLoader(TensorDataset(IMAGES, META, torch.arange(8) % 3), batch_size)
    running = trainer(callbacks=list(callbacks), logger=DummyLogger(), max_epochs=max(epochs, 1))
    running.fit(module, data, data) if epochs else running.validate(module, data, verbose=False)
    module.model.eval()
    return running, module


def unpack(batch: Any) -> Any:
    """Images and labels."""
    return batch[0], batch[2]


@pytest.mark.parametrize("named", [None, "model"])
def test_metrics_are_those_of_each_image_with_its_own(named: str | None) -> None:
    """Masked images, too."""
    options: dict[str, Any] = {"mean": MEAN, "std": STD, "controls": {}, "unpack": unpack, "classifier": named}
    running, module = run_with(Faithfulness(METHODS, [AverageDrop(), Complexity()], **options))
    drops = []
    for i in range(8):
        alone = WithMeta(META[i])
        alone.net.load_state_dict(module.model.net.state_dict())
        drops.append(by_hand(alone, IMAGES[i, None], METHODS["gradcam"])["AverageDrop"])
    assert running.callback_metrics["val/xai/gradcam/AverageDrop"].item() == pytest.approx(sum(drops) / 8, rel=1e-4)
    assert running.callback_metrics["val/xai/gradcam/Complexity"] > 0


def test_insertion_shows_each_image_with_its_own() -> None:
    """Of a batch some images at a time are run, in no order."""
    callback = Faithfulness(METHODS, [Insertion(steps=8)], mean=MEAN, std=STD, controls={}, unpack=unpack)
    running, module = run_with(callback)
    areas = []
    for i in range(8):
        alone, image = WithMeta(META[i]), IMAGES[i, None]
        alone.net.load_state_dict(module.model.net.state_dict())
        maps, target = explain(alone.eval(), image, attributions=METHODS["gradcam"]), alone(image).argmax(1)
        curve = insertion_curve(alone, image, maps, target, baseline=blurred(image, MEAN, STD), steps=8)
        areas.append(torch.trapezoid(curve.probabilities[0], curve.fractions).item())
    logged = running.callback_metrics["val/xai/gradcam/Insertion"].item()
    assert logged == pytest.approx(sum(areas) / 8, abs=2e-2)  # a callback leaves out points of flat stretches


@pytest.mark.parametrize(
    "metric",
    [
        Insertion(steps=8),
        Deletion(steps=8),
        ADCC(),
        Infidelity(),
        MaxSensitivity(),
        ROAD(),
        ParameterRandomization(("net.head",)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_metric_asks_about_each_image_with_its_own(metric: Any) -> None:
    """In batches, and one image at a time."""
    found = []
    for batch_size in (1, 4):
        methods = {"gradient": InputGradient(), "gradcam": METHODS["gradcam"]}
        callback = Faithfulness(methods, [metric.clone()], mean=MEAN, std=STD, controls={}, unpack=unpack)
        running, _ = run_with(callback, epochs=0, batch_size=batch_size)
        found.append({key: value.item() for key, value in running.callback_metrics.items() if "xai" in key})
    assert found[0] == pytest.approx(found[1], rel=1e-3, nan_ok=True)
    assert found[0]


def test_pictures_are_those_of_each_image_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over batches, and in later epochs, in which the images are run alone."""
    panels: list[Any] = []
    monkeypatch.setattr(drawing, "log_panel", lambda loggers, key, panel, step: panels.append(panel))
    _, module = run_with(SaliencyMaps(METHODS, mean=MEAN, std=STD, n_images=5, unpack=unpack), epochs=2)
    with torch.no_grad():
        expected = module.model(IMAGES[:5], META[:5]).softmax(1).max(1).values
    assert panels[-1].facts["probability"] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:ModelIntegrity")  # what is found is not the point
def test_probes_are_judged_each_with_its_own() -> None:
    """The figures are those of an inspection that is given both."""
    callback = ModelIntegrity("net.conv2", n_images=5, threshold=Threshold(2.0, 1), unpack=unpack)
    _, module = run_with(callback)
    expected = inspect_model(module.model, IMAGES[:5], layer="net.conv2", calling=Calling((META[:5],)))
    assert callback.finding is not None
    for name, value in expected.figures.items():
        assert callback.finding.inspection.figures[name] == pytest.approx(value, rel=1e-4)
