"""Callbacks explain a model of each kind with the layer found, as explain() does."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from architectures import CONVNEXT, SWIN, VIT
from callbacks.definitions import by_hand
from callbacks.trainers import MEAN, STD, classifier, imported, loader, packages, run_stage, trainer

from lightning_xai import AverageDrop, AverageGain, AverageIncrease, Faithfulness, GradCAM, SaliencyMaps

MODELS = {
    "ViT": ("vit_tiny_patch16_224", VIT, "blocks.1.norm1"),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN, "norm"),
    "ConvNeXt": ("convnext_atto", CONVNEXT, "norm_pre"),
    "EfficientNet": ("test_efficientnet", {}, "bn2"),
}


@pytest.mark.parametrize("name", packages())
@pytest.mark.parametrize(("kind", "stage"), [("ViT", "validate"), ("ViT", "test"), *((kind, "fit") for kind in MODELS)])
def test_a_model_of_each_kind_is_explained_in_a_trainer(name: str, kind: str, stage: str, tmp_path: Path) -> None:
    """Values are those computed by hand, and pictures are written."""
    torch.manual_seed(0)
    kind, options, layer = MODELS[kind]
    model = timm.create_model(kind, num_classes=3, **options)
    torch.nn.init.normal_(model.get_classifier().weight, std=0.3)
    data, method = loader(images=torch.randn(7, 3, 64, 64)), {"gradcam": GradCAM()}
    settings = {"mean": MEAN, "std": STD}
    metrics = [AverageDrop(), AverageIncrease(), AverageGain()]
    callbacks = [Faithfulness(method, metrics, controls={}, **settings), SaliencyMaps(method, n_images=2, **settings)]
    logger = imported(name).loggers.CSVLogger(tmp_path)
    running = trainer(imported(name), callbacks=callbacks, logger=logger)
    run_stage(stage, running, classifier(imported(name), model=model), data)

    part = "test" if stage == "test" else "val"
    for metric, value in by_hand(model, data.dataset.tensors[0], GradCAM(layer)).items():
        found = running.callback_metrics[f"{part}/xai/gradcam/{metric}"].item()
        assert found == pytest.approx(value, rel=1e-3, abs=1e-3)
    assert list(tmp_path.rglob("panel.json"))
    assert isinstance(running, pl.Trainer) == (name == "pytorch_lightning")
