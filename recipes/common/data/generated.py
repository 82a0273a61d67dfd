"""Generated images with ground-truth boxes: the data of a recipe that is started without ``--data``.

One object of a known shape and texture decides the class. Everything else is there to mislead: a background of
several textured regions, two objects of shapes outside the class set which carry the same textures, and colours,
positions, sizes and rotations that say nothing about the class. So a map can be right (on the object), wrong (on a
distractor of the same texture, on the background) or in between, and the box tells which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

Array = NDArray[np.floating[Any]]
Shape = Callable[[Array, Array], Array]
"""A shape: of two coordinates, negative inside and about the distance to the outline; all lie in the unit disc."""

_SHAPES: dict[str, Shape] = {
    "disc": lambda u, v: np.hypot(u, v) - 0.9,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.68,
    "triangle": lambda u, v: np.maximum(np.abs(u) * 0.866 + v * 0.5, -v) - 0.5,
    "cross": lambda u, v: np.maximum(np.maximum(np.abs(u), np.abs(v)) - 0.92, np.minimum(np.abs(u), np.abs(v)) - 0.32),
}
_DISTRACTORS: dict[str, Shape] = {
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) - 0.25,
    "crescent": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.75 - np.hypot(u - 0.5, v)),
    "bar": lambda u, v: np.maximum(np.abs(u) - 0.92, np.abs(v) - 0.33),
    "corner": lambda u, v: np.maximum(np.maximum(np.abs(u), np.abs(v)) - 0.7, np.minimum(u, v) + 0.15),
}
_STRIPES, _CHECKS = 0, 1

CLASSES = tuple(f"{texture} {shape}" for shape in _SHAPES for texture in ("striped", "checked"))
"""Names of the classes, by index: shape * 2 + texture."""

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
_SPLITS = {"train": 0, "val": 1}


def generated_image(
    index: int, *, seed: int = 0, split: str = "train", size: int = 64
) -> tuple[NDArray[np.uint8], int, NDArray[np.bool_]]:
    """Draw image number ``index``, which depends on the arguments alone.

    Args:
        index: Number of the image within its split.
        seed: Seed of the whole data set.
        split: ``"train"`` or ``"val"``.
        size: Height and width in pixels, at least 32.

    Returns:
        The image (H,W,C) in [0, 255], its class, and which pixels belong to the object that decides the class, (H,W).

    Raises:
        ValueError: If the size is below 32.

    Example:
        >>> image, label, mask = generated_image(0)
        >>> image.shape, CLASSES[label]
        ((64, 64, 3), 'striped cross')
    """
    if size < 32:
        raise ValueError(f"`size` expected at least 32 pixels, got {size}: textures would not be seen.")
    rng = np.random.default_rng((seed, _SPLITS[split], index))
    label = int(rng.integers(len(CLASSES)))
    canvas = _background(size, rng)
    radii = rng.uniform(0.17, 0.22, size=3) * size
    centres = _apart(radii, size, rng)
    for centre, radius in zip(centres[1:], radii[1:], strict=True):
        shape = list(_DISTRACTORS.values())[rng.integers(len(_DISTRACTORS))]
        _paint(canvas, shape, int(rng.integers(2)), centre, radius, rng)
    mask = _paint(canvas, list(_SHAPES.values())[label // 2], label % 2, centres[0], radii[0], rng)
    canvas += 0.04 * rng.standard_normal(canvas.shape, np.float32)
    return (canvas.clip(0, 1) * 255).astype(np.uint8), label, mask


class GeneratedImages(Dataset[tuple[Tensor, int]]):
    """Generated images, drawn once and kept as bytes; item i depends on (seed, split, i) only.

    Args:
        n: Number of images.
        seed: Seed of the data set.
        split: ``"train"`` or ``"val"``; the two share no image.
        size: Height and width in pixels.
        transform: Applied to the image (3,H,W), uint8, at each access.

    Attributes:
        images: All images (N,3,H,W), uint8.
        labels: All classes (N,).
        masks: Which pixels belong to the object, (N,H,W), bool.
        boxes: Boxes (N,4) around them as (xmin, ymin, xmax, ymax), maxima exclusive.

    Example:
        >>> data = GeneratedImages(2, split="val")
        >>> image, label = data[0]
        >>> image.shape, image.dtype, data.boxes.shape
        (torch.Size([3, 64, 64]), torch.uint8, torch.Size([2, 4]))
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int = 0,
        split: str = "train",
        size: int = 64,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        drawn = [generated_image(i, seed=seed, split=split, size=size) for i in range(n)]
        images, labels, masks = zip(*drawn, strict=True)
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.tensor(labels)
        self.masks = torch.from_numpy(np.stack(masks))
        self.boxes = (masks_to_boxes(self.masks) + torch.tensor([0, 0, 1, 1])).long()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


def _background(size: int, rng: np.random.Generator) -> Array:
    """Four regions (the nearest of four random points), each with a texture of its own, (H,W,3)."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    points = rng.uniform(0, size, (4, 2)).astype(np.float32)
    region = np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
    return _textured(x, y, rng.integers(2, size=4), region, rng, contrast=0.12)


def _textured(
    x: Array,
    y: Array,
    textures: NDArray[np.int64],
    region: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    contrast: float,
) -> Array:
    """Fill each region with its texture, of random period, direction, phase and colours: (H,W,3)."""
    n = len(textures)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, n)).astype(np.float32)
    frequency = 2 * np.pi / rng.uniform(4.0, 6.0, n).astype(np.float32)
    base = rng.uniform(0.25, 0.75, (n, 3)).astype(np.float32)
    # The two colours differ in brightness, so that the textures are seen in grey, too.
    swing = (contrast * rng.uniform(0.5, 1.5, (n, 3))).astype(np.float32)
    c, s = (frequency * np.cos(angle))[region], (frequency * np.sin(angle))[region]
    u, v = c * x + s * y + phase[region], c * y - s * x
    wave = np.where((textures == _STRIPES)[region], np.sin(u), 2 * np.sin(0.75 * u) * np.sin(0.75 * v))
    return base[region] + np.clip(2 * wave, -1, 1)[..., None] * swing[region]


def _apart(radii: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres (3,2) of three discs that overlap neither each other nor the border, by drawing until they do not."""
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    while True:
        centres = rng.uniform(radii[:, None], size - radii[:, None], (32, 3, 2))
        distances = np.linalg.norm(centres[:, first] - centres[:, second], axis=2)
        fitting = (distances > radii[first] + radii[second]).all(1)
        if fitting.any():
            return centres[fitting.argmax()]


def _paint(
    canvas: Array, shape: Shape, texture: int, centre: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Paint one object with a dark outline into the canvas and return which pixels (H,W) it covers."""
    left, top = np.maximum(centre - radius, 0).astype(int)
    patch = canvas[top : top + int(2 * radius) + 2, left : left + int(2 * radius) + 2]
    y, x = np.mgrid[: patch.shape[0], : patch.shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    dx, dy = x - np.float32(centre[0] - left), y - np.float32(centre[1] - top)
    distance = shape(c * dx + s * dy, c * dy - s * dx) * np.float32(radius)
    fill = _textured(x, y, np.array([texture]), np.zeros(x.shape, int), rng, contrast=0.25)
    fill *= 0.1 + 0.9 * np.clip(-1 - distance, 0, 1)[..., None]  # the outermost pixels are nearly black
    patch += np.clip(0.5 - distance, 0, 1)[..., None] * (fill - patch)
    covered = np.zeros(canvas.shape[:2], bool)
    covered[top : top + len(patch), left : left + patch.shape[1]] = distance <= 0
    return covered
