"""How the parts of transformers hand relevance on, after AttnLRP.

Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", 2024,
https://arxiv.org/abs/2402.05602, written in multipliers (`rules`):

- softmax: ``R_i = x_i (R_i - s_i sum_j R_j)``, its Taylor expansion without the bias, which is its gradient;
- a matrix product of two signals: half to each, in proportion to what was added;
- layer and group normalisation: the standard deviation is a constant.

Linear layers in transformers have signed inputs and want `Epsilon` there.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lightning_xai.trace import Call


class Lessened(torch.autograd.Function):
    """Hands on a part of the relevance."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, part: float) -> Tensor:
        """The values."""
        ctx.part = part
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor, None]:
        """A part of the multipliers."""
        return ctx.part * multipliers, None


class Normalized(torch.autograd.Function):
    """``(x - mean) / std * weight + bias`` with the standard deviation a constant."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, call: Call, groups: tuple[int, ...], weight: Tensor | None, eps: float
    ) -> Tensor:
        """What the function itself gives; ``groups`` is the shape in which the last dimension is normalised."""
        variance = inputs.reshape(groups).var(-1, correction=0, keepdim=True)
        ctx.groups, ctx.weight, ctx.scale = groups, weight, (variance + eps).rsqrt()
        return call.run()

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        """Through the scale, and the mean."""
        weighed = multipliers if ctx.weight is None else multipliers * ctx.weight
        scaled = weighed.reshape(ctx.groups) * ctx.scale
        return (scaled - scaled.mean(-1, keepdim=True)).view_as(multipliers), None, None, None, None


def layer_normalized(call: Call) -> Tensor:
    """Layer normalisation over the last dimensions.

    Args:
        call: A call of torch.nn.functional.layer_norm.

    Returns:
        Its result.
    """
    inputs, shape, weight = call.argument(0, "input"), call.argument(1, "normalized_shape"), call.argument(2, "weight")
    groups = (*inputs.shape[: inputs.ndim - len(shape)], math.prod(shape))
    return Normalized.apply(inputs, call, groups, _constant(weight), call.argument(4, "eps", 1e-5))


def group_normalized(call: Call) -> Tensor:
    """Normalisation over groups of channels and all positions.

    Args:
        call: A call of torch.nn.functional.group_norm.

    Returns:
        Its result.
    """
    inputs, number, weight = call.argument(0, "input"), call.argument(1, "num_groups"), call.argument(2, "weight")
    per_channel = None if weight is None else weight.detach().view(-1, *[1] * (inputs.ndim - 2))
    return Normalized.apply(inputs, call, (len(inputs), number, -1), per_channel, call.argument(4, "eps", 1e-5))


def multiplied(call: Call) -> Tensor:
    """A matrix product of two signals: half to each.

    Args:
        call: A call of torch.matmul or torch.bmm.

    Returns:
        Its result.
    """
    return call.mapped(lambda one: Lessened.apply(one, 0.5)).run()


def attended(call: Call) -> Tensor:
    """Scaled dot-product attention: half to the values; of the attention's half, half to queries and to keys.

    Args:
        call: A call of torch.nn.functional.scaled_dot_product_attention.

    Returns:
        Its result.
    """
    parts = {"query": 0.25, "key": 0.25, "value": 0.5}
    # by their places: one tensor may stand in all three
    signals = [Lessened.apply(call.argument(i, name), part) for i, (name, part) in enumerate(parts.items())]
    options = {name: value for name, value in call.kwargs.items() if name not in parts}
    return dataclasses.replace(call, args=(*signals, *call.args[3:]), kwargs=options).run()


def _constant(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
