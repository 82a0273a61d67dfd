"""What metrics are computed from when a callback runs them: a batch of images that several methods explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lightning_xai.baselines import Baseline, black
from lightning_xai.metrics.boxes import Boxes
from lightning_xai.metrics.masking import asked_masked_scores, masked_images
from lightning_xai.scores import log_softmax
from lightning_xai.types import Rectifiers, Score

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Setting:
    """How images are shown to the classifier again.

    Attributes:
        mean: Mean by which images were standardised.
        std: Standard deviation by which they were.
        baseline: What stands where a map hides the image.
        log_probability: The confidence.

    Example:
        >>> Setting(mean=(0.5,), std=(0.25,)).log_probability.__name__
        'log_softmax'
    """

    mean: Sequence[float]
    std: Sequence[float]
    baseline: Baseline = black
    log_probability: Score = log_softmax


class Classifier(Protocol):
    """The classifier behind a batch and the methods that explained it, to be asked about other images."""

    @property
    def model(self) -> nn.Module:
        """The classifier itself, to be copied."""

    @property
    def names(self) -> Sequence[str]:
        """Names of all methods, also of those that have no map of the images of a batch."""

    @property
    def batch_size(self) -> int:
        """Most images that are to be in one forward."""

    @property
    def takes_images_alone(self) -> bool:
        """Whether equal images have equal logits, since nothing else goes with them."""

    def predict(self, images: Tensor, rows: Tensor) -> Tensor:
        """Images (M,C,H,W), made from these images of the pass (M,), to logits (M,K), without a graph."""

    def explain(
        self,
        names: Sequence[str],
        images: Tensor,
        targets: Tensor,
        rows: Tensor | None,
        *,
        model: nn.Module | None = None,
        noise_source: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The maps (M,H,W) of some of the methods.

        Args:
            names: Names of the methods.
            images: Images (M,C,H,W).
            targets: Their classes (M,).
            rows: Which images of the pass they were made from, (M,); None for none.
            model: A copy of the classifier that takes its place.
            noise_source: Images (M,C,H,W) whose content seeds noise in the place of these.
        """

    def image_gradients(self, rectifiers: Rectifiers | None = None) -> Tensor:
        """Gradients (N,C,H,W) of the centred logits at the images of the pass, guided at rectifiers."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images, their maps by every method, and whatever is computed from both, each thing once.

    Attributes:
        images: Images (N,C,H,W).
        logits: Their logits (N,K).
        targets: Class of each image, (N,), fixed from the unmasked image.
        maps: Maps (N,H,W) by method.
        classifier: Whom to ask about other images.
        setting: How images are masked, and what the confidence is.
        rows: Which images of the pass these are, (N,).
        labels: Labels (N,), or None.
        boxes: Where the objects are, as masks (N,H,W) or boxes (M,4) of each image, or None.
    """

    images: Tensor
    logits: Tensor
    targets: Tensor
    maps: Mapping[str, Tensor]
    classifier: Classifier
    setting: Setting
    rows: Tensor
    labels: Tensor | None = None
    boxes: Boxes | None = None
    _known: dict[Any, Any] = field(init=False, default_factory=dict, repr=False)

    def take(self, rows: Tensor, names: Sequence[str] | None = None) -> Batch:
        """Some of the images by their numbers (M,), of some of the methods; nothing is computed yet."""
        boxes = self.boxes
        if boxes is not None:
            boxes = boxes[rows] if isinstance(boxes, Tensor) else [boxes[row] for row in rows.tolist()]
        return replace(
            self,
            images=self.images[rows],
            logits=self.logits[rows],
            targets=self.targets[rows],
            maps={name: self.maps[name][rows] for name in names or self.maps},
            rows=self.rows[rows],
            labels=None if self.labels is None else self.labels[rows],
            boxes=boxes,
        )

    def once(self, function: Callable[Concatenate[Batch, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a function makes of this batch and hashable arguments: computed once, whichever metric asks."""
        key = (function, args, *kwargs.items())
        if key not in self._known:
            self._known[key] = function(self, *args, **kwargs)
        return self._known[key]

    def ask(self, images: Tensor, of: Tensor) -> Tensor:
        """The classifier, images (M,C,H,W) that were made from these of the batch, (M,), to logits (M,K)."""
        return self.classifier.predict(images, self.rows[of])

    def behind(self, baseline: Baseline) -> Tensor:
        """What stands behind the images where they are masked, standardised as they are."""
        return baseline(self.images, self.setting.mean, self.setting.std)

    def probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The confidence as a probability: a score for curves."""
        return self.setting.log_probability(logits, targets).exp()

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """What a metric is told of each method."""
        return {name: Sample(self, name) for name in self.maps}

    @cached_property
    def scores(self) -> Tensor:
        """Log-probabilities (N,) of the classes on the images, float64."""
        return self.setting.log_probability(self.logits.double(), self.targets)

    @cached_property
    def stacked_maps(self) -> Tensor:
        """The maps of all methods, (M,N,H,W)."""
        return torch.stack(list(self.maps.values()))

    @cached_property
    def masked_scores(self) -> dict[str, Tensor]:
        """Log-probabilities (N,) of the classes on the masked images by method, float64: a forward for each."""
        found = asked_masked_scores(
            self.ask,
            self.images,
            self.stacked_maps,
            self.targets,
            baseline=self.once(Batch.behind, self.setting.baseline),
            score=self.setting.log_probability,
            batch_size=self.classifier.batch_size,
        )
        return dict(zip(self.maps, found, strict=True))


@dataclass(frozen=True, eq=False)
class Sample:
    """What a metric is given: images, the maps of one method, and whom to ask about more.

    Whatever costs forward passes is computed when it is first asked for, and once for all metrics: ``maps`` (N,H,W),
    ``images`` (N,C,H,W), ``targets`` (N,), ``logits`` (N,K), ``scores`` (N,), the log-probabilities of the targets,
    ``masked_scores`` (N,) of what the map leaves of the image, ``gradients``, and the properties below.

    Attributes:
        batch: What all methods share: ``batch.once(function, ...)`` computes something of one's own for all of them.
        name: The method's name, as the user chose it.

    Example:
        >>> images, maps, targets = torch.ones(1, 3, 1, 2), torch.tensor([[[0.0, 1.0]]]), torch.tensor([0])
        >>> class Mean:  # a classifier, in the place of the callback's own
        ...     batch_size = 1
        ...     def predict(self, images, rows):
        ...         return images.mean((2, 3))
        >>> batch = Batch(images, images.mean((2, 3)), targets, {"cam": maps}, Mean(), Setting((0.5,) * 3, (0.5,) * 3),
        ...     rows=torch.tensor([0]))
        >>> batch.samples["cam"].masked_scores.exp()  # half of each channel is black, -1: their mean is 0
        tensor([0.3333], dtype=torch.float64)
    """

    batch: Batch
    name: str

    @property
    def images(self) -> Tensor:
        """Images (N,C,H,W), standardised."""
        return self.batch.images

    @property
    def maps(self) -> Tensor:
        """Maps (N,H,W) of the method."""
        return self.batch.maps[self.name]

    @property
    def targets(self) -> Tensor:
        """Class of each image, (N,), fixed from the unmasked image."""
        return self.batch.targets

    @property
    def logits(self) -> Tensor:
        """Logits (N,K) of the images."""
        return self.batch.logits

    @property
    def labels(self) -> Tensor:
        """Labels (N,).

        Raises:
            ValueError: If ``unpack`` gives none.
        """
        if self.batch.labels is None:
            raise ValueError(_MISSING.format("labels"))
        return self.batch.labels

    @property
    def boxes(self) -> Boxes:
        """Where the objects are, as masks (N,H,W) or boxes (M,4) of each image.

        Raises:
            ValueError: If ``unpack`` gives none.
        """
        if self.batch.boxes is None:
            raise ValueError(_MISSING.format("boxes"))
        return self.batch.boxes

    @property
    def methods(self) -> Mapping[str, Sample]:
        """The samples of all methods, by name."""
        return self.batch.samples

    @property
    def scores(self) -> Tensor:
        """Log-probabilities (N,) of the classes on the images, float64."""
        return self.batch.scores

    @property
    def masked_scores(self) -> Tensor:
        """Log-probabilities (N,) of the classes on the masked images, float64: one forward."""
        return self.batch.masked_scores[self.name]

    @property
    def masked_images(self) -> Tensor:
        """What the maps show of the images, (N,C,H,W)."""
        return masked_images(self.images, self.maps, self.behind())

    @cached_property
    def masked_maps(self) -> Tensor:
        """Maps (N,H,W) of the masked images: one more explanation."""
        # Noise is seeded by an image's content; that of a masked image holds the rounding of its map, which depends on
        # the batch. Other noise than the image's own, or a map of noise alone would find itself.
        return self.explain(self.masked_images, noise_source=self.images + 1)

    @property
    def gradients(self) -> Tensor:
        """Gradients (N,C,H,W) of the centred logits of the classes at the images."""
        return self.batch.classifier.image_gradients()[self.batch.rows]

    def guided_gradients(self, rectifiers: Rectifiers) -> Tensor:
        """The same by guided backpropagation."""
        return self.batch.classifier.image_gradients(rectifiers)[self.batch.rows]

    def behind(self, baseline: Baseline | None = None) -> Tensor:
        """What stands behind the images where they are masked; None for the callback's own baseline."""
        return self.batch.once(Batch.behind, baseline or self.batch.setting.baseline)

    def predict(self, images: Tensor) -> Tensor:
        """The classifier, images (N,C,H,W) that were made from those of the sample to logits (N,K), without a graph."""
        return self.batch.classifier.predict(images, self.batch.rows)

    def explain(self, images: Tensor, targets: Tensor | None = None, *, noise_source: Tensor | None = None) -> Tensor:
        """The method, images (N,C,H,W) to maps (N,H,W), of the sample's classes unless others are given.

        Noise is seeded by the content of ``noise_source``, of the images themselves unless given.
        """
        classes = self.targets if targets is None else targets
        data = images, classes, self.batch.rows if len(images) == len(self.images) else None
        return self.batch.classifier.explain([self.name], *data, noise_source=noise_source)[self.name]

    def log_probability(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The confidence (N,) of classes."""
        return self.batch.setting.log_probability(logits, targets)


_MISSING = (
    "A metric expected {0}, got none. Let `unpack` take them from the batch: "
    "`unpack=lambda batch: (batch[0], batch[1], batch[2])`, say."
)
