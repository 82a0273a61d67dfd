"""Layers ``z = W a + b`` as what a rule needs of them: the weight, and the two directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

_TRANSPOSED = {3: conv1d_input, 4: conv2d_input, 5: conv3d_input}
_FORWARD = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}
_UPWARD = {3: torch.conv_transpose1d, 4: torch.conv_transpose2d, 5: torch.conv_transpose3d}

Size: TypeAlias = int | tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """How a convolution's window moves, one number for each dimension but for the groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class WeightedLayer:
    """A layer ``z = W a + b`` in evaluation mode: a convolution (a normalisation is one, too) or a linear layer.

    Attributes:
        weight: The weight W, that of a batch normalisation behind the layer included.
        bias: The bias b in a shape that broadcasts to the outputs, or None.
        forward: ``(inputs, weight) -> W a``, without the bias.
        transpose: ``(outputs, weight, inputs) -> W^T z``, in the shape of the inputs.
        geometry: Of a convolution; None for a linear layer.
    """

    weight: Tensor
    bias: Tensor | None
    forward: Callable[[Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, Tensor, Tensor], Tensor]
    geometry: Geometry | None = None

    def followed_by(self, scale: Tensor, shift: Tensor) -> WeightedLayer:
        """This layer and ``scale * z + shift`` for each channel of its output, as one layer."""
        beyond = [1] * (self.weight.ndim - 2)  # positions of a convolution's output
        weight = self.weight * scale.view(-1, 1, *beyond)
        scale, shift = scale.view(-1, *beyond), shift.view(-1, *beyond)
        return dataclasses.replace(self, weight=weight, bias=shift if self.bias is None else self.bias * scale + shift)

    def scaled(self, factor: float) -> WeightedLayer:
        """This layer with all outputs multiplied by a number."""
        bias = None if self.bias is None else self.bias * factor
        return dataclasses.replace(self, weight=self.weight * factor, bias=bias)


def linear_layer(weight: Tensor, bias: Tensor | None = None) -> WeightedLayer:
    """A linear layer of a weight (outputs, inputs).

    Example:
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0]]))
        >>> layer.forward(torch.tensor([[3.0, 4.0]]), layer.weight)
        tensor([[11.]])
    """
    return WeightedLayer(weight, bias, lambda inputs, w: inputs @ w.T, lambda outputs, w, inputs: outputs @ w)


def convolution_layer(
    weight: Tensor, bias: Tensor | None = None, stride: Size = 1, padding: Size = 0, dilation: Size = 1, groups: int = 1
) -> WeightedLayer:
    """A convolution in one, two or three dimensions; arguments as for torch.nn.functional.conv2d.

    Example:
        >>> layer = convolution_layer(torch.ones(1, 1, 2, 2))
        >>> layer.transpose(torch.ones(1, 1, 1, 1), layer.weight, torch.zeros(1, 1, 2, 2))
        tensor([[[[1., 1.],
                  [1., 1.]]]])
    """
    dimensions = weight.ndim - 2
    forward, transposed = _FORWARD[weight.ndim], _TRANSPOSED[weight.ndim]
    steps = [_of_each(size, dimensions) for size in (stride, padding, dilation)]
    geometry = Geometry(steps[0], steps[1], steps[2], groups)
    options = (geometry.stride, geometry.padding, geometry.dilation, groups)
    return WeightedLayer(
        weight,
        None if bias is None else bias.view(-1, *[1] * dimensions),
        lambda inputs, w: forward(inputs, w, None, *options),
        lambda outputs, w, inputs: transposed(inputs.shape, w, outputs, *options),
        geometry,
    )


def transposed_layer(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> WeightedLayer:
    """A transposed convolution, whose way back is a convolution; arguments as for torch's conv_transpose2d.

    Example:
        >>> layer = transposed_layer(torch.ones(1, 1, 2), stride=2)
        >>> layer.forward(torch.tensor([[[1.0, 3.0]]]), layer.weight)
        tensor([[[1., 1., 3., 3.]]])
    """
    forward, back = _UPWARD[weight.ndim], _FORWARD[weight.ndim]
    return WeightedLayer(
        weight,
        None if bias is None else bias.view(-1, *[1] * (weight.ndim - 2)),
        lambda inputs, w: forward(inputs, w, None, stride, padding, output_padding, groups, dilation),
        lambda outputs, w, inputs: back(outputs, w, None, stride, padding, dilation, groups),
    )


def diagonal_layer(scale: Tensor, shift: Tensor | None, dimensions: int) -> WeightedLayer:
    """A layer ``z = scale * a + shift`` for each channel: batch normalisation in evaluation mode, or nothing at all.

    A convolution that sees one position of one channel, so that it can be added to others; ``dimensions`` are those of
    a channel of one image: 2 for (N,C,H,W).

    Example:
        >>> layer = diagonal_layer(torch.tensor([2.0]), torch.tensor([1.0]), 1)
        >>> layer.forward(torch.tensor([[[3.0]]]), layer.weight)
        tensor([[[6.]]])
    """
    return convolution_layer(scale.view(-1, 1, *[1] * dimensions), shift, groups=len(scale))


def added(first: WeightedLayer, second: WeightedLayer) -> WeightedLayer | None:
    """Two convolutions of one input whose outputs are added, as the one convolution that they are.

    The smaller window is placed inside of the larger one (Ding et al., "RepVGG: Making VGG-style ConvNets Great
    Again", 2021, section 3.3); None where no convolution with one of these windows does what both do.

    Example:
        >>> layer = added(convolution_layer(torch.ones(1, 1, 3), padding=1), diagonal_layer(torch.ones(1), None, 1))
        >>> layer.weight
        tensor([[[1., 2., 1.]]])
    """
    large, small = sorted((first, second), key=lambda layer: layer.weight[0, 0].numel(), reverse=True)
    whole, part = large.geometry, small.geometry
    if whole is None or part is None or whole.stride != part.stride:
        return None
    weight, around = (
        _in_groups(small.weight, part, large.weight, whole),
        _around(small.weight, part, large.weight, whole),
    )
    if weight is None or around is None:
        return None
    biases = [layer.bias for layer in (large, small) if layer.bias is not None]
    bias = torch.stack(biases).sum(0).flatten() if biases else None
    weight = large.weight + F.pad(weight, around)
    return convolution_layer(weight, bias, whole.stride, whole.padding, whole.dilation, whole.groups)


def _in_groups(small: Tensor, part: Geometry, large: Tensor, whole: Geometry) -> Tensor | None:
    """The small weight with the larger one's groups; of another number of them only what sees one channel has one."""
    if part.groups == whole.groups:
        return small
    channels, seen = len(small), large.shape[1]
    if not channels == part.groups == seen * whole.groups == len(large):
        return None
    spread = small.new_zeros(channels, seen, *small.shape[2:])
    places = torch.arange(channels, device=small.device)
    spread[places, places % seen] = small[:, 0]
    return spread


def _around(small: Tensor, part: Geometry, large: Tensor, whole: Geometry) -> list[int] | None:
    """What F.pad puts around the smaller window, so that it lies in the larger one where it sees the same inputs."""
    around: list[int] = []
    for i, (size, room) in enumerate(zip(small.shape[2:], large.shape[2:], strict=True)):
        before, rest = divmod(whole.padding[i] - part.padding[i], whole.dilation[i])
        after = room - size - before
        if rest or before < 0 or after < 0 or (size > 1 and part.dilation[i] != whole.dilation[i]):
            return None
        around = [before, after, *around]  # F.pad begins with the last dimension
    return around


def _of_each(size: Size, dimensions: int) -> tuple[int, ...]:
    if isinstance(size, int):
        return (size,) * dimensions
    return tuple(size) * (dimensions // len(size))
