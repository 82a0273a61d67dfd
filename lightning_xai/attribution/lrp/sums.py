"""How a sum of signals hands relevance on: additions, averages, average pooling, interpolation.

Each is a layer ``z = sum_i w_i a_i`` whose weights nobody learnt, all of them >= 0. To share in proportion,
``R_i = w_i a_i / z R``, is what a gradient does in multipliers, and right where the terms have one sign. Terms that
cancel get any amount of either sign: in networks whose residual sums are not rectified (ResNet V2, RegNetV) the pixels'
shares sum up to the logit and their absolute values to a million times that, so that a float32 map is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_xai.attribution.lrp.rules import ratio
from lightning_xai.trace import Call


@dataclass(eq=False)
class Sum:
    """What becomes of a sum in the rest of the pass.

    Attributes:
        rectified: Whether it is rectified itself.
    """

    rectified: bool = False


SumRule: TypeAlias = Callable[[Call, Sum], Tensor]
"""Calls a function that adds up, in such a way that its gradient is the relevance rule in multipliers."""


def in_proportion(call: Call, total: Sum) -> Tensor:
    """``R_i = w_i a_i / z R``, whatever the signs: the epsilon rule of a layer without learnt weights."""
    return call.run()


def by_sign(call: Call, total: Sum) -> Tensor:
    """``R_i = w_i a_i^s / sum_k w_k a_k^s R`` with the sign ``s`` of z: others get nothing.

    What the rule `lossless` is for a layer: no share is negative, and they sum up to one. A sum with a ReLU behind it,
    as in every ResNet, shares in proportion, as it does in zennit.
    """
    above, below = (call.mapped(part).run() for part in (_above, _below))
    return _BySign.apply(above, below, call, total)


class _BySign(torch.autograd.Function):
    """A sum as the part that has its sign; the other part gets nothing."""

    @staticmethod
    def forward(ctx: Any, above: Tensor, below: Tensor, call: Call, total: Sum) -> Tensor:
        outputs = call.run()
        ctx.shares = ratio(outputs.clamp(min=0), above), ratio(outputs.clamp(max=0), below)
        ctx.total = total
        return outputs

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.total.rectified:
            return multipliers, multipliers, None, None
        above, below = ctx.shares
        return multipliers * above, multipliers * below, None, None


# products with a mask, whose way back does not need the signal: the model may overwrite that
def _above(signal: Tensor) -> Tensor:
    return signal * (signal.detach() > 0)


def _below(signal: Tensor) -> Tensor:
    return signal * (signal.detach() < 0)
