"""How each torch function of a convolutional network hands relevance on.

Everything is in multipliers (`rules`), which most functions hand on like gradients:

- sums (residual additions, means, average pooling, interpolation): in proportion to what was added, constants
  included, where all terms are rectified; else by a rule of their own (`sums`); concatenation, reshaping, padding: to
  where it came from; max-pooling: to the winner, of ties the first;
- ReLU, leaky ReLU: unchanged. SiLU, hard-swish, GELU, clipped and sigmoid-like activations: unchanged too (the
  identity rule, as for SiLU and GELU in Achtibat et al., "AttnLRP", 2024), that is ``f(x) / x`` in multipliers;
- products with a gate (squeeze and excitation, ``x * sigmoid(x)``): all to the signal, none to the gate (Arras et al.,
  "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017, section 3.1);
- weighted layers: by the rules given. What is one layer is taken for one, so that two forms of a function have one map:
  batch normalisation is folded into the layer before it (or the layers, whose outputs were concatenated), and
  convolutions of one input whose outputs are added, the input itself among them, are one convolution;
- batch normalisation of anything else: unchanged.

Pixels are the exception. Rules of the first layer give relevance to pixels that are zero, which no multiplier can
express: what is still pixels (sliced, padded, standardised) carries relevance itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.attribution.lrp import attention, functions
from lightning_xai.attribution.lrp.applications import Application, Entered, Outputs, Unchanged
from lightning_xai.attribution.lrp.rules import InputRule, Rule, whole
from lightning_xai.attribution.lrp.sums import Sum, SumRule
from lightning_xai.attribution.lrp.weighted import (
    WeightedLayer,
    added,
    convolution_layer,
    diagonal_layer,
    linear_layer,
)
from lightning_xai.trace import Call, Handler


@dataclass(frozen=True)
class Mark:
    """What is known of a tensor that descends from the images.

    Attributes:
        pixels: It is still made of pixels, and carries relevance instead of multipliers.
        gate: How much it looks like the gate of a product: 2 after a sigmoid, 1 after clipping, else 0.
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


@dataclass
class Operations:
    """The handlers of one pass.

    Attributes:
        first: Rule of the layers that see pixels.
        convolution: Rule of the other convolutions.
        linear: Rule of the other linear layers.
        signed_sums: Rule of sums whose terms have either sign.
        applications: The weighted layers called so far.
    """

    first: Rule | InputRule
    convolution: Rule
    linear: Rule
    signed_sums: SumRule
    applications: list[Application]

    def handlers(self) -> dict[Callable[..., Any], Handler]:
        """What stands in for each function."""
        table: dict[Handler, list[Callable[..., Any]]] = {
            _selected: functions.MAXIMA,
            _rectified: functions.RECTIFIERS,
            self._averaged: functions.SUMS,
            _moved: functions.MOVES,
            _moved_like: functions.MOVES_LIKE,
            _concatenated: functions.CONCATENATIONS,
            self._summed: functions.ADDITIONS,
            _elementwise: functions.ELEMENTWISE,
            _divided: functions.DIVISIONS,
            self._multiplied: functions.PRODUCTS,
            partial(_activated, rectified=True): functions.ACTIVATIONS,
            partial(_activated, rectified=False): functions.ODD_ACTIVATIONS,
            _clipped: functions.CLIPS,
            partial(_activated, rectified=True, gate=2): functions.GATES,
            self._convolved: functions.CONVOLUTIONS,
            self._transformed: functions.LINEAR,
            self._normalized: functions.NORMALIZATIONS,
            self._matrix_multiplied: functions.MATRIX_PRODUCTS,
            _softmax: functions.SOFTMAXES,
            partial(_by, attention.layer_normalized): functions.LAYER_NORMALIZATIONS,
            partial(_by, attention.group_normalized): functions.GROUP_NORMALIZATIONS,
            partial(_by, attention.attended): functions.ATTENTIONS,
        }
        return {function: handler for handler, functions in table.items() for function in functions}

    def _convolved(self, call: Call) -> tuple[Any, Mark]:
        inputs, weight, bias = _weighted_arguments(call)
        names, defaults = ("stride", "padding", "dilation", "groups"), (1, 0, 1, 1)
        geometry = [call.argument(i + 3, names[i], defaults[i]) for i in range(4)]
        if isinstance(geometry[1], str):
            inputs, geometry[1] = _numeric_padding(inputs, weight, geometry[1], geometry[2])
        return self._apply(call, convolution_layer(weight, bias, *geometry), self.convolution, inputs)

    def _transformed(self, call: Call) -> tuple[Any, Mark]:
        inputs, weight, bias = _weighted_arguments(call)
        return self._apply(call, linear_layer(weight, bias), self.linear, inputs)

    def _normalized(self, call: Call) -> tuple[Any, Mark]:
        inputs = call.argument(0, "input")
        mark: Mark = call.marks[inputs]
        if mark.pixels:
            return _elementwise(call)
        scale, shift = _scale_and_shift(call)
        if inputs.ndim < 3:  # no convolution, which other convolutions could be added to
            return self._folded(call, mark.made_by, scale, shift) or _activated(call, rectified=False)
        alone = Application(diagonal_layer(scale, shift, inputs.ndim - 2), whole, inputs)
        return self._folded(call, mark.made_by, scale, shift) or self._record(call, alone)

    def _folded(
        self, call: Call, parts: tuple[Application, ...], scale: Tensor, shift: Tensor
    ) -> tuple[Any, Mark] | None:
        """A normalisation as a part of the layers whose outputs it is given, where it can be."""
        dimensions = call.on_path[0].ndim
        if not parts or not all(part.foldable(dimensions) for part in parts):
            return None
        channels = [len(part.layer.weight) for part in parts]
        affine = zip(scale.split(channels), shift.split(channels), strict=True)
        folded = [part.followed_by(*one) for part, one in zip(parts, affine, strict=True)]
        if len(folded) == 1:
            return self._record(call, folded[0])
        pieces = call.mapped(Tensor.detach).run().split(channels, 1)
        made = [self._record(call.giving(piece), part)[0] for part, piece in zip(folded, pieces, strict=True)]
        return torch.cat(made, 1), Mark(made_by=tuple(folded))

    def _summed(self, call: Call) -> tuple[Any, Mark]:
        """Branches that are one convolution together, or signals that are added up."""
        if len(call.on_path) == 1:
            return _shifted(call)
        one = _together(call)
        if one is None and call.function in functions.DIFFERENCES:
            result, mark = _elementwise(call)
            return result, replace(mark, rectified=False)
        if one is None:
            return self._averaged(call)
        _keep_overwritten(call)
        return self._record(call, one)

    def _averaged(self, call: Call) -> tuple[Any, Mark]:
        given = _marks(call)
        common, partly = _common(given), any(one.rectified for one in given)
        if common.rectified:
            return _native(_entered(call)), common
        call, total = _entered(call), Sum(partly)
        _keep_overwritten(call)
        return self.signed_sums(call, total), replace(common, total=total)

    def _multiplied(self, call: Call) -> tuple[Any, Mark]:
        """A scaling, which is part of a layer as a normalisation is, or a signal and its gate."""
        if len(call.on_path) > 1:
            return _gated(call)
        scale = _scale_of_channels(call)
        mark: Mark = call.marks[call.on_path[0]]
        if scale is None or mark.pixels or call.inplace:
            return _elementwise(call)
        return self._folded(call, mark.made_by, scale, torch.zeros_like(scale)) or _elementwise(call)

    def _matrix_multiplied(self, call: Call) -> tuple[Any, Mark]:
        """A linear layer where the second factor is a constant matrix."""
        if len(call.on_path) > 1:
            return _by(attention.multiplied, call)
        inputs, weight = call.argument(0, "input"), call.argument(1, "other")
        if call.on_path[0] is not inputs or weight.ndim != 2:
            raise call.refusal("expected a product with a constant matrix on the right, or of two signals.")
        return self._apply(call, linear_layer(weight.detach().T), self.linear, inputs)

    def _apply(self, call: Call, layer: WeightedLayer, rule: Rule, inputs: Tensor) -> tuple[Any, Mark]:
        pixels = call.marks[call.on_path[0]].pixels
        return self._record(call, Application(layer, self.first if pixels else rule, inputs, pixels))

    def _record(self, call: Call, application: Application) -> tuple[Any, Mark]:
        outputs = application.apply(call)
        self.applications.append(application)
        return outputs, Mark(made_by=(application,), shares=application.raw)


def _together(call: Call) -> Application | None:
    """The convolution that two added branches of one input are together, if they are one."""
    shapes = {one.shape for one in call.on_path}
    if len(call.on_path) != 2 or len(shapes) != 1 or call.kwargs.get("alpha", 1) != 1:
        return None
    for source, *others in (call.marks[one].made_by for one in call.on_path if call.marks[one].made_by):
        first, second = (_branch(call, one, source) for one in call.on_path)
        if others or first is None or second is None:
            continue
        layer = added(first.layer, second.layer.scaled(-1) if call.function in functions.DIFFERENCES else second.layer)
        if layer is not None:
            rule = second.rule if first.rule is whole else first.rule
            return Application(layer, rule, source.inputs, source.pixels)
    return None


def _branch(call: Call, tensor: Tensor, source: Application) -> Application | None:
    """What makes a tensor of the inputs of another call; the inputs themselves are made by a convolution, too."""
    if tensor is source.inputs and tensor._version == source.version and tensor.ndim > 2:
        ones = tensor.new_ones(tensor.shape[1])
        return Application(diagonal_layer(ones, None, tensor.ndim - 2), whole, tensor, source.pixels)
    made_by = call.marks[tensor].made_by
    if len(made_by) == 1 and made_by[0].sees_what(source) and made_by[0].raw.intact:
        return made_by[0]
    return None


def _moved(call: Call) -> tuple[Any, Mark]:
    """Copies and views: each number goes back to where it came from."""
    given = _marks(call)
    pixels = all(one.pixels for one in given)
    shares = given[0].shares if len(given) == 1 else None
    return _native(call if pixels else _entered(call)), replace(_common(given), pixels=pixels, shares=shares)


def _moved_like(call: Call) -> tuple[Any, Mark]:
    """Copies and views of the first argument: of the second the shape alone counts."""
    return _moved(
        replace(call, on_path=[one for one in call.on_path if one is call.argument(0, "input")] or call.on_path)
    )


def _concatenated(call: Call) -> tuple[Any, Mark]:
    """Layers side by side are still layers, where channels are concatenated."""
    result, mark = _moved(call)
    parts = [call.marks[one].made_by if one in call.marks else () for one in call.argument(0, "tensors")]
    beside = call.argument(1, "dim", 0) == 1 and all(parts)
    return result, replace(mark, made_by=tuple(part for made_by in parts for part in made_by) if beside else ())


def _selected(call: Call) -> tuple[Any, Mark]:
    """Maxima: what their gradient goes to gets all."""
    return _native(_entered(call)), _common(_marks(call))


def _rectified(call: Call) -> tuple[Any, Mark]:
    """Piecewise linear functions through zero: their gradient is ``f(x) / x``."""
    for mark in _marks(call):
        if mark.total is not None:
            mark.total.rectified = True
    return _native(_entered(call)), Mark(rectified=True)


def _elementwise(call: Call) -> tuple[Any, Mark]:
    """Sums and products with constants, in proportion; standardised pixels are still pixels."""
    given = _marks(call)
    if len(given) == 1 and given[0].pixels:
        return Unchanged.apply(call.on_path[0], call, True), given[0]
    return _native(_entered(call)), _common(given)


def _shifted(call: Call) -> tuple[Any, Mark]:
    """The sum with a constant; with the zero that ``sum(...)`` begins with, nothing happened."""
    result, mark = _elementwise(call)
    nothing = any(isinstance(one, (int, float)) and one == 0 for one in call.args)
    return result, replace(mark, made_by=call.marks[call.on_path[0]].made_by) if nothing and not call.inplace else mark


def _divided(call: Call) -> tuple[Any, Mark]:
    if len(call.on_path) > 1 or call.argument(0, "input") is not call.on_path[0]:
        raise call.refusal("expected a division by a constant, got one by what depends on the image: it has no rule.")
    return _elementwise(call)


def _gated(call: Call) -> tuple[Any, Mark]:
    """A signal and its gate: the gate gets nothing."""
    gate = _gate(call)
    if call.inplace and gate is call.argument(0, "input"):
        raise call.refusal("expected the signal to be multiplied in place by its gate, got the reverse.")
    signals = [call.marks[one] for one in call.on_path if one is not gate]
    result = _native(call.mapped(lambda one: one.detach() if one is gate else _enter(call, one)))
    return result, Mark(rectified=all(one.rectified for one in signals))


def _gate(call: Call) -> Tensor:
    """The one of two factors that looks more like a gate; of equals the smaller one, which is broadcast."""
    first, second = sorted(call.on_path, key=lambda one: (call.marks[one].gate, -one.numel()))
    if call.marks[first].gate == call.marks[second].gate and first.numel() == second.numel():
        raise call.refusal("expected one factor to be a gate (such as a sigmoid), got two signals: they have no rule.")
    return second


def _activated(call: Call, rectified: bool, gate: int = 0) -> tuple[Any, Mark]:
    """Activations that hand relevance on unchanged."""
    call = _entered(call)
    _keep_overwritten(call)
    return Unchanged.apply(call.argument(0, "input"), call, False), Mark(gate=gate, rectified=rectified)


def _clipped(call: Call) -> tuple[Any, Mark]:
    """Activations too, which may be one-sided, and may make a gate."""
    lower = call.argument(1, "min_val", call.kwargs.get("min"))
    one_sided = call.function in functions.CLIPS_AT_ZERO or (isinstance(lower, (int, float)) and lower >= 0)
    return _activated(call, one_sided or call.marks[call.on_path[0]].rectified, gate=1)


def _softmax(call: Call) -> tuple[Any, Mark]:
    """Its gradient is its rule, and its results are gates."""
    return _native(_entered(call)), Mark(gate=2, rectified=True)


def _by(function: Callable[[Call], Tensor], call: Call) -> tuple[Any, Mark]:
    return function(_entered(call)), Mark()


def _entered(call: Call) -> Call:
    """The call with pixels turned into features."""
    return call.mapped(partial(_enter, call))


def _enter(call: Call, tensor: Tensor) -> Tensor:
    return Entered.apply(tensor) if call.marks[tensor].pixels else tensor


def _native(call: Call) -> Any:
    _keep_overwritten(call)
    return call.run()


def _keep_overwritten(call: Call) -> None:
    if call.inplace:
        mark = call.marks.get(call.argument(0, "input"))
        if mark is not None and mark.shares is not None:
            mark.shares.keep()


def _common(marks: list[Mark]) -> Mark:
    """What is true of all."""
    return Mark(gate=min(one.gate for one in marks), rectified=all(one.rectified for one in marks))


def _marks(call: Call) -> list[Mark]:
    return [call.marks[one] for one in call.on_path]


def _weighted_arguments(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    inputs, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if len(call.on_path) > 1 or call.on_path[0] is not inputs:
        raise call.refusal("expected constant weights, got weights that depend on the image: they have no rule.")
    return inputs, weight.detach(), None if bias is None else bias.detach()


def _numeric_padding(inputs: Tensor, weight: Tensor, padding: str, dilation: Any) -> tuple[Tensor, Any]:
    """``"same"`` and ``"valid"`` in numbers; what is more on one side is padded beforehand."""
    if padding == "valid":
        return inputs, 0
    sizes = weight.shape[2:]
    dilations = [dilation] * len(sizes) if isinstance(dilation, int) else list(dilation) * (len(sizes) // len(dilation))
    totals = [d * (size - 1) for d, size in zip(dilations, sizes, strict=True)]
    if any(total % 2 for total in totals):
        inputs = F.pad(inputs, [amount for total in reversed(totals) for amount in (0, total % 2)])
    return inputs, tuple(total // 2 for total in totals)


def _scale_of_channels(call: Call) -> Tensor | None:
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


def _scale_and_shift(call: Call) -> tuple[Tensor, Tensor]:
    """What batch normalisation does to each channel in evaluation mode."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    mean, variance, weight, bias, training, _, eps = (call.argument(i + 1, name) for i, name in enumerate(names))
    if training or mean is None:
        raise call.refusal("expected running statistics, got those of the batch, which couple its images: no rule.")
    scale = (variance + (1e-5 if eps is None else eps)).rsqrt().detach()
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach()
