"""Sanity check by the class: maps that explain a decision must change when another class is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lightning_xai.metrics.base import Number
from lightning_xai.metrics.sample import Sample
from lightning_xai.metrics.similarity import SimilarityMetric, check_similarities, map_similarities
from lightning_xai.noise import generators, placed_like
from lightning_xai.scores import predicted, second_best


def class_sensitivity(explain: Callable[[Tensor], Tensor], targets: Tensor, other_targets: Tensor) -> Tensor:
    """Similarity of the maps that explain one class and another one of the same images.

    Args:
        explain: Targets (N,) to maps (N,H,W) of the same images.
        targets: Class of each image, (N,), such as the predicted one.
        other_targets: Another class of each image, (N,): `second_best`, the hardest to tell
            from the first, or `random_other_targets`.

    Returns:
        Similarities (N,3) as `map_similarities` orders them.

    Raises:
        ValueError: If the classes of an image are the same, or maps are not (N,H,W).

    Example:
        >>> rows = torch.arange(6.0).view(1, 6, 1)
        >>> explain = lambda targets: (1 - 2 * targets[:, None, None]) * rows.expand(1, 6, 6)
        >>> class_sensitivity(explain, torch.tensor([0]), torch.tensor([1]))
        tensor([[-1.,  1.,  1.]], dtype=torch.float64)
    """
    if targets.shape != other_targets.shape or (targets == other_targets).any():
        raise ValueError(
            f"`other_targets` expected another class for each image, got {other_targets.tolist()} beside "
            f"{targets.tolist()}."
        )
    return map_similarities(explain(targets), explain(other_targets))


def random_other_targets(images: Tensor, targets: Tensor, n_classes: int, *, seed: int = 0) -> Tensor:
    """A class (N,) drawn for each image from all but its own, by the image's content: batch and order do not matter.

    Example:
        >>> random_other_targets(torch.zeros(1, 1, 1, 1), torch.tensor([0]), 2)
        tensor([1])
    """
    if n_classes < 2:
        raise ValueError(f"`n_classes` expected 2 or more, got {n_classes}.")
    shifts = [torch.randint(1, n_classes, (), generator=generator) for generator in generators(images, seed)]
    return (targets + placed_like(torch.stack(shifts), targets)) % n_classes


class ClassSensitivity(SimilarityMetric):
    """Class sensitivity: average similarity of the maps for two classes of an image; lower is better.

    Maps that are alike whatever class they explain, as those of guided backpropagation are, say nothing about the
    decision. Range [-1, 1]; 1 fails entirely, and near 0 is as good as below: classes may share evidence.

    ``update(class_similarities)`` takes what `class_sensitivity` returns. ``compute()`` gives a dict of three
    numbers, float64, NaN without images. Images one of whose maps is `featureless` have no
    similarity, are left out and counted in ``n_undefined``. Options and attributes are those of `ImageAverage`.

    Example:
        >>> metric = ClassSensitivity()
        >>> metric.update(torch.tensor([[-0.5, 0.25, 0.75]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'class_rank_correlation': -0.5, 'class_absolute_rank_correlation': 0.25, 'class_ssim': 0.75}
    """

    prefix = "class"
    numbers: ClassVar[Mapping[str, Number]] = {
        "class_rank_correlation": Number("Class sensitivity: rank correlation", "", False),
        "class_absolute_rank_correlation": Number("Class sensitivity: rank correlation of magnitudes", "", False),
        "class_ssim": Number("Class sensitivity: SSIM", "", False),
    }

    def update(self, class_similarities: Tensor) -> None:
        """Add similarities (N,3) of one batch."""
        check_similarities("class_similarities", class_similarities, (3,))
        self.add_similarities(class_similarities.detach().double())

    def measure(self, sample: Sample) -> None:
        """Update; the other class is the second best, or the best where that one was explained."""
        others = second_best(sample.logits)
        others = torch.where(others == sample.targets, predicted(sample.logits), others)
        explain = partial(sample.explain, sample.images)
        self.update(class_sensitivity(explain, sample.targets, others))
