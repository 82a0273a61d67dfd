"""CIFAR-10, and the residual networks made for it; parameters are named as in akamaster/pytorch_resnet_cifar10."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import CIFAR10
from torchvision.models import resnet18
from torchvision.transforms.functional import normalize, pil_to_tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the weights were trained with."""


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters: where sizes differ it is cut and padded."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.missing = after // before, (after - before) // 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """Activations (N,D,h,w) to the next ones."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.missing:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing, self.missing))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 pixels (He et al., "Deep Residual Learning", 2016, section 4.2), 6 n + 2 layers."""

    def __init__(self, n: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(before, after), *(Block(after, after) for _ in range(n - 1)))
            for before, after in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,32,32) to logits (N,K)."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet18_for_small_images(num_classes: int = 10) -> nn.Module:
    """ResNet-18 of torchvision with a first convolution of 3 x 3 and stride 1, and no pooling after it."""
    model = resnet18(num_classes=num_classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def cifar10(data: Path, split: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first images and their labels.

    Args:
        data: Folder with ``cifar10_train.npz`` and ``cifar10_test.npz`` (all JPEG files end to end in ``jpeg``, their
            ``offsets`` and ``labels``), or one where torchvision finds the original files or may download them.
        split: ``"train"`` or ``"test"``.
        n: How many; None for all.

    Returns:
        Images (n,3,32,32), standardised by `MEAN` and `STD`, and labels (n,).
    """
    path = data / f"cifar10_{split}.npz"
    if path.exists():
        with np.load(path) as file:
            jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"][:n]
        opened = (Image.open(io.BytesIO(jpeg[a:b].tobytes())) for a, b in itertools.pairwise(offsets))
        images = torch.stack([pil_to_tensor(image) for image, _ in zip(opened, labels, strict=False)])
    else:
        found = CIFAR10(data, train=split == "train", download=True)
        images, labels = torch.from_numpy(found.data[:n]).permute(0, 3, 1, 2), np.array(found.targets[:n])
    return normalize(images / 255, list(MEAN), list(STD)), torch.from_numpy(labels).long()
