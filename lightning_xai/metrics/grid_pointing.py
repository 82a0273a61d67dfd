"""The grid pointing game: whether maps find an image within a mosaic of images of different classes. Needs no boxes."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from lightning_xai.metrics.boxes import as_masks
from lightning_xai.metrics.localization import LocalizationMetric, energy_in_box
from lightning_xai.metrics.sample import Sample


def confident_groups(scores: Tensor, labels: Tensor, *, size: int, confidence: float = 0.9) -> Tensor:
    """Choose groups of confidently classified images, all of a group of different classes, no image twice.

    Classes with the most images left go first, and of each class its most confident image; nothing is random.

    Args:
        scores: Log-probability of each image's label, (N,), such as ``log_softmax(logits.double(), labels)``.
        labels: Class of each image, (N,).
        size: Number of images in a group, such as 4 or 9.
        confidence: Least probability of the label.

    Returns:
        Indices of images, (G,size), int64, as many groups G as can be filled, possibly none.

    Example:
        >>> scores = torch.tensor([0.95, 0.99, 0.92, 0.5]).log()
        >>> confident_groups(scores, torch.tensor([7, 7, 8, 9]), size=2)
        tensor([[1, 2]])
    """
    left: dict[int, list[int]] = {}
    for i in scores.argsort(descending=True, stable=True).tolist():
        if scores[i].exp() >= confidence:
            left.setdefault(int(labels[i]), []).append(i)
    groups: list[list[int]] = []
    while len(left) >= size:
        classes = sorted(left, key=lambda label: -len(left[label]))[:size]
        groups.append([left[label].pop(0) for label in classes])
        left = {label: images for label, images in left.items() if images}
    return torch.tensor(groups, dtype=torch.long, device=scores.device).view(-1, size)


def mosaics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Put n x n images into one, row by row.

    The class of the image in cell i is explained on the whole mosaic, and belongs to ``cells[i]``. The classifier has
    to take images n times as large, as those with global pooling do.

    Args:
        images: Groups of images (G,n*n,C,H,W), such as ``images[confident_groups(...)]``.

    Returns:
        Mosaics (G,C,nH,nW), and the masks of the cells, (n*n,nH,nW), bool, the same for all mosaics.

    Raises:
        ValueError: If the number of images in a group is no square.

    Example:
        >>> mosaic, cells = mosaics(torch.arange(4.0).view(1, 4, 1, 1, 1))
        >>> mosaic
        tensor([[[[0., 1.],
                  [2., 3.]]]])
        >>> cells[1].int()
        tensor([[0, 1],
                [0, 0]], dtype=torch.int32)
    """
    n = isqrt(images.shape[1]) if images.ndim == 5 else 0
    if n == 0 or n * n != images.shape[1]:
        raise ValueError(f"`images` expected groups of n * n images, (G,n*n,C,H,W), got {tuple(images.shape)}.")
    groups, _, channels, height, width = images.shape
    rows = images.unflatten(1, (n, n)).permute(0, 3, 1, 4, 2, 5)
    cells = torch.eye(n * n, dtype=torch.bool, device=images.device).view(n * n, n, n)
    cells = cells.repeat_interleave(height, 1).repeat_interleave(width, 2)
    return rows.reshape(groups, channels, n * height, n * width), cells


class GridPointingGame(LocalizationMetric):
    """Grid pointing game, the mean share of positive energy in the cell whose class is explained; higher is better.

    From Böhle et al., "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021
    (https://arxiv.org/abs/2104.00032), there the localisation metric. Range [0, 1]; negative values count as zero. A
    map that shows nothing counts with 0. The classifier sees mosaics, which it was not trained on, and an edge between
    two cells may count for either.

    ``update(maps, cells)`` takes maps (N,H,W) of mosaics and the mask of each map's cell, (N,H,W), bool. Without
    images the result is NaN. Further options and attributes are those of `LocalizationMetric`.

    Args:
        n: Cells along a side of the mosaics that a callback makes of its batches' images.
        confidence: Least probability of the images in them.

    Example:
        >>> mosaic, cells = mosaics(torch.tensor([3.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1, 1))
        >>> metric = GridPointingGame()
        >>> metric.update(mosaic[:, 0].repeat(4, 1, 1), cells)  # one map, as if it explained each of the classes
        >>> metric.compute(), metric.random_level
        (tensor(0.2500, dtype=torch.float64), 0.25)
    """

    def __init__(self, *, n: int = 2, confidence: float = 0.9, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.n = n
        self.confidence = confidence

    def measure(self, sample: Sample) -> None:
        """Update with mosaics of the sample's confident images, if there are enough of them."""
        groups = confident_groups(sample.scores, sample.targets, size=self.n**2, confidence=self.confidence)
        if not len(groups):
            return
        images, cells = mosaics(sample.images[groups])
        maps = [sample.explain(images, classes) for classes in sample.targets[groups].T]
        self.update(torch.cat(maps), cells.repeat_interleave(len(groups), 0))

    def update(self, maps: Tensor, cells: Tensor) -> None:
        """Add one batch of maps (N,H,W) of mosaics, with the masks (N,H,W) of the cells that they explain."""
        masks = as_masks(maps, cells)
        self._add_images(maps, masks, energy_in_box(maps, masks))
