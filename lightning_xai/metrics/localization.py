"""Localisation metrics: whether a map lies where a box or a mask says that the object is.

A photograph's box is no ground truth of what a classifier uses, and maps that know nothing of the model do well where
photographers centre their object: compare every number with `CenteredGaussian` and
the random level, which is the share of the image that the boxes cover.

Throughout the family a map that shows nothing (`degenerate`: constant after ReLU,
all-zero or not finite) and an image without evidence (no box, an empty mask) stay in the mean with the value 0, never
a hit, and are counted. Boxes are bool masks (N,H,W), or for each image its boxes (M,4) as in `box_masks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_xai.kinds import require_kinds
from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.boxes import Boxes, as_masks, dilated
from lightning_xai.metrics.masking import degenerate
from lightning_xai.metrics.sample import Sample


def pointing_game(maps: Tensor, boxes: Boxes, *, tolerance: int = 15) -> Tensor:
    """Whether the maximum of each map lies in a box, or at most ``tolerance`` pixels from one.

    Distances are Euclidean, between centres of pixels. Where several pixels share the maximum, the value is the share
    of them that hit: what picking one by chance would give. Signed maps are taken as they are, since ReLU does not
    move a positive maximum.

    Returns:
        Hit of each image (N,), 0 or 1 unless maxima are tied, float64; 0 for a map that shows nothing and for an
        empty mask.

    Example:
        >>> maps, box = torch.tensor([[[0.0, 0.0, 0.0, 9.0]]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        >>> [pointing_game(maps, [box], tolerance=pixels).item() for pixels in (1, 2)]
        [0.0, 1.0]
    """
    near = dilated(as_masks(maps, boxes), tolerance)
    peaks = maps == maps.amax((1, 2), keepdim=True)
    hits = (peaks & near).sum((1, 2)).double() / peaks.sum((1, 2))
    return hits.masked_fill(degenerate(maps), 0.0)


def energy_in_box(maps: Tensor, boxes: Boxes) -> Tensor:
    """Share of the positive energy that lies in the boxes, ``sum_in relu(R) / sum relu(R)``.

    Returns:
        Share for each image (N,) in [0, 1], float64; 0 for a map that shows nothing and for an empty mask.

    Example:
        >>> energy_in_box(torch.tensor([[[3.0, 1.0, -5.0]]]), [torch.tensor([[0, 0, 1, 1]])])
        tensor([0.7500], dtype=torch.float64)
    """
    masks = as_masks(maps, boxes)
    positive = maps.double().relu()
    shares = (positive * masks).sum((1, 2)) / positive.sum((1, 2))
    return shares.masked_fill(degenerate(maps), 0.0)


class LocalizationMetric(ImageAverage):
    """What the family shares: the mean over images, what is counted, and the random level.

    Args:
        options: What makes the values differ from those of another metric of the class.
        keep_values: Whether to keep the value of each image, over all processes, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        random_level: After ``compute()``, what maps of noise reach: the mean share of the image that is evidence.
        n_degenerate: After ``compute()``, the number of maps that show nothing.
        n_empty: After ``compute()``, the number of images without evidence.
    """

    unit = ""
    higher_is_better = True
    plot_upper_bound = 1.0

    share: Tensor
    degenerate_maps: Tensor
    empty_masks: Tensor

    def __init__(self, *options: object, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.random_level = torch.nan
        self.n_degenerate = 0
        self.n_empty = 0
        self.add_state("share", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("degenerate_maps", "empty_masks"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        # A MetricCollection merges metrics whose states have equal names and, after its first batch, equal values, as
        # two tolerances have that hit every box of it. With other options there is a state of another name.
        self.add_state(f"options_{options}", torch.zeros(()), dist_reduce_fx="sum")

    def compute(self) -> Any:
        """Average over all images, float64."""
        self.random_level = float(self.share / self.n_images)
        self.n_degenerate, self.n_empty = int(self.degenerate_maps), int(self.empty_masks)
        return super().compute()

    def _add_images(self, maps: Tensor, masks: Tensor, values: Tensor) -> None:
        """Add one value for each image (N,), its map, and the mask (N,H,W) in which the map was to lie."""
        self.add(values)
        self.share = self.share + masks.double().mean((1, 2)).sum()
        self.degenerate_maps = self.degenerate_maps + degenerate(maps).sum()
        self.empty_masks = self.empty_masks + (~masks.flatten(1).any(1)).sum()


class PointingGame(LocalizationMetric):
    """Pointing game, the share of maps whose maximum lies in a box or within a tolerance of it; higher is better.

    From Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016: hits / (hits + misses), with a
    tolerance of 15 pixels, here over all images rather than class by class. Range [0, 1]; see `pointing_game`
    for ties and signed maps. A map that shows nothing and an image without evidence count as misses.

    ``update(maps, boxes)`` takes maps (N,H,W) and bool masks (N,H,W), or for each image its boxes (M,4) as in
    `box_masks`. Without images the result is NaN. Further options and attributes are those of `LocalizationMetric`.

    Args:
        tolerance: Distance in pixels of the maps that still is a hit; choose less than 15 for small images.

    Raises:
        ValueError: If the tolerance is negative.

    Example:
        >>> metric = PointingGame(tolerance=0)
        >>> maps, box = torch.tensor([[[1.0, 9.0]], [[9.0, 1.0]], [[0.0, 0.0]]]), torch.tensor([[0, 0, 1, 1]])
        >>> metric.update(maps, [box, box, box])
        >>> metric.compute(), metric.random_level, metric.n_degenerate
        (tensor(0.3333, dtype=torch.float64), 0.5, 1)
    """

    def __init__(self, *, tolerance: int = 15, keep_values: bool = False, **kwargs: Any) -> None:
        require_kinds(PointingGame.__init__, tolerance=tolerance)
        super().__init__(tolerance, keep_values=keep_values, **kwargs)
        if tolerance < 0:
            raise ValueError(f"`tolerance` expected 0 or more pixels, got {tolerance}.")
        self.tolerance = tolerance

    def measure(self, sample: Sample) -> None:
        """Update with the maps and the boxes that ``unpack`` gives."""
        self.update(sample.maps, sample.boxes)

    def update(self, maps: Tensor, boxes: Boxes) -> None:
        """Add one batch of maps (N,H,W) with masks (N,H,W) or the boxes (M,4) of each image."""
        masks = as_masks(maps, boxes)
        self._add_images(maps, dilated(masks, self.tolerance), pointing_game(maps, masks, tolerance=self.tolerance))


class EnergyInBox(LocalizationMetric):
    """Energy-based pointing game, the mean share of positive energy inside the boxes; higher is better.

    From Wang et al., "Score-CAM", CVPR Workshops 2020; see `energy_in_box`. Range [0, 1]; negative values count
    as zero. A map that shows nothing and an image without evidence count with 0.

    ``update(maps, boxes)`` takes maps (N,H,W) and bool masks (N,H,W), or for each image its boxes (M,4) as in
    `box_masks`. Without images the result is NaN. Options and attributes are those of `LocalizationMetric`.

    Example:
        >>> metric = EnergyInBox()
        >>> metric.update(torch.tensor([[[3.0, 1.0, -5.0]]]), boxes=[torch.tensor([[0, 0, 1, 1]])])
        >>> metric.compute(), round(metric.random_level, 4)
        (tensor(0.7500, dtype=torch.float64), 0.3333)
    """

    def __init__(self, *, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)

    def measure(self, sample: Sample) -> None:
        """Update with the maps and the boxes that ``unpack`` gives."""
        self.update(sample.maps, sample.boxes)

    def update(self, maps: Tensor, boxes: Boxes) -> None:
        """Add one batch of maps (N,H,W) with masks (N,H,W) or the boxes (M,4) of each image."""
        masks = as_masks(maps, boxes)
        self._add_images(maps, masks, energy_in_box(maps, masks))
