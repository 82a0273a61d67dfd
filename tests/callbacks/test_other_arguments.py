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

from lightning_xai import AverageDrop, Faithfulness, GradCAM, ModelIntegrity, SaliencyMaps
from lightning_xai.callbacks import saliency_maps as drawing
from lightning_xai.integrity import Threshold, inspect_model
from lightning_xai.metrics import Complexity
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


def run_with(*callbacks: Any, epochs: int = 1) -> tuple[Any, Any]:
    """The Trainer and the module after a fit, whose steps hand over both."""
    module = classifier(model=WithMeta())
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module.model(batch[0], batch[1]), batch[2])
    module.validation_step = lambda batch, batch_idx: module.model(batch[0], meta=batch[1])
    data = DataLoader(TensorDataset(IMAGES, META, torch.arange(8) % 3), 3)
    running = trainer(callbacks=list(callbacks), logger=DummyLogger(), max_epochs=epochs)
    running.fit(module, data, data)
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
