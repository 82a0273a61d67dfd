"""How functions without weights hand relevance on: moves, selections, activations, products (see ``operations.py``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from lightning_xai.attribution.lrp import attention, functions
from lightning_xai.attribution.lrp.applications import Application, Entered, Outputs, Unchanged
from lightning_xai.attribution.lrp.sums import Sum
from lightning_xai.trace import Call


@dataclass(frozen=True)
class Mark:
    """What is known of a tensor that descends from the images.

    Attributes:
        pixels: It is still made of pixels, and carries relevance instead of multipliers.
        gate: How much it looks like the gate of a product: 2 after a sigmoid or a length, 1 after clipping, else 0.
        rectified: It has one sign, or nearly so, as behind a ReLU.
        made_by: The weighted layers whose outputs it is, side by side.
        shares: Outputs of a layer that change when it is overwritten.
        total: It is this sum.
    """

    pixels: bool = False
    gate: int = 0
    rectified: bool = False
    made_by: tuple[Application, ...] = ()
    shares: Outputs | None = None
    total: Sum | None = None


def made(call: Call) -> tuple[Any, Mark]:
    """A tensor of somebody's shape and no relevance."""
    return call.run(), Mark()


def moved(call: Call) -> tuple[Any, Mark]:
    """Copies and views: each number goes back to where it came from."""
    given = marks(call)
    pixels = all(one.pixels for one in given)
    shares = given[0].shares if len(given) == 1 else None
    return native(call if pixels else entered(call)), replace(common(given), pixels=pixels, shares=shares)


def moved_like(call: Call) -> tuple[Any, Mark]:
    """Copies and views of the first argument: of the second the shape alone counts."""
    return moved(
        replace(call, on_path=[one for one in call.on_path if one is call.argument(0, "input")] or call.on_path)
    )


def concatenated(call: Call) -> tuple[Any, Mark]:
    """Layers side by side are still layers, where channels are concatenated."""
    result, mark = moved(call)
    parts = [call.marks[one].made_by if one in call.marks else () for one in call.argument(0, "tensors")]
    beside = call.argument(1, "dim", 0) == 1 and all(parts)
    return result, replace(mark, made_by=tuple(part for made_by in parts for part in made_by) if beside else ())


def overwritten(call: Call) -> tuple[Any, Mark]:
    """Parts of a tensor that another takes the place of: what is there goes back to where it came from."""
    target = call.args[0]
    if any(one is target and call.marks[one].pixels for one in call.on_path) and not all(
        mark.pixels for mark in marks(call)
    ):
        raise call.refusal("expected features in the place of features, got them in the place of pixels.")
    return target, replace(moved(call)[1], shares=None)


def selected(call: Call) -> tuple[Any, Mark]:
    """Maxima: what their gradient goes to gets all."""
    return native(entered(call)), common(marks(call))


def rectified(call: Call) -> tuple[Any, Mark]:
    """Piecewise linear functions through zero: their gradient is ``f(x) / x``."""
    for mark in marks(call):
        if mark.total is not None:
            mark.total.rectified = True
    return native(entered(call)), Mark(rectified=True)


def elementwise(call: Call) -> tuple[Any, Mark]:
    """Sums and products with constants, in proportion; standardised pixels are still pixels."""
    given = marks(call)
    if len(given) == 1 and given[0].pixels:
        return Unchanged.apply(call.on_path[0], call, True), given[0]
    return native(entered(call)), common(given)


def added_product(call: Call) -> tuple[Any, Mark]:
    """A signal and a product with at most one, in proportion."""
    factors = [one for one in call.args[1:] if any(one is other for other in call.on_path)]
    if len(factors) > 1:
        raise call.refusal(
            "expected a product of a signal and a constant, got one of two signals: write it as `a * b`."
        )
    result, mark = elementwise(call)
    return result, replace(mark, rectified=False)


def shifted(call: Call) -> tuple[Any, Mark]:
    """The sum with a constant; with the zero that ``sum(...)`` begins with, nothing happened."""
    result, mark = elementwise(call)
    nothing = any(isinstance(one, (int, float)) and one == 0 for one in call.args)
    return result, replace(mark, made_by=call.marks[call.on_path[0]].made_by) if nothing and not call.inplace else mark


def divided(call: Call) -> tuple[Any, Mark]:
    """Divisions: what a signal is divided by counts as a constant, as in a normalisation."""
    signal = call.argument(0, "input")
    if not any(signal is one for one in call.on_path):
        raise call.refusal("expected a signal to be divided, got a constant divided by one: it has no rule.")
    if len(call.on_path) == 1:
        return elementwise(call)
    result = native(call.mapped(lambda one: _enter(call, one) if one is signal else one.detach()))
    return result, replace(call.marks[signal], pixels=False, made_by=(), shares=None, total=None)


def multiplied(call: Call) -> tuple[Any, Mark]:
    """A signal and its gate, which gets nothing; or two signals, half to each."""
    gate = _gate(call)
    if call.inplace and (gate is None or gate is call.argument(0, "input")):
        raise call.refusal(
            "expected the signal to be multiplied in place by its gate, got the reverse, or two signals."
        )
    if gate is None:
        return by(attention.multiplied, call)
    signals = [call.marks[one] for one in call.on_path if one is not gate]
    result = native(call.mapped(lambda one: one.detach() if one is gate else _enter(call, one)))
    return result, Mark(gate=min(one.gate for one in signals), rectified=all(one.rectified for one in signals))


def _gate(call: Call) -> Tensor | None:
    """The one of two factors that looks more like a gate; of equals the smaller one, which is broadcast."""
    first, second = sorted(call.on_path, key=lambda one: (call.marks[one].gate, -one.numel()))
    equal = call.marks[first].gate == call.marks[second].gate and first.numel() == second.numel()
    return None if equal else second


def measured(call: Call) -> tuple[Any, Mark]:
    """Lengths, which grow in proportion to the signal, so that the gradient is their rule; they are gates."""
    return native(entered(call)), Mark(gate=2, rectified=True)


def activated(call: Call, rectified: bool, gate: int = 0) -> tuple[Any, Mark]:
    """Activations that hand relevance on unchanged."""
    call = entered(call)
    keep_overwritten(call)
    return Unchanged.apply(call.argument(0, "input"), call, False), Mark(gate=gate, rectified=rectified)


def clipped(call: Call) -> tuple[Any, Mark]:
    """Activations too, which may be one-sided, and may make a gate."""
    lower = call.argument(1, "min_val", call.kwargs.get("min"))
    one_sided = call.function in functions.CLIPS_AT_ZERO or (isinstance(lower, (int, float)) and lower >= 0)
    return activated(call, one_sided or call.marks[call.on_path[0]].rectified, gate=1)


def softmax(call: Call) -> tuple[Any, Mark]:
    """Its gradient is its rule, and its results are gates."""
    return native(entered(call)), Mark(gate=2, rectified=True)


def by(function: Callable[[Call], Tensor], call: Call) -> tuple[Any, Mark]:
    """By a rule that needs to know nothing of its signals."""
    return function(entered(call)), Mark()


def entered(call: Call) -> Call:
    """The call with pixels turned into features."""
    return call.mapped(partial(_enter, call))


def _enter(call: Call, tensor: Tensor) -> Tensor:
    return Entered.apply(tensor) if call.marks[tensor].pixels else tensor


def native(call: Call) -> Any:
    """By the gradient."""
    keep_overwritten(call)
    return call.run()


def keep_overwritten(call: Call) -> None:
    """Before an in-place function: a layer's rule needs what the layer gave."""
    if call.inplace:
        mark = call.marks.get(call.argument(0, "input"))
        if mark is not None and mark.shares is not None:
            mark.shares.keep()


def common(marks: list[Mark]) -> Mark:
    """What is true of all."""
    return Mark(gate=min(one.gate for one in marks), rectified=all(one.rectified for one in marks))


def marks(call: Call) -> list[Mark]:
    """What is known of the signals."""
    return [call.marks[one] for one in call.on_path]


def scale_of_channels(call: Call) -> Tensor | None:
    """What a product with a constant multiplies each channel by, if it is one number for each, (C,)."""
    signal = call.on_path[0]
    factor = next((one for one in call.args if one is not signal), None)
    if isinstance(factor, (int, float)):
        return signal.new_full(signal.shape[1:2], factor)
    if not isinstance(factor, Tensor) or factor.ndim > signal.ndim:
        return None
    sizes = [1] * (signal.ndim - factor.ndim) + list(factor.shape)
    if any(size > 1 for i, size in enumerate(sizes) if i != 1):
        return None
    return factor.detach().reshape(-1).expand(signal.shape[1])
