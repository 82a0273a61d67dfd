"""How many maps show nothing."""

from __future__ import annotations

from torch import Tensor

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.masking import degenerate
from lightning_xai.metrics.sample import Sample


class ConstantMaps(ImageAverage):
    """Share of the images, in percent, whose map shows nothing (`degenerate`); lower is better.

    Example:
        >>> import torch
        >>> metric = ConstantMaps()
        >>> metric.update(torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    title = "Maps that show nothing"
    higher_is_better = False

    def measure(self, sample: Sample) -> None:
        """Count the maps of the batch."""
        self.update(sample.maps)

    def update(self, maps: Tensor) -> None:
        """Count maps (N,H,W)."""
        self.add(100.0 * degenerate(maps).double())
