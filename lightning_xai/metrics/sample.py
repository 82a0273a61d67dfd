"""What metrics are computed from when a callback runs them: one batch of explained images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor
from torchmetrics import Metric

from lightning_xai.baselines import Baseline, black
from lightning_xai.metrics.boxes import Boxes
from lightning_xai.metrics.confidence import masked_scores
from lightning_xai.metrics.masking import masked_images
from lightning_xai.scores import log_softmax
from lightning_xai.types import Score

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Sample:
    """Images, the maps of one method, and the means to ask the classifier about them.

    A metric's ``update`` takes arguments by name. Those that are attributes here are handed over; a metric that needs
    more, such as a curve with a number of steps of its own, has a method ``measure(sample)`` that returns the arguments
    of its ``update``. Forward passes that several metrics need are run once (`once`).

    Attributes:
        images: Images (N,C,H,W).
        maps: Maps (N,H,W) of the method.
        targets: Class of each image, (N,), fixed from the unmasked image.
        logits: Logits (N,K) of the images.
        predict: The classifier, images (N,C,H,W) to logits (N,K), without a graph.
        explain: The method, images (N,C,H,W) and targets (N,) to maps (N,H,W).
        mean: Mean by which images were standardised.
        std: Standard deviation by which they were.
        labels: Labels (N,), or None.
        boxes: Where the objects are, as masks (N,H,W) or boxes (M,4) of each image, or None.
        baseline: What stands where a map hides the image.
        log_probability: The confidence.
        wanted: Names of everything that the metrics of this sample take.
        image_gradient: Whether by the guided rule -> gradients (N,C,H,W) of the centred logit at the images.
        methods: The samples of all methods, by name, for what compares them.
    """

    images: Tensor
    maps: Tensor
    targets: Tensor
    logits: Tensor
    predict: Callable[[Tensor], Tensor]
    explain: Callable[[Tensor, Tensor], Tensor]
    mean: Sequence[float]
    std: Sequence[float]
    labels: Tensor | None = None
    boxes: Boxes | None = None
    baseline: Baseline = black
    log_probability: Score = log_softmax
    wanted: frozenset[str] = frozenset()
    image_gradient: Callable[[bool], Tensor] | None = None
    methods: Mapping[str, Sample] = field(default_factory=dict)
    _behind: dict[int, tuple[Baseline, Tensor]] = field(default_factory=dict, repr=False)  # of all methods' samples
    _known: dict[Any, Any] = field(init=False, default_factory=dict, repr=False)

    def once(self, key: Any, compute: Callable[[], _T]) -> _T:
        """What was computed before under this key, else what is computed now.

        Args:
            key: Anything hashable that tells computations apart.
            compute: The computation.

        Returns:
            Its result.
        """
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def behind(self, baseline: Baseline | None = None) -> Tensor:
        """What stands behind the images where they are masked, standardised as they are; None for the sample's own."""
        baseline = baseline or self.baseline
        if id(baseline) not in self._behind:  # the baseline is kept so that its id stays its own
            self._behind[id(baseline)] = baseline, baseline(self.images, self.mean, self.std)
        return self._behind[id(baseline)][1]

    @property
    def scores(self) -> Tensor:
        """Log-probabilities (N,) of the classes on the images, float64."""
        return self.log_probability(self.logits.double(), self.targets)

    @property
    def masked_images(self) -> Tensor:
        """What the maps show of the images, (N,C,H,W)."""
        return masked_images(self.images, self.maps, self.behind())

    @property
    def masked_scores(self) -> Tensor:
        """Log-probabilities (N,) of the classes on the masked images, float64: one forward."""
        return self.once("masked scores", self._masked_scores)

    def _masked_scores(self) -> Tensor:
        score, baseline = self.log_probability, self.behind()
        return masked_scores(self.predict, self.images, self.maps, self.targets, baseline=baseline, score=score)

    @property
    def masked_maps(self) -> Tensor:
        """Maps (N,H,W) of the masked images: one more explanation."""
        return self.once("masked maps", lambda: self.explain(self.masked_images, self.targets))

    @property
    def gradients(self) -> Tensor | None:
        """Gradients (N,C,H,W) of the classes' scores at the images."""
        return None if self.image_gradient is None else self.image_gradient(False)

    @property
    def guided_gradients(self) -> Tensor | None:
        """The same by guided backpropagation."""
        return None if self.image_gradient is None else self.image_gradient(True)

    def probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The confidence as a probability: a score for curves."""
        return self.log_probability(logits, targets).exp()


def measured(metric: Metric, sample: Sample) -> Mapping[str, Any]:
    """The arguments of a metric's ``update`` for one sample.

    Args:
        metric: Any metric whose ``update`` takes attributes of `Sample` by name, or that has a method
            ``measure``.
        sample: The sample.

    Returns:
        Arguments by name; none where the sample holds nothing for this metric.

    Raises:
        TypeError: If ``update`` takes something else.
        ValueError: If it takes boxes or labels and there are none.

    Example:
        >>> import torch
        >>> from lightning_xai.metrics import Complexity
        >>> images, maps, targets = torch.ones(1, 3, 1, 2), torch.tensor([[[0.0, 1.0]]]), torch.tensor([0])
        >>> predict, explain = lambda images: images.sum((2, 3)), lambda images, targets: images[:, 0]
        >>> sample = Sample(images, maps, targets, predict(images), predict, explain, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> measured(Complexity(), sample)
        {'maps': tensor([[[0., 1.]]])}
    """
    own = getattr(metric, "measure", None)
    if own is not None:
        return own(sample)
    return {name: _value(metric, name, sample) for name in taken_by(metric)}


def taken_by(metric: Metric) -> list[str]:
    """The names of what a metric's ``update`` takes.

    Args:
        metric: The metric.

    Returns:
        The names.

    Example:
        >>> from lightning_xai.metrics import AverageDrop
        >>> taken_by(AverageDrop())
        ['scores', 'masked_scores']
    """
    return list(inspect.signature(metric.update).parameters)


def _value(metric: Metric, name: str, sample: Sample) -> Any:
    value = getattr(sample, name, None)
    if value is None and name in ("boxes", "labels"):
        raise ValueError(
            f"`{type(metric).__name__}` expected {name}, got none. Let `unpack` take them from the batch: "
            "`unpack=lambda batch: (images, labels, boxes)`."
        )
    if value is None or callable(value):
        raise TypeError(
            f"`{type(metric).__name__}` expected an `update` that takes what a Sample has (scores, masked_scores, "
            f"maps, masked_maps, boxes, ...), or a method `measure(sample)`; its `update` takes {name!r}."
        )
    return value
