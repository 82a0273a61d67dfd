"""One training of a CIFAR network with or without a term on its input gradient, and what its explanations are worth."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

import lightning_xai as xai
from common.data.cifar import MEAN, STD, CifarResNet, small_images
from common.networks import save_weights
from common.training import bare_trainer
from lightning_xai import attribution, metrics
from lightning_xai.metrics import ExplanationMetric
from lightning_xai.networks import load_weights
from papers.interpretable_gradients.term import ERRORS, NORM, TEACHERS

LAYER = "layer3"
STANDARD: dict[str, Any] = {"mean": MEAN, "std": STD}
LOOKS = (metrics.GradientAlignment, metrics.GradientVariation, metrics.GradientRoughness)
RATE = 0.1
"""Learning rate at the height of the one-cycle schedule of SGD."""


@dataclass(frozen=True)
class Setting:
    """What is trained beside the classification loss; a weight of 0 is plain training."""

    weight: float = 0.0
    error: str = "cosine"
    teacher: str = "-loss"
    batch_norm: Literal["training", "evaluation"] = "training"
    every_n_steps: int = 1
    fraction: float = 1.0

    @property
    def family(self) -> str:
        """All but the weight."""
        if not self.weight:
            return "plain"
        if self.error == NORM:
            return NORM
        lazy = f", every {self.every_n_steps}" if self.every_n_steps > 1 else ""
        part = f", fraction {self.fraction:g}" if self.fraction < 1 else ""
        mode = ", BN evaluation" if self.batch_norm == "evaluation" else ""
        return f"{self.error}, {self.teacher}{mode}{lazy}{part}"

    def __str__(self) -> str:
        return f"{self.family}, lambda {self.weight:g}" if self.weight else self.family


@dataclass(frozen=True)
class Scale:
    """How large a training is, and how many images are explained.

    Attributes:
        blocks: n of a ResNet with 6 n + 2 layers.
        steps: Optimizer steps.
        batch_size: Images of a step.
        explained: Images for the confidence metrics.
        masked: Images for Score-CAM, insertion and deletion; 0 leaves these out.
    """

    blocks: int
    steps: int
    batch_size: int
    explained: int
    masked: int


class Classifier(xai.GuidedGradientMixin, pl.LightningModule):
    """A CIFAR network and its term."""

    def __init__(self, setting: Setting, scale: Scale, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = CifarResNet(scale.blocks) if network is None else network
        self.interpretability = xai.GuidedGradientLoss(
            ERRORS[setting.error],
            # statistics and teacher of an untrained network say nothing yet
            xai.LinearWarmup(setting.weight, max(1, scale.steps // 5)),
            teacher=TEACHERS[setting.teacher],
            batch_norm=setting.batch_norm,
            every_n_steps=setting.every_n_steps,
            fraction=setting.fraction,
        )
        self.scale = scale
        self.hits = 0.0
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,32,32) to logits (N,10)."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Classification loss plus lambda times the term."""
        loss, _ = self.guided_gradient_loss(*batch)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count what is right."""
        images, labels = batch
        self.hits += (self(images).argmax(1) == labels).sum().item()
        self.seen += len(labels)

    def configure_optimizers(self) -> Any:
        """SGD with momentum, one cycle."""
        optimizer = torch.optim.SGD(self.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=self.scale.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images (N,3,32,32) and labels (N,), each image shifted by up to four pixels and perhaps mirrored."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


images_of = lru_cache(small_images)


def held_out(data: Path | None, n: int | None, n_validation: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Images for training, for the choice of lambda, and for the numbers that are reported.

    Args:
        data: As for `cifar.cifar10`; None for generated images.
        n: How many of each split of the files; None for all.
        n_validation: How many of the training images are kept for the choice.
    """
    images, labels = images_of(data, "train", n)
    cut = len(images) - n_validation
    return {
        "train": (images[:cut], labels[:cut]),
        "validation": (images[cut:], labels[cut:]),
        "test": images_of(data, "test", n),
    }


def trained(setting: Setting, scale: Scale, seed: int, images: Tensor, labels: Tensor) -> Classifier:
    """A classifier trained from scratch; the seed settles its first weights and the order of the images."""
    pl.seed_everything(seed, verbose=False)
    module = Classifier(setting, scale).to(memory_format=torch.channels_last)
    loader = DataLoader(Augmented(images, labels), scale.batch_size, shuffle=True, drop_last=True)
    bare_trainer(max_steps=scale.steps, max_epochs=-1).fit(module, loader)
    return module


def measured(
    module: Classifier, scale: Scale, images: Tensor, labels: Tensor, reference: nn.Module | None, layer: str = LAYER
) -> dict[str, Any]:
    """Accuracy, faithfulness of each method and of fixed maps, and how the input gradient looks.

    Args:
        module: A trained classifier.
        scale: Numbers of images.
        images: Images (N,3,32,32), standardised.
        labels: Labels (N,).
        reference: A trained network whose Grad-CAM maps are shown to every classifier, as a control.
        layer: Where Grad-CAM and its kin look.

    Returns:
        ``accuracy`` in percent; ``maps``, means by method or control, then metric; ``gradients``, means by metric.
    """
    methods: dict[str, xai.Attribution] = {
        "gradcam": xai.GradCAM(layer),
        "gradcam_plus_plus": xai.GradCAMPlusPlus(layer),
    }
    confidence: list[ExplanationMetric] = [metrics.AverageDrop(), metrics.AverageIncrease(), metrics.AverageGain()]
    look: list[ExplanationMetric] = [kind() for kind in LOOKS]
    measured: dict[str, Any] = {"controls": controls(reference), "control_images": None, **STANDARD}
    wide = xai.Faithfulness(methods, confidence + look, n_images=scale.explained, **measured)
    module.hits, module.seen = 0.0, 0
    bare_trainer(callbacks=[wide]).test(module, DataLoader(TensorDataset(images, labels), 250), verbose=False)
    accuracy, maps = 100 * module.hits / module.seen, _means(wide.states[0])
    if scale.masked:
        dear = methods | {"scorecam": attribution.ScoreCAM(layer)}
        curves: list[ExplanationMetric] = [metrics.Insertion(steps=8), metrics.Deletion(steps=8)]
        narrow = xai.Faithfulness(dear, confidence + curves, n_images=scale.masked, **measured)
        few = TensorDataset(images[: scale.masked], labels[: scale.masked])
        bare_trainer(callbacks=[narrow]).test(module, DataLoader(few, 32), verbose=False)
        for name, values in _means(narrow.states[0]).items():
            maps[name] = values | maps.get(name, {})  # the mean over more images where there is one
    return {
        "accuracy": accuracy,
        "maps": maps,
        "gradients": {name: float(one.compute()) for name, one in wide.shared_states[0].items()},
    }


def controls(reference: nn.Module | None) -> dict[str, xai.Attribution]:
    """Maps that do not depend on the network that is judged: equal maps tell robustness from better maps."""
    found: dict[str, xai.Attribution] = {
        "random": xai.attribution.Random(),
        "gaussian": xai.attribution.CenteredGaussian(),
        "edges": attribution.Edges(),
    }
    if reference is not None:
        found["another network's gradcam"] = xai.FromCallable(partial(_maps_of, reference))
    return found


def _maps_of(reference: nn.Module, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return xai.explain(reference, images, targets, attributions=xai.GradCAM(LAYER))


def _means(states: Any) -> dict[str, dict[str, float]]:
    return {name: {key: float(one.compute()) for key, one in kept.items()} for name, kept in states.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice, which is the same for each of a hundred trainings."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield


@dataclass(frozen=True)
class Job:
    """One training and its measurement, in a form that can go to another process.

    Attributes:
        setting: What is trained.
        scale: How much.
        seed: Of weights and order.
        judged: ``"validation"`` or ``"test"``: the images of the measurement.
        data: Folder of the images; None for generated ones.
        n: How many images of each file; None for all.
        n_validation: How many training images are kept for the choice.
        reference: Weights of the network whose maps are a control; None: without.
        keep: Where to save the weights; None: nowhere.
    """

    setting: Setting
    scale: Scale
    seed: int
    judged: str
    data: Path | None
    n: int | None
    n_validation: int
    reference: Path | None = None
    keep: Path | None = None

    def run(self) -> dict[str, Any]:
        """Train and measure."""
        splits = held_out(self.data, self.n, self.n_validation)
        with quiet():
            module = trained(self.setting, self.scale, self.seed, *splits["train"])
            found = measured(module, self.scale, *splits[self.judged], self._reference())
        if self.keep is not None:
            save_weights(module.network, self.keep)
        return found

    def _reference(self) -> nn.Module | None:
        if self.reference is None:
            return None
        network = CifarResNet(self.scale.blocks)
        load_weights(network, self.reference)
        return network.eval()


def search(weights: Sequence[float]) -> list[Setting]:
    """Small and broad.

    Args:
        weights: Four values of lambda.

    Returns:
        Plain training; teachers x modes of BatchNorm x lambda with the cosine; the other error functions with the two
        lambdas in the middle; the penalty on the gradient's norm with each lambda.
    """
    cosine = [
        Setting(weight, "cosine", teacher, mode)
        for mode in ("training", "evaluation")
        for teacher in TEACHERS
        for weight in weights
    ]
    others = [Setting(weight, error) for error in ERRORS if error not in ("cosine", NORM) for weight in weights[1:3]]
    return [Setting(), *cosine, *others, *(Setting(weight, NORM) for weight in weights)]
