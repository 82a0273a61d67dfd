"""What every attribution is, and what those share that explain a score, look at layers, or stand around another one."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.kinds import require_kinds
from lightning_xai.scores import at_least_float32, centered
from lightning_xai.trace import Interception, Trace
from lightning_xai.types import Layer, OneLayer, Score


class Attribution(ABC):
    """A method that turns a trace into one map per image.

    Subclasses are small frozen dataclasses. What a forward pass must keep for a method, and how the method changes
    when another score or signed maps are wanted, it says itself: the methods below have defaults for one that looks at
    no layer and explains no score. `ScoredAttribution`, `LayerMaps` and `AroundAttribution` answer for their fields.

    Attributes:
        needs_image_gradient: Whether the pass must build its graph from the image on.
        needs_reruns: Whether maps take further passes of the model.
        needs_pass: Whether they take that of the images themselves, which is left out where nobody does.
    """

    needs_image_gradient = False  # no annotation: LightningCLI evaluates it in modules that may not know ClassVar
    needs_reruns = False
    needs_pass = True

    def __post_init__(self) -> None:
        ours = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("lightning_xai."))
        said = ("baseline", "mean", "std")  # `require_standardization` looks at these, and knows what to do instead
        require_kinds(ours, **{name: value for name, value in vars(self).items() if name not in said})

    @property
    def interception(self) -> Interception | None:
        """What stands in for the model's operations; None where the method needs no such thing."""
        return None

    def layers(self) -> list[OneLayer]:
        """The layers that the method looks at, one by one; empty for one that looks at none."""
        return []

    def with_score(self, score: Score) -> "Attribution":
        """A copy that explains another score.

        Raises:
            ValueError: If the method explains no score.
        """
        raise ValueError(f"`score` expected methods that explain a score, got {type(self).__name__}, which has none.")

    def without_relu(self) -> "Attribution":
        """A copy whose maps keep their sign; the method itself where they have it or never had one."""
        return self

    @abstractmethod
    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps.

        Args:
            trace: One forward pass of N images.
            targets: Class to explain for each image, (N,), int64.

        Returns:
            Maps (N,H,W) at image resolution, signed where the method is signed, not normalised.
        """


@dataclass(frozen=True)
class ScoredAttribution(Attribution):
    """A method that explains a score.

    Attributes:
        score: The number that is explained.
    """

    score: Score = centered

    def with_score(self, score: Score) -> Attribution:
        """A copy that explains another score."""
        return dataclasses.replace(self, score=score)


@dataclass(frozen=True)
class AroundAttribution(Attribution):
    """A method that changes the maps of another one, which answers for what it needs.

    Attributes:
        attribution: The other one.

    Raises:
        TypeError: If ``attribution`` is anything else.
    """

    attribution: Attribution

    @property
    def needs_image_gradient(self) -> bool:  # type: ignore[override]  # a plain attribute where it is the class's
        """Whether the other one does."""
        return self.attribution.needs_image_gradient

    @property
    def needs_reruns(self) -> bool:  # type: ignore[override]
        """Whether the other one does."""
        return self.attribution.needs_reruns

    @property
    def interception(self) -> Interception | None:
        """What the other one puts in place of the model's operations."""
        return self.attribution.interception

    def layers(self) -> list[OneLayer]:
        """The layers that the other one looks at."""
        return self.attribution.layers()

    def with_score(self, score: Score) -> Attribution:
        """A copy around one that explains another score."""
        return dataclasses.replace(self, attribution=self.attribution.with_score(score))

    def without_relu(self) -> Attribution:
        """A copy around one whose maps keep their sign."""
        return dataclasses.replace(self, attribution=self.attribution.without_relu())


def upsample(maps: Tensor, images: Tensor) -> Tensor:
    """Bilinear resizing of maps (N,h,w) to the size of the images.

    Example:
        >>> upsample(torch.ones(1, 2, 2), torch.zeros(1, 3, 4, 4)).shape
        torch.Size([1, 4, 4])
    """
    return F.interpolate(maps[:, None], size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def unit_maximum(maps: Tensor) -> Tensor:
    """Each map (N,H,W) divided by its largest magnitude; an all-zero map stays so.

    Example:
        >>> unit_maximum(torch.tensor([[[2.0, -4.0]]]))
        tensor([[[ 0.5000, -1.0000]]])
    """
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


def fused(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several layers as one: each divided by its largest magnitude, then averaged, so that all count alike.

    The map of a single layer stays as it is.

    Example:
        >>> fused([torch.tensor([[[2.0, 4.0]]]), torch.tensor([[[0.1, 0.0]]])])
        tensor([[[0.7500, 0.5000]]])
    """
    return maps[0] if len(maps) == 1 else torch.stack([unit_maximum(one) for one in maps]).mean(0)


@dataclass(frozen=True)
class LayerMaps(Attribution):
    """A method whose maps are made at layers, brought to image size and fused; how they are made is the subclass's.

    Attributes:
        layer: Dotted name, module, tokens, several of them, or None for the last layer with a spatial output.
        relu: Whether to keep the positive part only.
    """

    layer: Layer = None
    relu: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers():
            raise ValueError(
                "`layer` expected at least one layer, got an empty sequence. "
                "Use None for the last layer with a spatial output."
            )

    def layers(self) -> list[OneLayer]:
        """The layers, one by one."""
        if isinstance(self.layer, Sequence) and not isinstance(self.layer, str):
            return list(self.layer)
        return [self.layer]

    def without_relu(self) -> Attribution:
        """A copy whose maps keep their sign."""
        return dataclasses.replace(self, relu=False)

    @abstractmethod
    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer, float32 or better, before the ReLU."""

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), non-negative unless ``relu`` is off."""
        maps = [one.relu() if self.relu else one for one in self.layer_maps(trace, targets)]
        return fused([upsample(one, trace.images) for one in maps])


@dataclass(frozen=True)
class GradientCAM(ScoredAttribution, LayerMaps):
    """A map of a layer from its activations and the gradient of the score; how is the subclass's."""

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w) from activations and gradients (N,D,h,w)."""

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        return [self._map(trace, targets, layer) for layer in self.layers()]

    def _map(self, trace: Trace, targets: Tensor, layer: OneLayer) -> Tensor:
        activations = at_least_float32(trace.activation(layer))
        return self.combine(activations, at_least_float32(trace.gradient(self.score, targets, of=layer)))
