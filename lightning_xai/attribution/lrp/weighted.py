"""Layers ``z = W a + b`` as what a rule needs of them: the weight, and the two directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

_TRANSPOSED = {3: conv1d_input, 4: conv2d_input, 5: conv3d_input}
_FORWARD = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}


@dataclass(frozen=True)
class WeightedLayer:
    """A layer ``z = W a + b`` in evaluation mode: a convolution, a linear layer, or a normalisation.

    Attributes:
        weight: The weight W, that of a batch normalisation behind the layer included.
        bias: The bias b in a shape that broadcasts to the outputs, or None.
        forward: ``(inputs, weight) -> W a``, without the bias.
        transpose: ``(outputs, weight, inputs) -> W^T z``, in the shape of the inputs.
    """

    weight: Tensor
    bias: Tensor | None
    forward: Callable[[Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, Tensor, Tensor], Tensor]

    def followed_by(self, scale: Tensor, shift: Tensor) -> WeightedLayer:
        """This layer and ``scale * z + shift`` for each channel of its output, as one layer.

        Args:
            scale: Scale of each output channel, (D,).
            shift: Shift of each output channel, (D,).

        Returns:
            The layer.
        """
        beyond = [1] * (self.weight.ndim - 2)  # positions of a convolution's output
        weight = self.weight * scale.view(-1, 1, *beyond)
        scale, shift = scale.view(-1, *beyond), shift.view(-1, *beyond)
        return dataclasses.replace(self, weight=weight, bias=shift if self.bias is None else self.bias * scale + shift)


def linear_layer(weight: Tensor, bias: Tensor | None = None) -> WeightedLayer:
    """A linear layer.

    Args:
        weight: Weight (outputs, inputs).
        bias: Bias (outputs,), or None.

    Returns:
        The layer, for inputs (..., inputs).

    Example:
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0]]))
        >>> layer.forward(torch.tensor([[3.0, 4.0]]), layer.weight)
        tensor([[11.]])
    """
    return WeightedLayer(weight, bias, lambda inputs, w: inputs @ w.T, lambda outputs, w, inputs: outputs @ w)


def convolution_layer(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> WeightedLayer:
    """A convolution in one, two or three dimensions.

    Args:
        weight: Weight (D, C / groups, ...), one size for each dimension.
        bias: Bias (D,), or None.
        stride: As for torch.nn.functional.conv2d.
        padding: Zeros on both sides of each dimension.
        dilation: As for torch.nn.functional.conv2d.
        groups: Number of groups.

    Returns:
        The layer, for inputs (N,C,...).

    Example:
        >>> layer = convolution_layer(torch.ones(1, 1, 2, 2))
        >>> layer.transpose(torch.ones(1, 1, 1, 1), layer.weight, torch.zeros(1, 1, 2, 2))
        tensor([[[[1., 1.],
                  [1., 1.]]]])
    """
    forward, transposed = _FORWARD[weight.ndim], _TRANSPOSED[weight.ndim]
    geometry = (stride, padding, dilation, groups)
    return WeightedLayer(
        weight,
        None if bias is None else bias.view(-1, *[1] * (weight.ndim - 2)),
        lambda inputs, w: forward(inputs, w, None, *geometry),
        lambda outputs, w, inputs: transposed(inputs.shape, w, outputs, *geometry),
    )


def diagonal_layer(scale: Tensor, shift: Tensor, dimensions: int) -> WeightedLayer:
    """A layer ``z = scale * a + shift`` for each channel, such as batch normalisation in evaluation mode.

    Args:
        scale: Scale of each channel, (C,).
        shift: Shift of each channel, (C,).
        dimensions: Dimensions of a channel of one image: 2 for (N,C,H,W).

    Returns:
        The layer.

    Example:
        >>> layer = diagonal_layer(torch.tensor([2.0]), torch.tensor([1.0]), 0)
        >>> layer.forward(torch.tensor([[3.0]]), layer.weight)
        tensor([[6.]])
    """
    shape = (-1, *[1] * dimensions)
    return WeightedLayer(
        scale.view(shape), shift.view(shape), lambda inputs, w: inputs * w, lambda outputs, w, inputs: outputs * w
    )
