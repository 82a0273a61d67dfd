"""The classifiers that the experiment on SGLRP explains, each with its images: photographs, or planted evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

import lightning_xai as xai
from common.data.cifar import CLASSES as CIFAR_CLASSES
from common.data.cifar import MEAN as CIFAR_MEAN
from common.data.cifar import STD as CIFAR_STD
from common.data.cifar import CifarResNet, cifar10
from common.data.images import IMAGENET_MEAN
from common.data.planted import CLASSES
from common.networks import classifier_of
from common.options import DataOptions, ModelOptions
from common.planted_network import STANDARD, fitted, small_network
from common.subject import Subject, given
from common.subject import boxed as boxed_of
from common.subject import planted as drawn
from lightning_xai import attribution
from lightning_xai.attribution import absolute_target_logit, negated_z_plus
from lightning_xai.types import TargetRule


@dataclass(frozen=True)
class Judged(Subject):
    """A classifier with the images on which its maps are judged.

    Attributes:
        images: Items ``(image (C,H,W), label)``; a name in place of an image that cannot be read.
        boxed: Items ``(image (C,H,W), number of the label, mask (H,W) of the object)``, or None.
        boxed_targets: From logits and numbers of labels to the classes that are explained.
        n_classes: How many of the classifier's classes each label of the boxed images stands for.
        color: The average colour of the images, which patches take.
    """

    images: Any = ()
    boxed: Any = None
    boxed_targets: TargetRule = xai.scores.label
    n_classes: Sequence[int] = ()
    color: Sequence[float] = ()

    def methods(self) -> dict[str, xai.Attribution]:
        """The paper's methods, and the contrasts that go by the name of CLRP.

        ``CLRP`` is eq. 7, one signed pass; ``CLRP1`` and ``CLRP2`` are those of the code of Gu et al. 2018, which
        subtract two maps of equal sums: the contrast is all other classes, or the target's weights negated.
        """
        # one object, so that all methods share their passes; the bounds of eq. 2 are those of pixels
        rules = attribution.Rules(first=attribution.ZBox.standardized(self.mean, self.std))
        negated = attribution.Rules(first=rules.first, last=negated_z_plus)
        return {
            "LRP": attribution.LRP(rules),
            "CLRP": attribution.CLRP(rules),
            "CLRP1": attribution.NormalizedCLRP(rules, contrast_rules=rules),
            "CLRP2": attribution.NormalizedCLRP(rules, absolute_target_logit, negated),
            "SGLRP": attribution.SGLRP(rules),
            "Guided Grad-CAM": attribution.GuidedGradCAM(self.layer),
            "Random": xai.attribution.Random(),
        }


def loaded(dataset: Any, indices: Sequence[int]) -> list[Tensor]:
    """Items of a dataset as one batch, their indices (N,) first; what cannot be read is left out.

    Raises:
        ValueError: If none of them can be read.

    Example:
        >>> loaded([(torch.ones(3, 2, 2), 5), ("broken.jpg", 7)], [0, 1])[2]
        tensor([5])
    """
    items = [(index, *dataset[index]) for index in indices]
    readable = [item for item in items if isinstance(item[1], Tensor)]
    if not readable:
        raise ValueError(f"`--data` expected images, got none that can be read among {[item[1] for item in items]}.")
    return default_collate(readable)


def photographs(
    data: DataOptions,
    model: ModelOptions,
    n: int,
    boxed: Path | None = None,
    *,
    name: str | None = None,
    **compute: Any,
) -> Judged:
    """A classifier and the photographs of folders, in an order shuffled once, or the first test images of CIFAR-10."""
    if holds_cifar(str(data.data)):
        images: Any = TensorDataset(*cifar10(Path(str(data.data)), "test", n))
        network = classifier_of(model, len(CIFAR_CLASSES)).eval().to(compute["device"])
        options = {"device": compute["device"], "batch_size": compute["batch_size"], "layer": model.layer}
        subject = Subject(network, CIFAR_MEAN, CIFAR_STD, CIFAR_CLASSES, name=str(model.model), **options)
    else:
        subject, loaders = given(data, model, **compute)
        images = loaders.val
    more: dict[str, Any] = {}
    if boxed is not None:
        found = boxed_of(boxed, data, subject)
        more = {"boxed": found.items, "boxed_targets": found.targets, "n_classes": found.n_classes}
    fields = {one.name: getattr(subject, one.name) for one in dataclasses.fields(subject)}
    return Judged(**fields | {"name": name or subject.name}, images=images, color=IMAGENET_MEAN, **more)


def holds_cifar(data: str) -> bool:
    """Whether a folder holds CIFAR-10 as ``cifar10_test.npz``."""
    return (Path(data) / "cifar10_test.npz").exists()


def planted(n: int, seed: int, *, small: bool, device: str, batch_size: int) -> list[Judged]:
    """Three small networks, trained here on images of which it is known what decides their class."""
    images, labels, masks = drawn(n, seed + 1)
    training = drawn(128 if small else 2048, seed)
    own = {"images": TensorDataset(images, labels), "boxed": TensorDataset(images, labels, masks)}
    shared: dict[str, Any] = own | {"n_classes": [1] * len(CLASSES), "color": STANDARD[0], "device": device}
    subjects = []
    for name, make in NETWORKS.items():
        pl.seed_everything(seed, verbose=False)
        network = make()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        fitted(network, training.images, training.labels, optimizer, epochs=4, batch_size=64)
        subjects.append(Judged(network.to(device), *STANDARD, CLASSES, batch_size=batch_size, name=name, **shared))
    return subjects


def _head(width: int) -> list[nn.Module]:
    """The largest response of each channel decides, since the evidence is small."""
    return [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width, len(CLASSES))]


class Residual(nn.Module):
    """Two convolutions whose input is added to their output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N,D,h,w)."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def residual() -> nn.Module:
    """A convolution with stride 2, then two residual blocks."""
    stem = [nn.Conv2d(3, 24, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    return nn.Sequential(*stem, Residual(24), Residual(24), *_head(24))


def separable() -> nn.Module:
    """Depthwise and pointwise convolutions with ReLU6, as in MobileNet."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 5, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    for before, after, stride in ((16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before)]
        layers += [nn.ReLU6(), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU6()]
    return nn.Sequential(*layers, *_head(32))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"plain": small_network, "residual": residual, "separable": separable}


@register_model
def cifar_resnet20(*, num_classes: int = 10, **options: Any) -> nn.Module:
    """ResNet-20 for CIFAR-10, under this name in timm's list."""
    return CifarResNet(3, num_classes)


@register_model
def cifar_resnet44(*, num_classes: int = 10, **options: Any) -> nn.Module:
    """ResNet-44 for CIFAR-10, under this name in timm's list."""
    return CifarResNet(7, num_classes)
