"""How the parts of transformers hand relevance on, after AttnLRP.

Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", 2024,
https://arxiv.org/abs/2402.05602, written in multipliers (``rules.py``):

- softmax: ``R_i = x_i (R_i - s_i sum_j R_j)``, its Taylor expansion without the bias, which is its gradient;
- a matrix product of two signals: half to each, in proportion to what was added; of a signal and a constant, such as
  learnt queries: all to the signal;
- layer, group and RMS normalisation, and vectors divided by their length: what they are divided by is a constant.

Linear layers in transformers have signed inputs and want `Epsilon` there.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
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
    """Layer normalisation over the last dimensions."""
    inputs, shape, weight = call.argument(0, "input"), call.argument(1, "normalized_shape"), call.argument(2, "weight")
    groups = (*inputs.shape[: inputs.ndim - len(shape)], math.prod(shape))
    return Normalized.apply(inputs, call, groups, _constant(weight), call.argument(4, "eps", 1e-5))


def group_normalized(call: Call) -> Tensor:
    """Normalisation over groups of channels and all positions."""
    inputs, number, weight = call.argument(0, "input"), call.argument(1, "num_groups"), call.argument(2, "weight")
    per_channel = None if weight is None else weight.detach().view(-1, *[1] * (inputs.ndim - 2))
    return Normalized.apply(inputs, call, (len(inputs), number, -1), per_channel, call.argument(4, "eps", 1e-5))


class Rescaled(torch.autograd.Function):
    """``x * scale`` with the scale a constant, though it was made of x."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, call: Call, scale: Tensor) -> Tensor:
        """What the function itself gives."""
        ctx.scale = scale
        return call.run()

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        """Through the scale."""
        return multipliers * ctx.scale, None, None


def rms_normalized(call: Call) -> Tensor:
    """Division by the root of the mean square over the last dimensions."""
    inputs, shape, weight = call.argument(0, "input"), call.argument(1, "normalized_shape"), call.argument(2, "weight")
    eps = call.argument(3, "eps")
    eps = torch.finfo(inputs.dtype).eps if eps is None else eps
    last = tuple(range(-len(shape), 0))
    scale = (inputs.detach().square().mean(last, keepdim=True) + eps).rsqrt()
    return Rescaled.apply(inputs, call, scale if weight is None else scale * weight.detach())


def vector_normalized(call: Call) -> Tensor:
    """Vectors divided by their length."""
    inputs, dim = call.argument(0, "input"), call.argument(2, "dim", 1)
    length = inputs.detach().norm(call.argument(1, "p", 2.0), dim, keepdim=True)
    return Rescaled.apply(inputs, call, 1 / length.clamp(min=call.argument(3, "eps", 1e-12)))


def multi_head_attended(call: Call) -> tuple[Any, Any]:
    """The attention of torch.nn.MultiheadAttention, which is one function to those who look on, in its parts."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*call.args, **call.kwargs)
    given.apply_defaults()
    options = given.arguments
    known = ("bias_k", "bias_v", "static_k", "static_v")
    if any(options[name] is not None for name in known) or options["add_zero_attn"] or options["query"].ndim != 3:
        raise call.refusal("expected a batch and no added keys: those have no rule.")
    result = call.watched(_in_parts, options)
    return result, call.marks[result[0]]


def _in_parts(options: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Linear layers, softmax and products, for inputs (L,N,E)."""
    heads = options["num_heads"]
    weights = [options[f"{one}_proj_weight"] for one in "qkv"]
    weights = weights if options["use_separate_proj_weight"] else options["in_proj_weight"].chunk(3)
    biases = [None] * 3 if options["in_proj_bias"] is None else options["in_proj_bias"].chunk(3)
    inputs = [options[name] for name in ("query", "key", "value")]
    query, key, value = (
        F.linear(one, weight, bias).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for one, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    for mask in _masks(options, scores):
        scores = scores + mask
    attention = scores.softmax(-1)
    result = F.linear(
        (attention @ value).permute(2, 0, 1, 3).flatten(2), options["out_proj_weight"], options["out_proj_bias"]
    )
    shown = attention.mean(1) if options["average_attn_weights"] else attention
    return result, shown if options["need_weights"] else None


def _masks(options: dict[str, Any], scores: Tensor) -> list[Tensor]:
    """What is added to scores (N,heads,L,S): masks of bools are minus infinity where they are set."""
    found, padding = [options["attn_mask"]], options["key_padding_mask"]
    found = [one if one is None or one.ndim == 2 else one.unflatten(0, (-1, options["num_heads"])) for one in found]
    found += [None if padding is None else padding[:, None, None]]
    return [
        torch.zeros(one.shape, dtype=scores.dtype, device=one.device).masked_fill(one, -torch.inf)
        if one.dtype == torch.bool
        else one
        for one in found
        if one is not None
    ]


def multiplied(call: Call) -> Tensor:
    """A product of signals, each of whose parts is proportional to what was added: half to each of two."""
    part = 1 / len(call.on_path)
    return call.run() if part == 1 else call.mapped(lambda one: Lessened.apply(one, part)).run()


def attended(call: Call) -> Tensor:
    """Scaled dot-product attention: half to the values, half to queries and keys; what is constant gets nothing."""
    names = ("query", "key", "value")
    given = [call.argument(i, name) for i, name in enumerate(names)]
    query, key, value = (float(any(one is signal for signal in call.on_path)) for one in given)
    scores = query + key
    whole = 1 / (value + bool(scores))
    parts = (whole / (scores or 1), whole / (scores or 1), whole)
    # by their places: one tensor may stand in all three
    signals = [Lessened.apply(*one) for one in zip(given, parts, strict=True)]
    options = {name: one for name, one in call.kwargs.items() if name not in names}
    return dataclasses.replace(call, args=(*signals, *call.args[3:]), kwargs=options).run()


def _constant(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
