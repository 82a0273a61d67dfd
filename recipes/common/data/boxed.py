"""Photographs with boxes around their objects: the boxes go through the same resizing and cropping as the image."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.tv_tensors import BoundingBoxes

from lightning_xai.metrics import box_masks


class BoxedImages(Dataset[tuple[Tensor, int, Tensor]]):
    """Images of a folder with ``boxes.csv``: ``file,label,xmin,ymin,xmax,ymax`` in pixels, maxima exclusive.

    A file with several boxes of one label has several lines. The order is shuffled once, so that the first n are a
    fair sample. ``label_to_imagenet.csv`` (``label,imagenet_indices``, separated by spaces) says which of the
    classifier's classes each label stands for.

    Args:
        root: The folder.
        transform: From an image and its boxes to a tensor (C,H,W) and boxes, as the transforms of torchvision v2 do.

    Raises:
        FileNotFoundError: If one of the two files does not exist.
    """

    def __init__(self, root: Path, transform: Callable[..., Any]) -> None:
        self.root, self.transform = root, transform
        found: dict[tuple[str, str], list[list[float]]] = {}
        for row in _rows(root / "boxes.csv"):
            box = [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            found.setdefault((row["file"], row["label"]), []).append(box)
        self.boxes = list(found.items())
        random.Random(0).shuffle(self.boxes)
        rows = {row["label"]: row["imagenet_indices"].split() for row in _rows(root / "label_to_imagenet.csv")}
        self.labels = list(rows)
        self.classes = [[int(index) for index in indices] for indices in rows.values()]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        """The image (C,H,W), the number of its label, and the mask (H,W) of its boxes, empty where they are cut off."""
        (file, label), sides = self.boxes[index]
        with Image.open(self.root / file) as opened:
            image = opened.convert("RGB")
        boxes: Any = BoundingBoxes(torch.tensor(sides), format="XYXY", canvas_size=(image.height, image.width))
        pixels, moved = self.transform(image, boxes)
        return pixels, self.labels.index(label), box_masks([moved], *pixels.shape[1:])[0]


def most_probable_of(classes: list[list[int]]) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Of the classes that a label stands for the one that the classifier prefers: which class to explain.

    Raises:
        ValueError: If the function gets no labels.

    Example:
        >>> most_probable_of([[0, 1], [2]])(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([0]))
        tensor([1])
    """

    def targets(logits: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("`labels` expected the label of each image, got None.")
        allowed = torch.zeros(len(classes), logits.shape[1], dtype=torch.bool, device=logits.device)
        for row, indices in zip(allowed, classes, strict=True):
            row[indices] = True
        return logits.masked_fill(~allowed[labels], -torch.inf).argmax(1)

    return targets


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"`--boxed` expected a folder with {path.name} in it, got {str(path.parent)!r}.")
    with path.open(newline="") as file:
        yield from csv.DictReader(file)
