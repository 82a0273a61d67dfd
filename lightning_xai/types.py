"""The words shared by every module: what a score and an attribution are, and the letters used for shapes.

Shapes in all docstrings: N images, C channels, H x W pixels, K classes, D feature channels, h x w feature positions.

The types are no strings: LightningCLI reads them when the program runs, to make arguments out of YAML.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_xai.trace import Trace

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The number per image that is explained: ``(logits (N,K), targets (N,)) -> (N,)``."""

TargetRule: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""A rule that names the class to explain: ``(logits (N,K), labels (N,) or None) -> targets (N,)``."""

Targets: TypeAlias = int | Sequence[int] | TargetRule | Tensor | None
"""What a user may say about the classes to explain; None means the predicted class."""


@dataclass(frozen=True)
class Tokens:
    """A layer of tokens whose place on the image is given; for those where it cannot be found from the model.

    Attributes:
        layer: Dotted name or module, with an output (N,T,D) or (N,h,w,D).
        grid: Rows and columns of patches, (h, w); patches are in reading order.
        prefix: Number of tokens before the first patch: class, distillation and register tokens.

    Raises:
        TypeError: If ``layer`` is neither a name nor a module.
        ValueError: If there is no such grid.

    Example:
        >>> Tokens("blocks.11.norm1", grid=(14, 14), prefix=1)
        Tokens(layer='blocks.11.norm1', grid=(14, 14), prefix=1)
    """

    layer: str | nn.Module
    grid: tuple[int, int]
    prefix: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layer, (str, nn.Module)):
            raise TypeError(f"`layer` expected a dotted name or a module, got {type(self.layer).__name__}.")
        if not isinstance(self.grid, tuple) or len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"`grid` expected a tuple of two positive integers (h, w), got {self.grid!r}.")
        if self.prefix < 0:
            raise ValueError(f"`prefix` expected a number of tokens, at least 0, got {self.prefix!r}.")


Layer: TypeAlias = str | nn.Module | Tokens | Sequence[str | nn.Module | Tokens] | None
"""Where a method looks: a dotted name, a module, tokens whose places are given, several of them, or None for the last
layer with a spatial output."""

ForwardContext: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a model is to be run, such as a precision plugin's autocast."""


class Interception(ABC):
    """What stands in for a model's operations, for methods that propagate by rules of their own.

    Subclasses are frozen dataclasses: equal ones do the same, and share one pass.
    """

    @abstractmethod
    def __call__(self, model: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        """The context in which a pass of the model runs.

        Its autograd graph is what seeds at the logits are propagated through; its outputs are the model's, unchanged.

        Args:
            model: The model.
            images: What it will be given, (N,C,H,W), with gradients required.
        """


class Attribution(ABC):
    """A method that turns a trace into one map per image.

    Subclasses are small frozen dataclasses. A method that explains a score has a field ``score``; one that looks
    at layers has a field ``layer`` (:data:`Layer`); one that differentiates with respect to the image sets
    ``needs_image_gradient``, so that the forward pass builds its graph from the image on; one that propagates by rules
    of its own names what stands in for the model's operations in ``interception``.
    """

    needs_image_gradient = False  # no annotation: LightningCLI evaluates it in modules that may not know ClassVar

    @property
    def interception(self) -> Interception | None:
        """What stands in for the model's operations; None where the method needs no such thing."""
        return None

    @abstractmethod
    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps.

        Args:
            trace: One forward pass of N images.
            targets: Class to explain for each image, (N,), int64.

        Returns:
            Maps (N,H,W) at image resolution, signed where the method is signed, not normalised.
        """
