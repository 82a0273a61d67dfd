"""A LightningCLI file can name our callbacks, methods, metrics and the training term by class path."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from callbacks.trainers import confident_net, imported, loader, packages

from lightning_xai import (
    AverageDrop,
    GradCAM,
    GradCAMPlus,
    GradCAMPlusPlus,
    GuidedGradient,
    GuidedGradientLoss,
    GuidedGradientMixin,
    InputGradient,
    LinearWarmup,
)
from lightning_xai.attribution import Random
from lightning_xai.baselines import mean_color
from lightning_xai.callbacks.faithfulness import default_controls
from lightning_xai.regularization import CosineLoss, loss_teacher
from lightning_xai.scores import label, post_softmax, second_best

CONFIG = """
trainer:
  accelerator: cpu
  fast_dev_run: true
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_xai.Faithfulness
      init_args:
        attributions:
          gradcam:
            class_path: lightning_xai.GradCAM
            init_args:
              layer: conv2
              score: lightning_xai.scores.post_softmax
          both:
            class_path: lightning_xai.GradCAMPlus
            init_args:
              layer: [conv1, conv2]
          guided:
            class_path: lightning_xai.GuidedGradient
            init_args:
              reduce: lightning_xai.attribution.gradient.channel_max
        metrics:
          - lightning_xai.AverageDrop
          - class_path: lightning_xai.AverageGain
        mean: [0.5, 0.5, 0.5]
        std: [0.25, 0.25, 0.25]
        n_images: 3
        controls:
          random:
            class_path: lightning_xai.attribution.Random
            init_args:
              seed: 7
        baseline: lightning_xai.baselines.mean_color
        targets: lightning_xai.scores.label
        classifier: model
        unpack: lightning_xai.callbacks.base.first_two
    - class_path: lightning_xai.SaliencyMaps
      init_args:
        attributions:
          plus: lightning_xai.GradCAMPlusPlus
        mean:
          class_path: torchvision.transforms.Normalize
          init_args:
            mean: [0.5, 0.5, 0.5]
            std: [0.25, 0.25, 0.25]
        targets: TARGETS
        class_names: [ant, bee, cat]
model:
  interpretability:
    class_path: lightning_xai.GuidedGradientLoss
    init_args:
      error: lightning_xai.regularization.CosineLoss
      weight:
        class_path: lightning_xai.LinearWarmup
        init_args:
          value: 0.1
          steps: 5
      teacher: lightning_xai.regularization.loss_teacher
      batch_norm: evaluation
"""
RECIPE = Path(__file__).parents[2] / "recipes/callbacks.yaml"
ANYBODYS = """
trainer:
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  log_every_n_steps: 1
  logger:
    class_path: CSVLogger
    init_args:
      save_dir: FOLDER
  callbacks:
    - class_path: LearningRateMonitor
model:
  interpretability: lightning_xai.GuidedGradientLoss
"""


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``fit --config``; gives the LightningCLI after it."""
    pytest.importorskip("jsonargparse")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # for what Lightning 2.6 itself still calls

    def run(name: str, config: str, *more: Path) -> Any:
        (tmp_path / "config.yaml").write_text(config)
        files = [part for file in (tmp_path / "config.yaml", *more) for part in ("--config", str(file))]
        monkeypatch.setattr(sys, "argv", ["train.py", "fit", *files])
        cli, parts = importlib.import_module(f"{name}.cli"), parts_of(imported(name))
        torch.manual_seed(0)  # dropout
        return cli.LightningCLI(*parts, seed_everything_default=False)

    return run


def parts_of(lightning: ModuleType) -> tuple[type, type]:
    """A LightningModule with the training term, and its data."""

    class Classifier(GuidedGradientMixin, lightning.LightningModule):
        def __init__(self, interpretability: GuidedGradientLoss) -> None:
            super().__init__()
            self.model = confident_net().train()
            self.interpretability = interpretability

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.guided_gradient_loss(*batch, model=self.model)[0]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.model(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

        val_dataloader = train_dataloader

    return Classifier, Data


@pytest.mark.parametrize("name", packages())
def test_a_yaml_file_says_everything(name: str, command_line: Callable[..., Any]) -> None:
    """And the run logs the keys of what it names."""
    cli = command_line(name, CONFIG.replace("TARGETS", "null"))
    measured, drawn = cli.trainer.callbacks[:2]
    methods = measured.attributions
    assert methods["gradcam"] == GradCAM("conv2", score=post_softmax)
    assert methods["both"] == GradCAMPlus(["conv1", "conv2"])
    assert isinstance(methods["guided"], GuidedGradient)
    assert methods["random"] == Random(7)
    assert isinstance(measured.metrics["AverageDrop"], AverageDrop)
    assert (measured.baseline, measured.targets) == (mean_color, label)
    assert drawn.attributions == {"plus": GradCAMPlusPlus()}
    assert (drawn.targets, drawn.class_names) == (None, ["ant", "bee", "cat"])

    term = cli.model.interpretability
    assert isinstance(term.error, CosineLoss)
    assert (term.weight, term.teacher, term.batch_norm) == (LinearWarmup(0.1, 5), loss_teacher, "evaluation")
    names = {key.split("/")[2] for key in cli.trainer.callback_metrics if key.startswith("val/xai/")}
    assert names == {"gradcam", "both", "guided", "random"}


def test_the_configuration_can_be_saved_and_read_again(command_line: Callable[..., Any]) -> None:
    """As LightningCLI does for each run: functions are written by their names."""
    cli = command_line("pytorch_lightning", CONFIG.replace("TARGETS", "lightning_xai.scores.second_best"))
    saved = cli._parser(cli.subcommand).dump(cli.config[cli.subcommand], skip_none=False)
    again = command_line("pytorch_lightning", saved)
    assert again.trainer.callbacks[0].attributions["gradcam"] == GradCAM("conv2", score=post_softmax)
    assert again.trainer.callbacks[1].targets is second_best


@pytest.mark.parametrize(
    ("written", "meant"), [("1", 1), ("[0, 1, 2, 0]", [0, 1, 2, 0]), ("lightning_xai.scores.second_best", second_best)]
)
def test_targets_are_a_class_classes_or_a_rule(command_line: Callable[..., Any], written: str, meant: Any) -> None:
    """Every form that YAML can hold."""
    cli = command_line("pytorch_lightning", CONFIG.replace("TARGETS", written))
    assert cli.trainer.callbacks[1].targets == meant


@pytest.mark.filterwarnings("ignore:ModelIntegrity")  # what is found is not the point
@pytest.mark.parametrize("name", packages())
def test_the_recipes_file_adds_our_callbacks_to_anybodys(
    name: str, command_line: Callable[..., Any], tmp_path: Path
) -> None:
    """Behind their own file, whose callbacks stay; pictures, faithfulness and integrity are logged."""
    cli = command_line(name, ANYBODYS.replace("FOLDER", str(tmp_path)), RECIPE)
    kinds = [type(callback).__name__ for callback in cli.trainer.callbacks[:4]]
    assert kinds == ["LearningRateMonitor", "SaliencyMaps", "Faithfulness", "ModelIntegrity"]
    methods = {"gradcam": GradCAM(), "gradcam_plus": GradCAMPlus(), "input_gradient": InputGradient()}
    assert cli.trainer.callbacks[1].attributions == methods
    assert set(cli.trainer.callbacks[2].attributions) == {*methods, *default_controls(methods)}
    logged = set(cli.trainer.callback_metrics)
    drops = {f"val/xai/{method}/AverageDrop" for method in methods}
    assert logged >= drops | {"val/xai/integrity/flagged", "val/xai/random/AverageGain"}
    assert len(list(tmp_path.rglob("xai/val/xai/maps/*/panel.json"))) == 1
