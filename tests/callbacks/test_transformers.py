"""Callbacks explain a transformer with the layer found, as explain() does."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from architectures import VIT
from callbacks.definitions import by_hand
from callbacks.trainers import MEAN, STD, classifier, imported, loader, packages, run_stage, trainer

from lightning_xai import AverageDrop, AverageGain, AverageIncrease, Faithfulness, GradCAM, SaliencyMaps


@pytest.mark.parametrize("name", packages())
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_transformer_is_explained_in_a_trainer(name: str, stage: str, tmp_path: Path) -> None:
    """Values are those computed by hand, and pictures are written."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    data, method = loader(images=torch.randn(7, 3, 64, 64)), {"gradcam": GradCAM()}
    settings = {"mean": MEAN, "std": STD}
    metrics = [AverageDrop(), AverageIncrease(), AverageGain()]
    callbacks = [Faithfulness(method, metrics, controls={}, **settings), SaliencyMaps(method, n_images=2, **settings)]
    logger = imported(name).loggers.CSVLogger(tmp_path)
    running = trainer(imported(name), callbacks=callbacks, logger=logger)
    run_stage(stage, running, classifier(imported(name), model=model), data)

    part = "test" if stage == "test" else "val"
    for metric, value in by_hand(model, data.dataset.tensors[0], GradCAM("blocks.1.norm1")).items():
        found = running.callback_metrics[f"{part}/xai/gradcam/{metric}"].item()
        assert found == pytest.approx(value, rel=1e-3, abs=1e-3)
    assert list(tmp_path.rglob("panel.json"))
    assert isinstance(running, pl.Trainer) == (name == "pytorch_lightning")
