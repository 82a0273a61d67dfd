"""Words shared by every module: scores, targets, layers, and the letters used for shapes.

Shapes in all docstrings: N images, C channels, H x W pixels, K classes, D feature channels, h x w feature positions.

The types are no strings: LightningCLI reads them when the program runs, to make arguments out of YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lightning_xai.kinds import require_kinds

Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The number per image that is explained: ``(logits (N,K), targets (N,)) -> (N,)``."""

TargetRule: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""A rule that names the class to explain: ``(logits (N,K), labels (N,) or None) -> targets (N,)``."""

Targets: TypeAlias = int | Sequence[int] | TargetRule | Tensor | None
"""What a user may say about the classes to explain; None means the predicted class."""

Rectifiers: TypeAlias = Literal["relu", "all"]
"""What counts as a rectifier: ``"relu"``, those of the papers, or ``"all"`` unbounded one-sided activations."""


@dataclass(frozen=True)
class Tokens:
    """A layer of tokens whose places on the image are given; for those where they can't be found from the model.

    Attributes:
        layer: Dotted name or module.
        grid: Rows and columns of patches, (h, w).
        prefix: Number of tokens before the first patch: class, distillation and register tokens.
        axes: Order of the axes of its output: images, tokens, channels; "TND" for tokens first, "NDT" for channels
            before the tokens. Tokens in rows and columns, (N,h,w,D) or (N,D,h,w), are one axis.
        order: Which token, counted after the prefix, is that of each patch in reading order; None where they are in
            reading order themselves. Tokens that are not named are no patches.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such grid, order of axes or order of tokens.

    Example:
        >>> Tokens("blocks.11.norm1", grid=(14, 14), prefix=1).axes
        'NTD'

        Tokens before images, two rows of three patches, column by column:

        >>> Tokens("encoder", grid=(2, 3), axes="TND", order=(0, 2, 4, 1, 3, 5)).prefix
        0
    """

    layer: str | nn.Module
    grid: tuple[int, int]
    prefix: int = 0
    axes: Literal["NTD", "TND", "NDT"] = "NTD"
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require_kinds(Tokens, layer=self.layer, prefix=self.prefix, axes=self.axes)
        if not isinstance(self.grid, tuple) or len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"`grid` expected a tuple of two positive integers (h, w), got {self.grid!r}.")
        if self.prefix < 0:
            raise ValueError(f"`prefix` expected a number of tokens, at least 0, got {self.prefix!r}.")
        count, order = self.grid[0] * self.grid[1], self.order
        if order is not None and (not isinstance(order, tuple) or len(set(order)) != count or min(order) < 0):
            raise ValueError(
                f"`order` expected a tuple of {count} different tokens, one for each patch, got {order!r}."
            )


OneLayer: TypeAlias = str | nn.Module | Tokens | None
"""One layer: a dotted name, a module, tokens whose places are given, or None for the last with a spatial output."""

Layer: TypeAlias = str | nn.Module | Tokens | Sequence[str | nn.Module | Tokens] | None
"""Where a method looks: a dotted name, a module, tokens whose places are given, several of them, or None for the last
layer with a spatial output."""

ForwardContext: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a model is to be run, such as a precision plugin's autocast."""

LogitsOf: TypeAlias = Callable[[Any], Any]
"""Finds the logits (N,K) in what a classifier gives; None where there are none."""
