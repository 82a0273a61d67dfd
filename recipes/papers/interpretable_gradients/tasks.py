"""Data and networks for the question whether the training term helps: generated images, and CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.cifar import MEAN, STD, CifarResNet, cifar10
from common.data.generated import MEAN as DRAWN_MEAN
from common.data.generated import STD as DRAWN_STD
from common.data.generated import GeneratedImages

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``(images, generator) -> images``, for training."""


@dataclass(frozen=True)
class Images:
    """Standardised images (N,3,H,W), labels (N,), and the pixels of the object (N,H,W) where they are known."""

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def first(self, n: int) -> Images:
        """The first n."""
        return Images(self.images[:n], self.labels[:n], None if self.masks is None else self.masks[:n])


@dataclass(frozen=True)
class Task:
    """A data set, its network and its scale.

    Attributes:
        name: Of its files.
        train: For training.
        validation: For the choice of strengths and temperatures.
        test: For what is reported.
        mean: By which images are standardised.
        std: By which images are standardised.
        network: Makes the network, untrained.
        layer: Layer of the CAM methods.
        inner: Layer of the term at an inner layer.
        augment: What is done to the images of a batch.
        epochs: Of the plain training that all arms start from.
        steps: Of fine-tuning.
        explained: Test images for maps under masks.
        curves: Test images for insertion and deletion.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    mean: Sequence[float]
    std: Sequence[float]
    network: Callable[[], nn.Module]
    layer: str
    inner: str
    augment: Augment
    epochs: int
    steps: int
    explained: int
    curves: int


def erased(images: Tensor, generator: torch.Generator, black: Tensor) -> Tensor:
    """Half of the images with parts in black, one in twenty black as a whole, so that the network has seen such images.

    Args:
        images: Standardised images (N,3,H,W).
        generator: Source of randomness.
        black: Standardised black, (3,1,1).
    """
    n, _, height, width = images.shape
    cells = torch.rand(n, 1, 8, 8, generator=generator)
    kept = torch.rand(n, 1, 1, 1, generator=generator) * 1.6 + 0.2  # above 1: the image stays whole
    kept = kept * (torch.rand(n, 1, 1, 1, generator=generator) >= 0.05)
    shown = F.interpolate((cells < kept).float(), (height, width))
    return torch.where(shown.to(images.device) > 0, images, black.to(images.device))


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored in one case of two, and shifted by up to four pixels, one shift for each batch."""
    flipped = _flipped(images, generator)
    dy, dx = torch.randint(9, (2,), generator=generator).tolist()
    side = images.shape[2]
    return F.pad(flipped, (4, 4, 4, 4))[:, :, dy : dy + side, dx : dx + side]


@cache
def task(name: str, data: Path | None, small: bool = False) -> Task:
    """The generated images, or CIFAR-10.

    Args:
        name: ``"generated"`` or ``"cifar10"``.
        data: Folder with CIFAR-10.
        small: A few images and steps, to try it.
    """
    if name == "generated":
        n_train, n_other = (128, 64) if small else (8192, 2048)
        black = -torch.tensor(DRAWN_MEAN)[:, None, None] / torch.tensor(DRAWN_STD)[:, None, None]
        train, validation = _drawn(n_train, "train", 0), _drawn(n_other, "val", 1)
        test = _drawn(n_other, "val", 2)
        return Task(
            name,
            train,
            validation,
            test,
            DRAWN_MEAN,
            DRAWN_STD,
            _small_resnet,
            "layer4",
            "layer2",
            lambda images, generator: erased(_flipped(images, generator), generator, black),
            epochs=1 if small else 24,
            steps=2 if small else 300,
            explained=32 if small else 512,
            curves=16 if small else 64,
        )
    images, labels = cifar10(data, "train", 256 if small else None)  # type: ignore[arg-type]
    cut = len(images) - (64 if small else 5000)
    tested = cifar10(data, "test", 64 if small else 5000)  # type: ignore[arg-type]
    return Task(
        name,
        Images(images[:cut], labels[:cut]),
        Images(images[cut:], labels[cut:]),
        Images(*tested),
        MEAN,
        STD,
        partial(CifarResNet, 3),
        "layer3",
        "layer2",
        moved,
        epochs=1 if small else 8,
        steps=2 if small else 200,
        explained=32 if small else 1024,
        curves=16 if small else 64,
    )


def _drawn(n: int, split: str, seed: int) -> Images:
    drawn = GeneratedImages(n, split=split, seed=seed)
    return Images((drawn.images / 255 - DRAWN_MEAN[0]) / DRAWN_STD[0], drawn.labels, drawn.masks)


def _small_resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=8, channels=(16, 32, 48, 64), stem_width=8, output_stride=8)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored.to(images.device), images.flip(3), images)
