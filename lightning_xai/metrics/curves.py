"""Perturbation curves: the probability of a class while pixels leave or enter the image in the order of its map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from lightning_xai.baselines import blurred
from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.masking import degenerate
from lightning_xai.metrics.sample import Sample, taken_by
from lightning_xai.scores import post_softmax
from lightning_xai.types import Score


class Curve(NamedTuple):
    """One curve for each image, ``Deletion().update(*curve)``.

    Attributes:
        fractions: Share of the pixels that were perturbed, (S+1,), float64, from 0 to 1.
        probabilities: Score of each image's class at these shares, (N,S+1), float64.

    Example:
        >>> Curve(torch.tensor([0.0, 1.0]), torch.tensor([[0.9, 0.1]])).fractions
        tensor([0., 1.])
    """

    fractions: Tensor
    probabilities: Tensor


class PerturbationCurves(NamedTuple):
    """Both curves of each image, for ``MetricCollection([Deletion(), Insertion()]).update(**curves._asdict())``.

    Attributes:
        fractions: Share of the pixels that were perturbed, (S+1,), float64, from 0 to 1.
        deletion_curve: Score of each image's class, (N,S+1), float64, from the image to the baseline.
        insertion_curve: Score of each image's class, (N,S+1), float64, from the baseline to the image.

    Example:
        >>> curves = PerturbationCurves(torch.tensor([0.0, 1.0]), torch.ones(1, 2), torch.ones(1, 2))
        >>> list(curves._asdict())
        ['fractions', 'deletion_curve', 'insertion_curve']
    """

    fractions: Tensor
    deletion_curve: Tensor
    insertion_curve: Tensor


def featureless(maps: Tensor) -> Tensor:
    """Which maps put pixels into no order: constant (up to rounding, whatever the sign), or not finite.

    Metrics that use the signed order of pixels treat such maps as constant ones; this function is there to count them.
    For metrics that take the ReLU of a map there is `degenerate`.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Whether each map is featureless, (N,), bool.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> featureless(torch.tensor([[[0.0, 1.0]], [[-1.0, -2.0]], [[0.5, 0.5]], [[torch.nan, 1.0]]]))
        tensor([False, False,  True,  True])
    """
    return degenerate(maps) & degenerate(-maps)


def relevance_ranks(maps: Tensor) -> Tensor:
    """Place of each pixel when pixels are sorted by relevance, 0 for the most relevant one.

    The signed map is sorted: what speaks against the class comes last. Equal pixels are sorted as they are read, row
    by row from the upper left corner; so are all pixels of a map that is `featureless`.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Ranks (N,H,W) in [0, HW), int64.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> relevance_ranks(torch.tensor([[[0.0, -1.0], [5.0, 0.0]]]))
        tensor([[[1, 3],
                 [0, 2]]])
    """
    maps = maps.detach().masked_fill(featureless(maps)[:, None, None], 0.0)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(maps)


def deletion_curve(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    steps: int = 20,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> Curve:
    """Scores while the most relevant pixels are replaced by the baseline, from the image to the baseline alone.

    Petsiuk et al., "RISE", BMVC 2018 (https://arxiv.org/abs/1806.07421), there with 224 pixels a step and a black
    baseline. Step k of S replaces ``ceil(k HW / S)`` pixels in the order of `relevance_ranks`. Cost: ``steps +
    1`` forwards of N images; `perturbation_curves` gives insertion too and shares the ends.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where pixels are deleted, as a `Baseline` returns it;
            `black` in the paper.
        steps: Number of steps S, in [1, HW].
        score: What is drawn, a probability unless the metric's range is to be given up.
        batch_size: Most images in one forward; None for N. A larger one joins steps, a smaller one splits them.

    Returns:
        Fractions (S+1,) and scores (N,S+1).

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> curve = deletion_curve(classifier, images, images[:, 0], torch.tensor([0]), baseline=0 * images, steps=2)
        >>> curve.probabilities
        tensor([[0.9526, 0.7311, 0.5000]], dtype=torch.float64)
    """
    path = _path(predict, images, maps, targets, score, batch_size)
    counts = path.counts(steps)
    return Curve(path.fractions(counts), path.deletion(counts, baseline))


def insertion_curve(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    steps: int = 20,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> Curve:
    """Scores while the most relevant pixels enter the baseline, from the baseline alone to the image.

    Petsiuk et al., "RISE", BMVC 2018 (https://arxiv.org/abs/1806.07421). Steps, order and cost are those of
    `deletion_curve`.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where pixels are missing; `blurred` in the paper.
        steps: Number of steps S, in [1, HW].
        score: What is drawn, a probability unless the metric's range is to be given up.
        batch_size: Most images in one forward; None for N.

    Returns:
        Fractions (S+1,) and scores (N,S+1).

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> curve = insertion_curve(classifier, images, images[:, 0], torch.tensor([0]), baseline=0 * images, steps=2)
        >>> curve.probabilities
        tensor([[0.5000, 0.8808, 0.9526]], dtype=torch.float64)
    """
    path = _path(predict, images, maps, targets, score, batch_size)
    counts = path.counts(steps)
    return Curve(path.fractions(counts), path.insertion(counts, baseline))


def perturbation_curves(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    insertion_baseline: Tensor | None = None,
    steps: int = 20,
    score: Score = post_softmax,
    batch_size: int | None = None,
) -> PerturbationCurves:
    """Deletion and insertion, whose shared ends are computed once.

    Cost: ``2 (steps - 1) + 2`` forwards of N images, one more where insertion starts from another baseline.

    Args:
        predict: As for `deletion_curve`, and so are the arguments that are not listed.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,), fixed from the unmasked image.
        baseline: What stands where pixels are deleted or missing.
        insertion_baseline: What insertion starts from; None for the same. The paper deletes to black and inserts
            into the blurred image.
        steps: Number of steps S, in [1, HW].
        score: What is drawn, a probability unless the metric's range is to be given up.
        batch_size: Most images in one forward; None for N.

    Returns:
        Fractions (S+1,), deletion curves (N,S+1) and insertion curves (N,S+1).

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a number is out of range.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> maps, targets = images[:, 0], torch.tensor([0])
        >>> perturbation_curves(classifier, images, maps, targets, baseline=0 * images, steps=2).insertion_curve
        tensor([[0.5000, 0.8808, 0.9526]], dtype=torch.float64)
    """
    path = _path(predict, images, maps, targets, score, batch_size)
    counts = path.counts(steps)
    first, inner, last = counts[:1], counts[1:-1], counts[-1:]
    image, masked = path.deletion(first, baseline), path.deletion(last, baseline)
    start = masked if insertion_baseline is None else path.insertion(first, insertion_baseline)
    if insertion_baseline is None:
        insertion_baseline = baseline
    deletion = torch.cat([image, path.deletion(inner, baseline), masked], dim=1)
    insertion = torch.cat([start, path.insertion(inner, insertion_baseline), image], dim=1)
    return PerturbationCurves(path.fractions(counts), deletion, insertion)


def curve_area(fractions: Tensor, curves: Tensor) -> Tensor:
    """Area under each curve by the trapezoidal rule on the true fractions, so that it does not grow with the steps.

    Args:
        fractions: Where the curves are known, (S+1,), increasing from 0 to 1.
        curves: Curves (N,S+1).

    Returns:
        Areas (N,), float64, in [0, 1] for probabilities.

    Raises:
        ValueError: If shapes differ, or the fractions do not increase from 0 to 1.

    Example:
        >>> curve_area(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.5, 0.0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if fractions.ndim != 1 or curves.ndim != 2 or curves.shape[1] != len(fractions):
        raise ValueError(
            f"`fractions` and `curves` expected (S+1,) and (N,S+1), got {tuple(fractions.shape)} and "
            f"{tuple(curves.shape)}."
        )
    if fractions[0] != 0 or fractions[-1] != 1 or not (fractions.diff() > 0).all():
        raise ValueError(f"`fractions` expected to increase from 0 to 1, got {fractions.tolist()}.")
    return torch.trapezoid(curves.double(), fractions.double(), dim=1)


class _CurveMetric(ImageAverage):
    """The average of the areas, and beside it the mean curve."""

    plot_upper_bound = 1.0

    fraction_sums: Tensor
    curve_sums: Tensor

    def __init__(self, *, steps: int = 20, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.fractions = self.curve = torch.empty(0)
        self.steps = steps
        for name in ("fraction_sums", "curve_sums"):
            self.add_state(name, torch.zeros(steps + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Average area over all images whose scores are finite, float64; NaN if there are none."""
        n_known = self.n_images - self.n_nan
        self.fractions, self.curve = self.fraction_sums / n_known, self.curve_sums / n_known
        return super().compute()

    def measure(self, sample: Sample) -> dict[str, Tensor]:
        """Arguments of ``update``: deletion to the sample's baseline, insertion into the blurred image."""
        curves = sample.once(("curves", self.steps), lambda: _sampled(sample, self.steps))
        return {name: curves[name] for name in taken_by(self)}

    def plot(self, val: Any = None, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
        """Draw the mean curve with its area in the legend.

        Args:
            val: Areas to draw instead, as results of ``compute()`` or ``forward()``.
            ax: Where to draw; None for a new figure, of which pyplot knows nothing.

        Returns:
            The figure and its axes.
        """
        if val is not None:
            return super().plot(val, ax)
        label = f"{type(self).__name__}, area {self.compute():.3f}"
        ax = Figure().subplots() if ax is None else ax
        ax.plot(self.fractions.tolist(), self.curve.tolist(), marker=".", label=label)
        ax.set(xlim=(0, 1), xlabel="share of the pixels, most relevant first", ylabel="mean score")
        ax.legend()
        return ax.figure, ax

    def _add_curves(self, fractions: Tensor, curves: Tensor) -> None:
        fractions, curves = fractions.detach().double(), curves.detach().double()
        areas = curve_area(fractions, curves)
        if len(fractions) != self.steps + 1:
            raise ValueError(
                f"`fractions` expected {self.steps + 1} points for {self.steps} steps, got {len(fractions)}. "
                f"Create `{type(self).__name__}(steps={len(fractions) - 1})`."
            )
        known = curves.isfinite().all(1)
        self.fraction_sums = self.fraction_sums + known.sum() * fractions
        self.curve_sums = self.curve_sums + curves[known].sum(0)
        self._add(areas.where(known, torch.nan))


def _sampled(sample: Sample, steps: int) -> dict[str, Tensor]:
    """The curves that a sample's metrics want; where they want both, the ends are shared."""
    data = sample.predict, sample.images, sample.maps, sample.targets
    options: dict[str, Any] = {"steps": steps, "score": sample.probability}
    if {"deletion_curve", "insertion_curve"} <= sample.wanted:
        blur = sample.behind(blurred)
        return perturbation_curves(*data, baseline=sample.behind(), insertion_baseline=blur, **options)._asdict()
    if "deletion_curve" in sample.wanted:
        fractions, curve = deletion_curve(*data, baseline=sample.behind(), **options)
        return {"fractions": fractions, "deletion_curve": curve}
    fractions, curve = insertion_curve(*data, baseline=sample.behind(blurred), **options)
    return {"fractions": fractions, "insertion_curve": curve}


class Deletion(_CurveMetric):
    """Deletion: the area under the mean of `deletion_curve`; lower is better.

    From Petsiuk et al., "RISE", BMVC 2018: a faithful map removes the class with few pixels. The area is normalised
    (trapezoidal rule over the share of pixels), in [0, 1] for probabilities, and does not grow with the number of
    steps. The signed map is sorted; maps that are `featureless` delete row by row from the top and stay in the
    mean. Read it beside insertion and a random map: pixels scattered over the image remove any class quickly.

    ``update(fractions, deletion_curve)`` takes what the curve functions return. Images with a score that is not finite
    are left out and counted. Without images the result is NaN.

    Args:
        steps: Number of steps of the curves.
        keep_values: Whether to keep the area of each image, over all processes, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        fractions: After ``compute()``, the share of pixels at each point of the curve, (S+1,), float64; the mean
            share where images differ in size.
        curve: After ``compute()``, the mean curve, (S+1,), float64.
        values: After ``compute()``, the area of each image, (N,), float64; None unless kept.
        n_undefined: After ``compute()``, the number of images that were left out.

    Example:
        >>> metric = Deletion(steps=2)
        >>> metric.update(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.25, 0.0]]))
        >>> metric.compute()
        tensor(0.3750, dtype=torch.float64)
    """

    higher_is_better = False

    def update(self, fractions: Tensor, deletion_curve: Tensor) -> None:
        """Add curves (N,S+1) that are known at fractions (S+1,)."""
        self._add_curves(fractions, deletion_curve)


class Insertion(_CurveMetric):
    """Insertion: the area under the mean of `insertion_curve`; higher is better.

    From Petsiuk et al., "RISE", BMVC 2018: a faithful map brings the class back with few pixels. The area is
    normalised (trapezoidal rule over the share of pixels), in [0, 1] for probabilities, and does not grow with the
    number of steps. The signed map is sorted; maps that are `featureless` insert row by row from the top and
    stay in the mean.

    ``update(fractions, insertion_curve)`` takes what the curve functions return. Images with a score that is not finite
    are left out and counted. Without images the result is NaN.

    Args:
        steps: Number of steps of the curves.
        keep_values: Whether to keep the area of each image, over all processes, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        fractions: After ``compute()``, the share of pixels at each point of the curve, (S+1,), float64; the mean
            share where images differ in size.
        curve: After ``compute()``, the mean curve, (S+1,), float64.
        values: After ``compute()``, the area of each image, (N,), float64; None unless kept.
        n_undefined: After ``compute()``, the number of images that were left out.

    Example:
        >>> metric = Insertion(steps=2)
        >>> metric.update(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 0.75, 1.0]]))
        >>> metric.compute()
        tensor(0.6250, dtype=torch.float64)
    """

    higher_is_better = True

    def update(self, fractions: Tensor, insertion_curve: Tensor) -> None:
        """Add curves (N,S+1) that are known at fractions (S+1,)."""
        self._add_curves(fractions, insertion_curve)


def check_maps(images: Tensor, maps: Tensor, targets: Tensor) -> None:
    """Refuse maps and targets that do not belong to the images.

    Args:
        images: Images (N,C,H,W).
        maps: Maps (N,H,W).
        targets: Targets (N,).

    Raises:
        ValueError: If a shape differs.

    Example:
        >>> check_maps(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.tensor([0, 1]))
    """
    expected = (len(images), *images.shape[2:])
    if maps.shape != expected:
        raise ValueError(
            f"`maps` expected one map for each image at its resolution, {expected}, got {tuple(maps.shape)}. "
            "Upsample maps of a layer with `torch.nn.functional.interpolate`."
        )
    if targets.shape != (len(images),):
        raise ValueError(f"`targets` expected one class for each image, ({len(images)},), got {tuple(targets.shape)}.")


def float64_logits(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (N,K) in float64, without a graph.

    Args:
        predict: The classifier.
        images: Images (N,C,H,W).

    Returns:
        Logits (N,K), float64.

    Raises:
        ValueError: If what is predicted is of another shape.

    Example:
        >>> float64_logits(lambda images: images.flatten(1), torch.ones(1, 1, 1, 2))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    logits = predict(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"`predict` expected to return logits ({len(images)}, K), got {tuple(logits.shape)}.")
    return logits.detach().double()


@dataclass(frozen=True, eq=False)
class _Path:
    """Images on their way to a baseline and back, pixel by pixel in the order of their maps."""

    predict: Callable[[Tensor], Tensor]
    images: Tensor
    ranks: Tensor
    targets: Tensor
    score: Score
    batch_size: int

    def counts(self, steps: int) -> Tensor:
        pixels = self.ranks[0].numel()
        if not 1 <= steps <= pixels:
            raise ValueError(f"`steps` expected a number in [1, {pixels}], the number of pixels, got {steps}.")
        # Rounded up in whole numbers.
        return -(-torch.arange(steps + 1, device=self.images.device) * pixels // steps)

    def fractions(self, counts: Tensor) -> Tensor:
        return counts.double() / counts[-1]

    def deletion(self, counts: Tensor, baseline: Tensor) -> Tensor:
        return self._scores(counts, self._full(baseline), self.images)

    def insertion(self, counts: Tensor, baseline: Tensor) -> Tensor:
        return self._scores(counts, self.images, self._full(baseline))

    def _full(self, baseline: Tensor) -> Tensor:
        return baseline.to(self.images).expand_as(self.images)

    def _scores(self, counts: Tensor, first: Tensor, others: Tensor) -> Tensor:
        n, scores = len(self.images), [counts.new_zeros(0, dtype=torch.float64)]
        steps = torch.arange(len(counts), device=counts.device).repeat_interleave(n)
        for start in range(0, len(steps), self.batch_size):
            step = steps[start : start + self.batch_size]
            i = torch.arange(start, start + len(step), device=counts.device) % n
            chosen = (self.ranks[i] < counts[step, None, None])[:, None]
            logits = float64_logits(self.predict, torch.where(chosen, first[i], others[i]))
            scores.append(self.score(logits, self.targets[i]))
        return torch.cat(scores).view(len(counts), n).T


def _path(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    score: Score,
    batch_size: int | None,
) -> _Path:
    check_maps(images, maps, targets)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` expected 1 or more, or None for all images, got {batch_size}.")
    return _Path(predict, images, relevance_ranks(maps), targets, score, batch_size or len(images))
