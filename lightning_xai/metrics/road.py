"""ROAD, remove and debias: predictions after pixels were removed so that their absence does not tell where they were.

Pixels are imputed by a weighted mean of their neighbours. Where a constant stands instead, its outline shows the shape
of the map, and a classifier may read the class from it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from lightning_xai.kinds import require_kinds
from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.base import Number
from lightning_xai.metrics.forwards import check_maps, float64_logits
from lightning_xai.metrics.sample import Sample
from lightning_xai.metrics.sweep import relevance_ranks
from lightning_xai.noise import generators, placed_like
from lightning_xai.scores import post_softmax, predicted
from lightning_xai.types import Score

PERCENTAGES = (20, 40, 60, 80)
"""Shares of the pixels that are removed by default, in percent."""

_TOLERANCE = 1e-5
"""Relative residual; measured on textures, holes of up to 90 %: within 6e-4 of the solution, far below the noise."""


class RoadScores(NamedTuple):
    """Predictions after removal, for ``ROAD().update(**scores._asdict())``.

    Attributes:
        morf_correct: Whether the class is predicted after its most relevant pixels were removed, (N,P), bool.
        morf_probabilities: Its score then, (N,P), float64.
        lerf_correct: Whether it is predicted after the least relevant pixels were removed, (N,P), bool.
        lerf_probabilities: Its score then, (N,P), float64.
    """

    morf_correct: Tensor
    morf_probabilities: Tensor
    lerf_correct: Tensor
    lerf_probabilities: Tensor


def linear_imputation(images: Tensor, removed: Tensor) -> Tensor:
    """Replace pixels by the weighted mean of their neighbours, all of them at once.

    The system ``x_i = sum_j w_j x_j / sum_j w_j`` over the neighbours inside the image, direct ones with weight 1/6 and
    diagonal ones with 1/12, from Rong et al. 2022, section 5. It is symmetric and positive definite wherever a pixel
    is left, and solved by conjugate gradients in float64, for all images and channels at once; each stops by itself,
    at a relative residual of 1e-5, so that a batch does not matter. Cost at 224 pixels: 10 to 40 iterations where
    scattered pixels are missing, 100 to 500 for one hole of 10 to 90 % as a CAM makes it, which is half a second to a
    second of one CPU core for each image.

    Args:
        images: Images (N,C,H,W).
        removed: Pixels to be imputed, (N,H,W), bool.

    Returns:
        Images (N,C,H,W) of the images' dtype, unchanged where nothing was removed.

    Raises:
        ValueError: If the shapes do not belong together, or nothing is left of an image.

    Example:
        >>> linear_imputation(torch.tensor([[[[1.0, 9.0, 2.0]]]]), torch.tensor([[[False, True, False]]]))
        tensor([[[[1.0000, 1.5000, 2.0000]]]])
    """
    if removed.shape != (len(images), *images.shape[2:]) or removed.dtype != torch.bool:
        raise ValueError(
            f"`removed` expected bool of shape {(len(images), *images.shape[2:])}, "
            f"got {removed.dtype} of shape {tuple(removed.shape)}."
        )
    if removed.flatten(1).all(1).any():
        raise ValueError("`removed` expected to leave a pixel of each image, from which to impute the others.")
    hole = removed[:, None]
    known = images.detach().double().masked_fill(hole, 0.0)
    weights = _neighbours(torch.ones_like(known[:1, :1]))
    mean = known.sum((2, 3), keepdim=True) / (~hole).sum((2, 3), keepdim=True)
    start = torch.where(hole, mean, 0.0)
    solution = _conjugate_gradients(
        lambda values: (weights * values - _neighbours(values)).masked_fill(~hole, 0.0),
        _neighbours(known).masked_fill(~hole, 0.0),
        start,
    )
    return torch.where(hole, solution.to(images.dtype), images.detach())


def noisy_linear_imputation(images: Tensor, removed: Tensor, *, noise: float = 0.01, seed: int = 0) -> Tensor:
    """`linear_imputation` with Gaussian noise on the imputed pixels, whose smoothness would else give them away.

    The noise, of a standard deviation in the images' own space, depends on the seed and the image's content alone.

    Example:
        >>> image, removed = torch.tensor([[[[1.0, 9.0, 2.0]]]]), torch.tensor([[[False, True, False]]])
        >>> noisy_linear_imputation(image, removed)
        tensor([[[[1.0000, 1.4938, 2.0000]]]])
    """
    drawn = [torch.randn(images.shape[1:], generator=generator) for generator in generators(images, seed)]
    disturbed = linear_imputation(images, removed) + noise * placed_like(torch.stack(drawn), images)
    return torch.where(removed[:, None], disturbed, images.detach())


def road_scores(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    percentages: Sequence[float] = PERCENTAGES,
    noise: float = 0.01,
    seed: int = 0,
    score: Score = post_softmax,
) -> RoadScores:
    """Predictions after shares of the pixels were removed, most relevant first (MoRF) and least relevant first (LeRF).

    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022
    (https://arxiv.org/abs/2202.00449). Pixels are ordered by the signed map as in
    `relevance_ranks` and replaced by `noisy_linear_imputation`. Cost: two
    forwards of N images and two imputations for each percentage.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) at image resolution.
        targets: Class of each image, (N,): labels for the accuracy of the paper, classes predicted from the unmasked
            image to ask whether the prediction stays.
        percentages: Shares of the pixels to remove, P numbers in (0, 100), rounded to whole pixels.
        noise: Standard deviation of the noise, in the images' own space.
        seed: Any integer.
        score: The probability of the class.

    Returns:
        Predictions and probabilities, (N,P) each.

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a percentage removes no pixel or all.

    Example:
        >>> images = torch.tensor([[[[4.0, 1.0, 0.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> scores = road_scores(classifier, images, images[:, 0], torch.tensor([0]), percentages=[33], noise=0.0)
        >>> scores.morf_probabilities, scores.lerf_probabilities  # of sums 1 + 1 + 0 and 4 + 1 + 1
        (tensor([[0.8808]], dtype=torch.float64), tensor([[0.9975]], dtype=torch.float64))
    """
    check_maps(images, maps, targets)
    ranks, pixels = relevance_ranks(maps), maps[0].numel()
    counts = [round(percentage * pixels / 100) for percentage in percentages]
    if not all(0 < count < pixels for count in counts):
        raise ValueError(
            f"`percentages` expected shares in (0, 100) that remove some of the {pixels} pixels and leave some, "
            f"got {tuple(percentages)}."
        )
    results = []
    for removed in [*(ranks < count for count in counts), *(ranks >= pixels - count for count in counts)]:
        logits = float64_logits(predict, noisy_linear_imputation(images, removed, noise=noise, seed=seed))
        results.append((predicted(logits) == targets, score(logits, targets)))
    correct, probabilities = (torch.stack(column, 1).chunk(2, 1) for column in zip(*results, strict=True))
    return RoadScores(correct[0], probabilities[0], correct[1], probabilities[1])


class ROAD(ImageAverage):
    """ROAD: accuracy and mean probability after removal, averaged over the percentages.

    From Rong et al., ICML 2022, which report the accuracy after removing the most relevant pixels first (``morf``,
    lower is better) and the least relevant first (``lerf``, higher is better). ``gap`` is the mean over images and
    percentages of the LeRF minus the MoRF probability, in [-1, 1]: 0 for a map that knows nothing, higher is better.
    The other numbers are in [0, 1]. Signed maps are sorted as they are; a map that is
    `featureless` is removed row by row, from the top and from the bottom, and stays.

    ``update(morf_correct, morf_probabilities, lerf_correct, lerf_probabilities)`` takes what `road_scores`
    returns. ``compute()`` gives a dict of five numbers, float64, NaN without images. Images whose probabilities are not
    finite are left out and counted. Further options and attributes are those of `ImageAverage`, of gaps.

    Args:
        percentages: The shares that were removed.

    Attributes:
        curves: After ``compute()``, the mean of ``morf_accuracy``, ``morf_probability``, ``lerf_accuracy`` and
            ``lerf_probability`` at each percentage, (P,) each, float64.

    Example:
        >>> metric = ROAD(percentages=[50])
        >>> right, wrong = torch.tensor([[True]]), torch.tensor([[False]])
        >>> metric.update(wrong, torch.tensor([[0.25]]), right, torch.tensor([[0.75]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'road_morf_accuracy': 0.0, 'road_morf_probability': 0.25, 'road_lerf_accuracy': 1.0,
         'road_lerf_probability': 0.75, 'road_gap': 0.5}
    """

    title = "ROAD"
    unit = ""
    higher_is_better = None  # five numbers of both kinds
    plot_upper_bound = 1.0
    numbers: ClassVar[Mapping[str, Number]] = {
        "road_morf_accuracy": Number("ROAD accuracy, most relevant removed first", "", False),
        "road_morf_probability": Number("ROAD probability, most relevant removed first", "", False),
        "road_lerf_accuracy": Number("ROAD accuracy, least relevant removed first", "", True),
        "road_lerf_probability": Number("ROAD probability, least relevant removed first", "", True),
        "road_gap": Number("ROAD gap", "", True),
    }

    road_sums: Tensor

    def __init__(self, *, percentages: Sequence[float] = PERCENTAGES, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        require_kinds(ROAD.__init__, percentages=percentages)
        self.percentages = tuple(percentages)
        if not self.percentages or not all(0 < one < 100 for one in self.percentages):
            raise ValueError(f"`percentages` expected numbers in (0, 100), got {self.percentages}.")
        self.curves: dict[str, Tensor] = {}
        self.add_state("road_sums", torch.zeros(4, len(percentages), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, morf_correct: Tensor, morf_probabilities: Tensor, lerf_correct: Tensor, lerf_probabilities: Tensor
    ) -> None:
        """Add one batch of predictions and probabilities, (N,P) each."""
        columns = (morf_correct, morf_probabilities, lerf_correct, lerf_probabilities)
        expected = (len(morf_correct), len(self.percentages))
        if any(column.shape != expected for column in columns):
            raise ValueError(
                f"`ROAD.update` expected four tensors (N, {expected[1]}), one column for each percentage, "
                f"got {[tuple(column.shape) for column in columns]}. Give function and metric the same `percentages`."
            )
        values = torch.stack([column.detach().double() for column in columns], dim=1)
        known = values.isfinite().all(2).all(1)
        self.road_sums = self.road_sums + torch.where(known[:, None, None], values, 0.0).sum(0)
        gaps = (values[:, 3] - values[:, 1]).mean(1)
        self.add(gaps.where(known, torch.nan))

    def measure(self, sample: Sample) -> None:
        """Update; accuracy is that of the sample's targets, labels where the paper is followed."""
        data = sample.predict, sample.images, sample.maps, sample.targets
        self.update(*road_scores(*data, percentages=self.percentages, score=sample.batch.probability))

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # several numbers
        """Accuracy and probability for both orders and the gap, means over images and percentages, float64."""
        gap = super().compute()
        names = ("morf_accuracy", "morf_probability", "lerf_accuracy", "lerf_probability")
        self.curves = dict(zip(names, self.road_sums / (self.n_images - self.n_nan), strict=True))
        return {**{f"road_{name}": curve.mean() for name, curve in self.curves.items()}, "road_gap": gap}

    def draw(self, ax: Axes, label: str) -> None:
        """Accuracy over the share of removed pixels, most relevant first solid, least relevant first dashed."""
        self.compute()
        for name, style in (("morf", "-"), ("lerf", "--")):
            color = ax.lines[-1].get_color() if name == "lerf" else None
            curve = self.curves[f"{name}_accuracy"].tolist()
            ax.plot(self.percentages, curve, style, marker=".", color=color, label=f"{label} {name}".strip())
        ax.set(xlim=(0, 100), ylim=(-0.02, 1.02), xlabel="removed pixels, %", ylabel="accuracy")
        ax.legend()


def _neighbours(values: Tensor) -> Tensor:
    # Weights 1/6 and 1/12 around a pixel: (1, 2, 1) in both directions without the centre, over 12.
    padded = F.pad(values, (1, 1, 1, 1))
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :] - 4 * values) / 12


def _conjugate_gradients(system: Callable[[Tensor], Tensor], right: Tensor, start: Tensor) -> Tensor:
    """Solve ``system(x) = right`` for each image and channel; all are in one tensor (N,C,H,W)."""
    solution, residual = start, right - system(start)
    direction, size = residual, _dot(residual, residual)
    goal = _TOLERANCE**2 * torch.maximum(size, _dot(right, right))
    every = 16 if right.is_cuda else 1  # to look waits for a GPU; what has arrived stays where it is
    for n in itertools.count():
        active = size > goal
        if n % every == 0 and not active.any():
            break
        image = system(direction)
        step = torch.where(active, size / _dot(direction, image), 0.0)
        solution, residual = solution + step * direction, residual - step * image
        previous, size = size, _dot(residual, residual)
        direction = residual + torch.where(active, size / previous, 0.0) * direction
    return solution


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((2, 3), keepdim=True)
