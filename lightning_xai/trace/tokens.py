"""Tokens and channels-last outputs as feature maps, and which outputs are feature maps already."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_xai.types import Tokens


def as_tokens(output: Tensor, axes: str) -> Tensor:
    """An output of three or four dimensions, with its axes as in `Tokens`, as (N,T,D)."""
    if axes == "NTD":
        return output.flatten(1, -2)
    return output.flatten(2).transpose(1, 2) if axes == "NDT" else output.flatten(0, -3).transpose(0, 1)


def positions(shape: torch.Size, axes: str) -> torch.Size:
    """How many tokens an output has, or how many rows and columns of them."""
    return {"NTD": shape[1:-1], "NDT": shape[2:], "TND": shape[:-2]}[axes]


def arranged(output: Tensor, tokens: Tokens, n: int) -> Tensor:
    """An output of a layer whose places are known, or the gradient with respect to it, as (N,D,h,w).

    Raises:
        ValueError: If it is none of n images, or has other positions.

    Example:
        >>> arranged(torch.arange(5.0).view(1, 5, 1), Tokens("norm", grid=(2, 2), prefix=1), 1)
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """
    (height, width), values = tokens.grid, as_tokens(output, tokens.axes)
    size = positions(output.shape, tokens.axes)
    count, order = size.numel() - tokens.prefix, tokens.order
    fits = count == height * width and (len(size) == 1 or size == tokens.grid) if order is None else count > max(order)
    if len(values) != n or not fits:
        raise ValueError(
            f"`{tokens}` expected an output of {n} images with {tokens.prefix} + {height} * {width} tokens, or with as "
            f"many rows and columns, and the axes {tokens.axes}, got {tuple(output.shape)}."
        )
    values = values[:, tokens.prefix :]
    values = values if order is None else values[:, list(order)]
    return values.unflatten(1, tokens.grid).movedim(3, 1)


class Layouts:
    """What the outputs of a pass tell of their axes, by the kinds of the modules that gave them.

    There is no list of architectures. Convolutions and batch normalisations of maps give (N,D,h,w); what a linear layer
    or a normalisation over the last dimension gives has its channels last.

    Args:
        n: Number of images of the pass.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._first: set[torch.Size] = set()
        self._last: set[torch.Size] = set()
        self._has_tokens = False

    def note(self, module: nn.Module, shape: torch.Size) -> None:
        """Take note of what a module gave."""
        if len(shape) == 3:  # (N,1,D) may be a weight for each channel, as some CNNs compute it
            self._has_tokens |= shape[0] != self._n or 1 not in shape[1:]
        elif len(shape) == 4 and _gives_channels_first(module):
            self._first.add(shape)
        elif len(shape) == 4 and _gives_channels_last(module, shape):
            self._last.add(shape)

    @property
    def grids(self) -> set[tuple[int, int]]:
        """Rows and columns of the feature maps that were seen."""
        return {(shape[2], shape[3]) for shape in self._first if shape[2:].numel() > 1}

    def is_map(self, module: nn.Module, shape: torch.Size) -> bool:
        """Whether an output is (N,D,h,w), so that its places need not be shown; in networks without tokens all are."""
        if len(shape) != 4 or shape[0] != self._n:
            return False
        if _gives_channels_first(module) or shape in self._last:
            return _gives_channels_first(module)
        plain = not self._has_tokens and all(one[1:3].numel() == 1 for one in self._last)
        return plain or (shape in self._first and shape[1] != shape[3])


def _gives_channels_first(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.BatchNorm2d))


def _gives_channels_last(module: nn.Module, shape: torch.Size) -> bool:
    """Whether a module is linear, or a layer or RMS normalisation over the last dimension of its output.

    Those of ConvNeXt that normalise the second dimension are of the same classes.
    """
    normalised = getattr(module, "normalized_shape", ())
    last = tuple(normalised) == (shape[-1],) if isinstance(normalised, (tuple, list)) else normalised == shape[-1]
    return isinstance(module, nn.Linear) or last
