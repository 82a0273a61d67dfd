"""Maximal patch masking: what becomes of a class when the few pixels around a map's maximum are taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from lightning_xai.baselines import mean_color
from lightning_xai.metrics.averages import KeepsValues
from lightning_xai.metrics.base import Number
from lightning_xai.metrics.confidence import log_probabilities
from lightning_xai.metrics.forwards import check_maps, float64_logits
from lightning_xai.metrics.masking import degenerate
from lightning_xai.metrics.sample import Sample
from lightning_xai.scores import log_softmax
from lightning_xai.types import Score

SIZES = (1, 3, 5, 7, 9)
"""Sides of the patches in pixels, as in the paper."""


def patch_masks(maps: Tensor, size: int) -> Tensor:
    """The square patch, of odd size, around each map's maximum, cut off at the border of the image: masks (N,H,W).

    Of tied maxima the first one counts, row by row from the upper left corner. A map that shows nothing
    (`degenerate`) has no patch.

    Example:
        >>> patch_masks(torch.tensor([[[0.0, 0.0, 1.0, 9.0]]]), 3).int()
        tensor([[[0, 0, 1, 1]]], dtype=torch.int32)
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"`size` expected an odd number of pixels, so that a patch has a centre, got {size}.")
    height, width = maps.shape[1:]
    peaks = maps.flatten(1).argmax(1)[:, None]
    rows = (torch.arange(height, device=maps.device) - peaks // width).abs() <= size // 2
    columns = (torch.arange(width, device=maps.device) - peaks % width).abs() <= size // 2
    return rows[:, :, None] & columns[:, None] & ~degenerate(maps)[:, None, None]


def patch_masked_scores(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor,
    sizes: Sequence[int] = SIZES,
    score: Score = log_softmax,
) -> Tensor:
    """Log-probability of each image's class without the patch around its map's maximum, for several sizes.

    The scores of the unmasked images, with which the metric compares these, are ``score(logits.double(), targets)``.
    Cost: one forward of N images for each size.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        maps: Maps (N,H,W); see `patch_masks` for ties and for maps that show nothing. Noise, such as
            `Random`, masks at random: the paper's control.
        targets: Class of each image, (N,), fixed from the unmasked image; the paper takes the label and the class
            that is `second_best`, each with the maps of that class.
        baseline: What the patch is replaced with, as a `Baseline` returns it;
            `mean_color` in the paper.
        sizes: Sides of the P patches in pixels, odd.
        score: The log-probability; ``log_sigmoid`` for one-logit and multi-label heads.

    Returns:
        Log-probabilities (N,P), float64, without a graph.

    Raises:
        ValueError: If maps, targets or logits do not belong to the images, or a size is even.

    Example:
        >>> images = torch.tensor([[[[2.0, 1.0]]]])
        >>> classifier = lambda images: images.sum((1, 3)) * torch.tensor([1.0, 0.0])
        >>> maps, targets, black = images[:, 0], torch.tensor([0]), torch.tensor(0.0)
        >>> patch_masked_scores(classifier, images, maps, targets, baseline=black, sizes=(1, 3)).exp()
        tensor([[0.7311, 0.5000]], dtype=torch.float64)
    """
    check_maps(images, maps, targets)
    baseline = baseline.to(images)
    masked = (torch.where(patch_masks(maps, size)[:, None], baseline, images) for size in sizes)
    return torch.stack([score(float64_logits(predict, one), targets) for one in masked], dim=1)


class MaximalPatchMasking(KeepsValues):
    """Probability of a class after maximal patch masking, and its change, by size of the patch; lower is better.

    From Iwana et al., "Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise Relevance
    Propagation", ICCV Workshops 2019, sections 5.3.1-2 and figure 11, after Gu et al., "Understanding
    Individual Decisions of CNNs via Contrastive Backpropagation", ACCV 2018. For each size p there are two numbers:
    ``patch_probability_p``, the mean probability in [0, 1] when the p x p pixels around the maximum are masked, and
    ``patch_change_p``, its mean difference to the unmasked image, in [-1, 1], negative where probability is lost.
    Single pixels can change a decision without being what it rests on: compare them with a random map's.

    Of a map that shows nothing no pixel is masked: the image stays in the mean with a change of 0. Count such maps
    with `degenerate`; this metric does not see them.

    ``update(scores, patch_scores)`` takes log-probabilities (N,) of the images and (N,P) as
    `patch_masked_scores` returns them. ``compute()`` gives a dict of 2 P numbers, float64, NaN without images.

    Args:
        sizes: Sides of the P patches in pixels, in the order of the columns of ``patch_scores``.
        keep_values: Whether to keep the changes of each image, over all processes, for ``values``.

    Attributes:
        values: After ``compute()``, the changes of each image, (N,P), float64; None unless kept.

    Example:
        >>> metric = MaximalPatchMasking(sizes=(1, 3))
        >>> metric.update(torch.tensor([0.8, 0.6]).log(), torch.tensor([[0.6, 0.4], [0.6, 0.2]]).log())
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'patch_probability_1': 0.6, 'patch_probability_3': 0.3, 'patch_change_1': -0.1, 'patch_change_3': -0.4}
    """

    higher_is_better = False
    numbers: ClassVar[Mapping[str, Number]] = {
        "patch_probability": Number("Probability without the patch", "", False),
        "patch_change": Number("Change of the probability without the patch", "", False),
    }

    probabilities: Tensor
    changes: Tensor

    def __init__(self, *, sizes: Sequence[int] = SIZES, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.sizes = tuple(sizes)
        for name in ("probabilities", "changes"):
            self.add_state(name, torch.zeros(len(self.sizes), dtype=torch.float64), dist_reduce_fx="sum")
        # Named by the options: a MetricCollection would let two of these metrics share states that have equal names and
        # happen to be equal after the first batch.
        self._count = f"n_images of {self.sizes}"
        self.add_state(self._count, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, patch_scores: Tensor) -> None:
        """Add one batch of log-probabilities, (N,) of the images and (N,P) without their patches."""
        if patch_scores.shape != (len(scores), len(self.sizes)):
            raise ValueError(
                f"`patch_scores` expected one column for each of the sizes {self.sizes}, "
                f"({len(scores)}, {len(self.sizes)}), got {tuple(patch_scores.shape)}."
            )
        before, after = log_probabilities(
            scores.detach().repeat_interleave(len(self.sizes)), patch_scores.detach().flatten(), "patch_scores"
        )
        changes = (after.exp() - before.exp()).view_as(patch_scores)
        # Not in place: a module's `.to(torch.bfloat16)` casts states too, and this brings them back to float64.
        self.probabilities = self.probabilities + after.exp().view_as(patch_scores).sum(0)
        self.changes = self.changes + changes.sum(0)
        setattr(self, self._count, getattr(self, self._count) + len(scores))
        self.keep(changes)

    def measure(self, sample: Sample) -> None:
        """Update; the patch takes the mean colour."""
        patch_scores = patch_masked_scores(
            sample.predict,
            sample.images,
            sample.maps,
            sample.targets,
            baseline=sample.behind(mean_color),
            sizes=self.sizes,
            score=sample.log_probability,
        )
        self.update(sample.scores, patch_scores)

    def compute(self) -> dict[str, Tensor]:
        """Mean probability after masking and mean change for each size, float64."""
        self.values = self.all_kept(len(self.sizes))
        sums = {"probability": self.probabilities, "change": self.changes}
        n_images = getattr(self, self._count)
        return {
            f"patch_{kind}_{size}": total / n_images
            for kind, totals in sums.items()
            for size, total in zip(self.sizes, totals, strict=True)
        }

    def draw(self, ax: Axes, label: str) -> None:
        """The change over the size of the patch, as in figure 11 of Iwana et al. 2019."""
        values = self.compute()
        ax.plot(self.sizes, [values[f"patch_change_{size}"].item() for size in self.sizes], marker="o", label=label)
        ax.set(xlabel="side of the patch, pixels", ylabel="change of the probability", xticks=self.sizes)
        if label:
            ax.legend()
