"""The pointing game with more than one point: accuracy as a function of how much of the map counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from lightning_xai.metrics.base import Number
from lightning_xai.metrics.boxes import Boxes, as_masks
from lightning_xai.metrics.localization import LocalizationMetric
from lightning_xai.metrics.masking import degenerate
from lightning_xai.metrics.sample import Sample
from lightning_xai.scores import at_least_float32

LEVELS = tuple(range(0, 101, 5))
"""Energies in percent at which accuracy is measured."""

_RANDOM = "random level"


def energy_pointing(maps: Tensor, boxes: Boxes, *, levels: Sequence[int] = LEVELS) -> tuple[Tensor, Tensor]:
    """How many points of each map lie in the boxes, and how many points there are, by energy.

    From Iwana et al., "Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise Relevance
    Propagation", ICCV Workshops 2019, eq. 11-12. At energy ``E`` the
    points are the pixels with ``R >= tau``, the threshold being the largest for which they are at least E percent of
    all positive pixels. Pixels tied with the last one are points, too. Zeros and negative values never are, not even
    at 100 percent; at 0 percent the maximum alone is left. The L levels are integers, so that counts are exact; boxes
    are masks (N,H,W) or for each image its boxes (M,4).

    Returns:
        Hits and points of each image, two of (N,L), int64. A map that shows nothing has no points.

    Raises:
        ValueError: If maps and boxes do not belong together.

    Example:
        >>> maps, box = torch.tensor([[[9.0, 1.0, 5.0, 0.0, -1.0]]]), torch.tensor([[0, 0, 2, 1]])
        >>> energy_pointing(maps, [box], levels=(0, 50, 100))
        (tensor([[1, 1, 2]]), tensor([[1, 2, 3]]))
    """
    masks, nothing = as_masks(maps, boxes).flatten(1), degenerate(maps)
    relevance, order = at_least_float32(maps.detach()).flatten(1).sort(1, descending=True)
    # Rounded up in integers: 7 % of 100 pixels are 7, where 0.07 * 100 in floating point is more.
    wanted = ((relevance > 0).sum(1, keepdim=True) * torch.tensor(levels, device=maps.device) + 99) // 100
    thresholds = relevance.gather(1, wanted.clamp(min=1) - 1)
    points = torch.searchsorted(-relevance, -thresholds, right=True).masked_fill(nothing[:, None], 0)
    hits = masks.gather(1, order).cumsum(1).gather(1, points.clamp(min=1) - 1).masked_fill(nothing[:, None], 0)
    return hits, points


class EnergyPointingAccuracy(LocalizationMetric):
    """Pointing accuracy over energy levels, and its area; higher is better.

    From Iwana et al., "Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise Relevance
    Propagation", ICCV Workshops 2019, eq. 11-12 and figure 13: accuracy = hits / (hits + misses) among the
    points of `energy_pointing`. Two readings differ and both are given: ``pooled`` counts the points of all
    images together, so that images with many positive pixels count for more; ``mean`` is the mean of the images' own
    accuracies. Each is the area under its curve divided by the range of energies, in [0, 1] however many levels there
    are. ``random`` is what maps of noise reach at every energy: the mean share of the image that is evidence, and not
    "near zero" as the paper says.

    Only positive values are points. A map that shows nothing has accuracy 0 in the mean and no points in the pool; in
    an image without evidence all points miss.

    ``update(maps, boxes)`` takes maps (N,H,W) and bool masks (N,H,W), or for each image its boxes (M,4) as in
    `box_masks`. ``compute()`` gives a dict of three numbers, float64, NaN without images. Further options and
    attributes are those of `LocalizationMetric`.

    Args:
        levels: Energies in percent, at least two increasing integers in [0, 100].

    Attributes:
        pooled_curve: After ``compute()``, the pooled accuracy at each level, (L,), float64.
        mean_curve: After ``compute()``, the mean accuracy at each level, (L,), float64.

    Raises:
        ValueError: If the levels are not as described.

    Example:
        >>> metric = EnergyPointingAccuracy(levels=(0, 50, 100))
        >>> metric.update(torch.tensor([[[9.0, 1.0, 5.0, 0.0]]]), [torch.tensor([[0, 0, 2, 1]])])
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'energy_pointing_pooled': 0.6667, 'energy_pointing_mean': 0.6667, 'energy_pointing_random': 0.5}
        >>> metric.mean_curve
        tensor([1.0000, 0.5000, 0.6667], dtype=torch.float64)
    """

    numbers: ClassVar[Mapping[str, Number]] = {
        "energy_pointing_pooled": Number("Energy pointing, all points pooled", "", True),
        "energy_pointing_mean": Number("Energy pointing, mean of images", "", True),
        "energy_pointing_random": Number("Energy pointing, random level"),
    }

    hits: Tensor
    points: Tensor
    accuracies: Tensor

    def __init__(self, *, levels: Sequence[int] = LEVELS, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(*levels, keep_values=keep_values, **kwargs)
        increasing = all(low < high for low, high in pairwise(levels))
        whole = all(isinstance(level, int) and 0 <= level <= 100 for level in levels)
        if len(levels) < 2 or not increasing or not whole:
            raise ValueError(f"`levels` expected at least two increasing integers in [0, 100], got {levels!r}.")
        self.levels = tuple(levels)
        self.pooled_curve = self.mean_curve = torch.full((len(levels),), torch.nan, dtype=torch.float64)
        for name in ("hits", "points"):
            self.add_state(name, torch.zeros(len(levels), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("accuracies", torch.zeros(len(levels), dtype=torch.float64), dist_reduce_fx="sum")

    def measure(self, sample: Sample) -> None:
        """Update with the maps and the boxes that ``unpack`` gives."""
        self.update(sample.maps, sample.boxes)

    def update(self, maps: Tensor, boxes: Boxes) -> None:
        """Add one batch of maps (N,H,W) with masks (N,H,W) or the boxes (M,4) of each image."""
        masks = as_masks(maps, boxes)
        hits, points = energy_pointing(maps, masks, levels=self.levels)
        accuracies = hits.double() / points.clamp(min=1)
        self.hits, self.points = self.hits + hits.sum(0), self.points + points.sum(0)
        self.accuracies = self.accuracies + accuracies.sum(0)
        self._add_images(maps, masks, self._area(accuracies))

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # several numbers
        """Areas under the pooled and the mean curve, and the random level, float64."""
        mean = super().compute()
        self.mean_curve = self.accuracies / self.n_images
        pooled = self.hits.double() / self.points.clamp(min=1)
        self.pooled_curve = torch.where(self.n_images > 0, pooled, torch.nan)
        return {
            "energy_pointing_pooled": self._area(self.pooled_curve),
            "energy_pointing_mean": mean,
            "energy_pointing_random": self.share / self.n_images,
        }

    def _area(self, curves: Tensor) -> Tensor:
        levels = curves.new_tensor(self.levels)
        return torch.trapezoid(curves, levels) / (levels[-1] - levels[0])

    def draw(self, ax: Axes, label: str) -> None:
        """Accuracy over energy (Iwana et al. 2019 figure 13): mean solid, pooled dashed, the random level dotted."""
        self.compute()
        (line,) = ax.plot(self.levels, self.mean_curve.tolist(), label=label or "map")
        ax.plot(self.levels, self.pooled_curve.tolist(), "--", color=line.get_color())
        if _RANDOM not in ax.get_legend_handles_labels()[1]:  # several methods have one random level
            ax.axhline(self.random_level, linestyle=":", color="gray", label=_RANDOM)
        ax.set(xlabel="energy, % of the positive pixels", ylabel="pointing accuracy (dashed: pooled)")
        ax.set(xlim=(0, 100), ylim=(0, 1))
        ax.legend()
