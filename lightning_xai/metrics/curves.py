"""Insertion and deletion: areas under the curves of a class's probability while pixels enter or leave the image."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from lightning_xai.baselines import Baseline, blurred
from lightning_xai.kinds import require_count, require_number
from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.forwards import float64_logits
from lightning_xai.metrics.perturbation import curve_area
from lightning_xai.metrics.sample import Batch, Sample
from lightning_xai.metrics.sweep import STEPS, Curve, Sweep, sweep

TOLERANCE = 0.2
"""Probability by which the ends of a stretch differ, else it is taken to be straight.

Measured with `STEPS` against 100 steps, over Grad-CAM, input x gradient and the five controls: the area of an image is
off by 0.027 in the mean (ResNet-20, 150 images of CIFAR) and by 0.012 (SqueezeNet, 24 photographs), the mean area of no
map by more than 0.013, from 6 and 5 points between the ends of a curve. 8 equal steps, 7 points, are off by 0.032 and
0.017, the mean areas by up to 0.027.
"""


class CurveMetric(ImageAverage):
    """What `Deletion` and `Insertion` share: the average of the areas under the curves, and the mean curve.

    The area is normalised (trapezoidal rule over the share of pixels), in [0, 1] for probabilities, and does not grow
    with the number of steps. The signed map is sorted; maps that are `featureless` go row by row from the top and stay
    in the mean. Images with a score that is not finite are left out and counted. Without images the result is NaN.
    Further options and attributes are those of `ImageAverage`, of areas.

    Args:
        steps: Number of steps of the curves.
        tolerance: For callbacks: between points of a curve that differ by less no further one is computed.

    Attributes:
        fractions: After ``compute()``, the share of pixels at each point of the curve, (S+1,), float64; the mean
            share where images differ in size.
        curve: After ``compute()``, the mean curve, (S+1,), float64.
    """

    unit = ""
    plot_upper_bound = 1.0

    fraction_sums: Tensor
    curve_sums: Tensor

    def __init__(
        self, *, steps: int = STEPS, tolerance: float = TOLERANCE, keep_values: bool = False, **kwargs: Any
    ) -> None:
        require_count("steps", steps)
        require_number("tolerance", tolerance)
        super().__init__(keep_values=keep_values, **kwargs)
        self.fractions = self.curve = torch.empty(0)
        self.steps = steps
        self.tolerance = tolerance
        for name in ("fraction_sums", "curve_sums"):
            self.add_state(name, torch.zeros(steps + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Average area over all images whose scores are finite, float64; NaN if there are none."""
        n_known = self.n_images - self.n_nan
        self.fractions, self.curve = self.fraction_sums / n_known, self.curve_sums / n_known
        return super().compute()

    def draw(self, ax: Axes, label: str) -> None:
        """The mean curve with its area in the legend."""
        name = label or type(self).__name__
        area = self.compute()
        ax.plot(self.fractions.tolist(), self.curve.tolist(), marker=".", label=f"{name}, area {area:.3f}")
        ax.set(xlim=(0, 1), xlabel="share of the pixels, most relevant first", ylabel="mean score")
        ax.legend()

    def add_curves(self, fractions: Tensor, curves: Tensor) -> None:
        """Add the curves (N,S+1) of one batch, known at fractions (S+1,)."""
        fractions, curves = fractions.detach().double(), curves.detach().double()
        areas = curve_area(fractions, curves)
        if len(fractions) != self.steps + 1:
            raise ValueError(
                f"`fractions` expected {self.steps + 1} points for {self.steps} steps, got {len(fractions)}. "
                f"Create `{type(self).__name__}(steps={len(fractions) - 1})`."
            )
        known = curves.isfinite().all(1)
        self.fraction_sums = self.fraction_sums + known.sum() * fractions
        self.curve_sums = self.curve_sums + torch.where(known[:, None], curves, 0.0).sum(0)
        self.add(areas.where(known, torch.nan))


class Deletion(CurveMetric):
    """Deletion: the area under the mean of `deletion_curve`; lower is better.

    From Petsiuk et al., "RISE", BMVC 2018: a faithful map removes the class with few pixels. A callback deletes to its
    baseline. Compare it with insertion and a random map: pixels scattered over the image remove any class quickly.

    ``update(fractions, deletion_curve)`` takes what the curve functions return. Options and attributes are those of
    `CurveMetric`.

    Example:
        >>> metric = Deletion(steps=2)
        >>> metric.update(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.25, 0.0]]))
        >>> metric.compute()
        tensor(0.3750, dtype=torch.float64)
    """

    higher_is_better = False

    def measure(self, sample: Sample) -> None:
        """Update with the way from the image to the callback's baseline."""
        fractions, curves = sample.batch.once(_deletion, self.steps, self.tolerance)
        self.update(fractions, curves[list(sample.methods).index(sample.name)])

    def update(self, fractions: Tensor, deletion_curve: Tensor) -> None:
        """Add curves (N,S+1) that are known at fractions (S+1,)."""
        self.add_curves(fractions, deletion_curve)


class Insertion(CurveMetric):
    """Insertion: the area under the mean of `insertion_curve`; higher is better.

    From Petsiuk et al., "RISE", BMVC 2018: a faithful map brings the class back with few pixels. A callback inserts
    into the blurred image.

    ``update(fractions, insertion_curve)`` takes what the curve functions return. Options and attributes are those of
    `CurveMetric`.

    Example:
        >>> metric = Insertion(steps=2)
        >>> metric.update(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 0.75, 1.0]]))
        >>> metric.compute()
        tensor(0.6250, dtype=torch.float64)
    """

    higher_is_better = True

    def measure(self, sample: Sample) -> None:
        """Update with the way from the blurred image to the image."""
        fractions, curves = sample.batch.once(_insertion, self.steps, self.tolerance)
        self.update(fractions, curves[list(sample.methods).index(sample.name)])

    def update(self, fractions: Tensor, insertion_curve: Tensor) -> None:
        """Add curves (N,S+1) that are known at fractions (S+1,)."""
        self.add_curves(fractions, insertion_curve)


def _sweep(batch: Batch, steps: int, tolerance: float) -> Sweep:
    data = batch.ask, batch.images, batch.stacked_maps, batch.targets
    options: dict[str, Any] = {"steps": steps, "tolerance": tolerance, "score": batch.probability}
    return sweep(*data, batch_size=batch.classifier.batch_size, **options)


def _deletion(batch: Batch, steps: int, tolerance: float) -> Curve:
    """The curves (M,N,S+1) of all methods; the image's own score is known."""
    baseline = batch.setting.baseline
    ends = batch.scores.exp(), batch.once(_probabilities_behind, baseline)
    return batch.once(_sweep, steps, tolerance).curve(batch.images, _behind(batch, baseline), ends)


def _insertion(batch: Batch, steps: int, tolerance: float) -> Curve:
    ends = batch.once(_probabilities_behind, blurred), batch.scores.exp()
    return batch.once(_sweep, steps, tolerance).curve(_behind(batch, blurred), batch.images, ends)


def _behind(batch: Batch, baseline: Baseline) -> Tensor:
    return batch.once(Batch.behind, baseline).to(batch.images).expand_as(batch.images)


def _probabilities_behind(batch: Batch, baseline: Baseline) -> Tensor:
    """Probabilities (N,) of the classes where nothing of the images is left; what stands behind may be one for all."""
    images, behind = _behind(batch, baseline), batch.once(Batch.behind, baseline)
    one_for_all = behind.ndim < 4 or len(behind) == 1
    rows = torch.arange(1 if batch.classifier.takes_images_alone and one_for_all else len(images))
    logits = float64_logits(partial(batch.ask, of=rows), images[rows])
    return batch.probability(logits.expand(len(images), -1), batch.targets)
