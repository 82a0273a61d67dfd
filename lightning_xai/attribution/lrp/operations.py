"""How each torch function of a convolutional network hands relevance on.

Everything is in multipliers (``rules.py``), which most functions hand on like gradients:

- sums (residual additions, means, average pooling, interpolation): in proportion to what was added, constants
  included, where all terms are rectified; else by a rule of their own (``sums.py``); concatenation, reshaping, padding:
  to where it came from; max-pooling: to the winner, of ties the first;
- ReLU, leaky ReLU: unchanged. SiLU, hard-swish, GELU, clipped and sigmoid-like activations: unchanged too (the
  identity rule, as for SiLU and GELU in Achtibat et al., "AttnLRP", 2024), that is ``f(x) / x`` in multipliers;
- products with a gate (squeeze and excitation, ``x * sigmoid(x)``): all to the signal, none to the gate (Arras et al.,
  "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017, section 3.1). Lengths of signals, roots
  and exponentials are gates, too, so that normalisations that are written out (RMS, the response of ConvNeXt V2, linear
  attention) are divided by constants, as in AttnLRP; products of two signals (FocalNet, MambaOut, GLU): half to each,
  as there;
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

from lightning_xai.attribution.lrp import attention, functions, steps
from lightning_xai.attribution.lrp.applications import Application
from lightning_xai.attribution.lrp.rules import InputRule, Rule, whole
from lightning_xai.attribution.lrp.steps import Mark
from lightning_xai.attribution.lrp.sums import Sum, SumRule
from lightning_xai.attribution.lrp.weighted import (
    WeightedLayer,
    added,
    convolution_layer,
    diagonal_layer,
    linear_layer,
    transposed_layer,
)
from lightning_xai.trace import Call, Handler


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
            steps.selected: [*functions.MAXIMA, *functions.WINNERS],
            steps.added_product: functions.ADDED_PRODUCTS,
            steps.rectified: functions.RECTIFIERS,
            self._averaged: functions.SUMS,
            steps.moved: functions.MOVES,
            steps.moved_like: functions.MOVES_LIKE,
            steps.concatenated: functions.CONCATENATIONS,
            self._summed: functions.ADDITIONS,
            steps.elementwise: functions.ELEMENTWISE,
            steps.divided: functions.DIVISIONS,
            self._multiplied: functions.PRODUCTS,
            partial(steps.activated, rectified=True): functions.ACTIVATIONS,
            partial(steps.activated, rectified=False): functions.ODD_ACTIVATIONS,
            partial(steps.activated, rectified=True, gate=0): functions.POWERS,
            partial(steps.activated, rectified=True, gate=2): [*functions.GATES, *functions.FACTORS],
            steps.measured: functions.LENGTHS,
            steps.clipped: functions.CLIPS,
            self._convolved: functions.CONVOLUTIONS,
            self._transposed: functions.TRANSPOSED_CONVOLUTIONS,
            self._transformed: functions.LINEAR,
            self._normalized: functions.NORMALIZATIONS,
            self._matrix_multiplied: functions.MATRIX_PRODUCTS,
            partial(steps.by, attention.multiplied): functions.EINSTEIN_SUMS,
            steps.softmax: functions.SOFTMAXES,
            partial(steps.by, attention.layer_normalized): functions.LAYER_NORMALIZATIONS,
            partial(steps.by, attention.group_normalized): functions.GROUP_NORMALIZATIONS,
            partial(steps.by, attention.attended): functions.ATTENTIONS,
            partial(steps.by, attention.rms_normalized): functions.RMS_NORMALIZATIONS,
            partial(steps.by, attention.vector_normalized): functions.VECTOR_NORMALIZATIONS,
            attention.multi_head_attended: functions.MULTI_HEAD_ATTENTIONS,
            steps.made: functions.MAKERS,
            steps.overwritten: functions.ASSIGNMENTS,
        }
        return {function: handler for handler, functions in table.items() for function in functions}

    def _convolved(self, call: Call) -> tuple[Any, Mark]:
        inputs, weight, bias = _weighted_arguments(call)
        names, defaults = ("stride", "padding", "dilation", "groups"), (1, 0, 1, 1)
        geometry = [call.argument(i + 3, names[i], defaults[i]) for i in range(4)]
        if isinstance(geometry[1], str):
            inputs, geometry[1] = _numeric_padding(inputs, weight, geometry[1], geometry[2])
        return self._apply(call, convolution_layer(weight, bias, *geometry), self.convolution, inputs)

    def _transposed(self, call: Call) -> tuple[Any, Mark]:
        inputs, weight, bias = _weighted_arguments(call)
        names, defaults = ("stride", "padding", "output_padding", "groups", "dilation"), (1, 0, 0, 1, 1)
        geometry = [call.argument(i + 3, names[i], defaults[i]) for i in range(5)]
        return self._apply(call, transposed_layer(weight, bias, *geometry), self.convolution, inputs)

    def _transformed(self, call: Call) -> tuple[Any, Mark]:
        inputs, weight, bias = _weighted_arguments(call)
        return self._apply(call, linear_layer(weight, bias), self.linear, inputs)

    def _normalized(self, call: Call) -> tuple[Any, Mark]:
        inputs = call.argument(0, "input")
        mark: Mark = call.marks[inputs]
        if mark.pixels:
            return steps.elementwise(call)
        scale, shift = _scale_and_shift(call)
        if inputs.ndim < 3:  # no convolution, which other convolutions could be added to
            return self._folded(call, mark.made_by, scale, shift) or steps.activated(call, rectified=False)
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
            return steps.shifted(call)
        one = _together(call)
        if one is None and call.function in functions.DIFFERENCES:
            result, mark = steps.elementwise(call)
            return result, replace(mark, rectified=False)
        if one is None:
            return self._averaged(call)
        steps.keep_overwritten(call)
        return self._record(call, one)

    def _averaged(self, call: Call) -> tuple[Any, Mark]:
        common = steps.common(steps.marks(call))
        if common.rectified:
            return steps.native(steps.entered(call)), common
        call, total = steps.entered(call), Sum()
        steps.keep_overwritten(call)
        return self.signed_sums(call, total), replace(common, total=total)

    def _multiplied(self, call: Call) -> tuple[Any, Mark]:
        """A scaling, which is part of a layer as a normalisation is, or a signal and its gate."""
        if len(call.on_path) > 1:
            return steps.multiplied(call)
        scale = steps.scale_of_channels(call)
        mark: Mark = call.marks[call.on_path[0]]
        if scale is None or mark.pixels or call.inplace:
            return steps.elementwise(call)
        return self._folded(call, mark.made_by, scale, torch.zeros_like(scale)) or steps.elementwise(call)

    def _matrix_multiplied(self, call: Call) -> tuple[Any, Mark]:
        """A linear layer where one factor is a constant matrix; else a product, as with queries that were learnt."""
        first, second = call.argument(0, "input"), call.argument(1, "other")
        if len(call.on_path) > 1 or min(first.ndim, second.ndim) != 2:
            return steps.by(attention.multiplied, call)
        if call.on_path[0] is first:
            return self._apply(call, linear_layer(second.detach().T), self.linear, first)
        result = call.watched(lambda: F.linear(second.mT, first).mT)
        return result, call.marks[result]

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
