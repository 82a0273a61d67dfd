"""What metrics share that are the average of one number for each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_xai.kinds import require_kinds
from lightning_xai.metrics.base import ExplanationMetric


class KeepsValues(ExplanationMetric):
    """A metric that keeps the values of each image, over all processes, where it is asked to.

    Args:
        keep_values: Whether to keep them, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        values: After ``compute()``, the values of all images, float64; None unless kept.
    """

    kept: list[Tensor]

    def __init__(self, *, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_kinds(KeepsValues.__init__, keep_values=keep_values)
        self.keep_values = keep_values
        self.values: Tensor | None = None
        if keep_values:
            self.add_state("kept", [], dist_reduce_fx="cat")

    @property
    def dtype(self) -> torch.dtype:
        """What torchmetrics fills in for the list of a rank without images: the dtype of the others."""
        return torch.float64

    def keep(self, values: Tensor) -> None:
        """Keep the values of one batch, if any are to be kept."""
        if self.keep_values:
            self.kept.append(values.flatten())  # flat, since a rank without images gives a flat empty tensor

    def all_kept(self, *shape: int) -> Tensor | None:
        """The values of all images in a shape; None unless kept."""
        if not self.keep_values:
            return None
        found = dim_zero_cat(self.kept) if len(self.kept) else torch.zeros(0, dtype=torch.float64, device=self.device)
        return found.view(-1, *shape)


class ImageAverage(KeepsValues):
    """The average over images, in float64, of one number for each: a subclass hands them to `add` in ``update``.

    Images whose number is NaN have none: they are left out of the average, and counted.

    A MetricCollection lets metrics whose states have equal names and values after its first batch share one state from
    then on. The sum is therefore named by the class, so that different metrics that happen to agree stay apart; it
    follows that a subclass has no options that change the numbers.

    Args:
        keep_values: Whether to keep the value of each image, over all processes, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        values: After ``compute()``, the value of each image, (N,), float64; None unless kept.
        n_undefined: After ``compute()``, the number of images without a value, over all processes.
    """

    unit = "%"
    plot_lower_bound = 0.0
    plot_upper_bound: float | None = 100.0

    n_images: Tensor
    n_nan: Tensor

    def __init__(self, *, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.n_undefined = 0
        self._sum = f"sum_of_{type(self).__name__}"
        self.add_state(self._sum, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("n_nan", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Average over all images that have a value, float64; NaN if there are none."""
        total: Tensor = getattr(self, self._sum)
        self.values = self.all_kept()
        self.n_undefined = int(self.n_nan)
        return total / (self.n_images - self.n_nan)

    def add(self, values: Tensor) -> None:
        """Add the numbers (N,), float64, of one batch; NaN for an image that has none."""
        values = values.detach()
        # Not in place: a module's `.to(torch.bfloat16)` casts states too, and this brings them back to float64.
        setattr(self, self._sum, getattr(self, self._sum) + values.nansum())
        self.n_images = self.n_images + len(values)
        self.n_nan = self.n_nan + values.isnan().sum()
        self.keep(values)
