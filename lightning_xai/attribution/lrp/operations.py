"""How each torch function of a convolutional network hands relevance on.

Everything is in multipliers (`rules`), which most functions hand on like gradients:

- sums (residual additions, means, average pooling, interpolation): in proportion to what was added, constants
  included; concatenation, reshaping, padding: to where it came from; max-pooling: to the winner, of ties the first;
- ReLU, leaky ReLU: unchanged. SiLU, hard-swish, GELU, clipped and sigmoid-like activations: unchanged too (the
  identity rule, as for SiLU and GELU in Achtibat et al., "AttnLRP", 2024), that is ``f(x) / x`` in multipliers;
- products with a gate (squeeze and excitation, ``x * sigmoid(x)``): all to the signal, none to the gate (Arras et al.,
  "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017, section 3.1);
- weighted layers: by the rules given, batch normalisation folded into the layer before it.

Pixels are the exception. Rules of the first layer give relevance to pixels that are zero, which no multiplier can
express: what is still pixels (sliced, padded, standardised) carries relevance itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.attribution.lrp import attention
from lightning_xai.attribution.lrp.rules import InputRule, Propagation, Rule
from lightning_xai.attribution.lrp.weighted import WeightedLayer, convolution_layer, diagonal_layer, linear_layer
from lightning_xai.trace import Call, Handler, spellings

SUMS = spellings(
    *("sum", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
)
RECTIFIERS = spellings("relu", "leaky_relu", "prelu", "rrelu", "abs", "maximum")
MAXIMA = spellings(
    *("max_pool1d", "max_pool2d", "max_pool3d", "amax"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
)
MOVES = [
    *spellings(
        *("flatten", "view", "reshape", "permute", "transpose", "movedim", "swapaxes", "squeeze", "unsqueeze", "t"),
        *("cat", "concat", "stack", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "narrow"),
        *("pad", "expand", "expand_as", "view_as", "repeat", "clone", "contiguous", "to", "float", "double"),
        *("unflatten", "roll", "flip", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    ),
    Tensor.T.__get__,  # type: ignore[attr-defined]
    Tensor.mT.__get__,  # type: ignore[attr-defined]
]
ELEMENTWISE = spellings("add", "sub", "neg")
DIVISIONS = [one for one in spellings("div", "true_divide", "truediv") if not one.__name__.startswith("__r")]
PRODUCTS = spellings("mul", "multiply")
ACTIVATIONS = spellings(
    *("silu", "hardswish", "gelu", "mish", "elu", "selu", "celu", "tanh", "softplus", "softsign", "threshold"),
    "local_response_norm",
)
CLIPS = spellings("hardtanh", "relu6", "clamp", "clip", "clamp_min", "clamp_max")
GATES = spellings("sigmoid", "hardsigmoid")
CONVOLUTIONS = spellings("conv1d", "conv2d", "conv3d")
LINEAR = spellings("linear")
MATRIX_PRODUCTS = spellings("matmul", "bmm")
SOFTMAXES = spellings("softmax")
LAYER_NORMALIZATIONS = spellings("layer_norm")
GROUP_NORMALIZATIONS = spellings("group_norm")
ATTENTIONS = spellings("scaled_dot_product_attention")
NORMALIZATIONS = spellings("batch_norm")


class Outputs:
    """What a layer gave, for the way back; a copy is made only when the model is about to overwrite it."""

    def __init__(self) -> None:
        self._tensor = torch.empty(0)
        self._version = 0

    @property
    def intact(self) -> bool:
        """Whether nobody has overwritten them."""
        return self._tensor._version == self._version

    def hold(self, tensor: Tensor) -> None:
        """The layer gave this."""
        self._tensor, self._version = tensor.detach(), tensor._version

    def keep(self) -> None:
        """The model is about to overwrite them."""
        self.hold(self._tensor.clone())

    def read(self) -> Tensor:
        """The outputs as they were."""
        if not self.intact:
            raise RuntimeError(
                "A relevance rule expected a layer's output to stay as it was, but the model overwrote it in place "
                "in a way that was not seen. Use out-of-place operations there."
            )
        return self._tensor


@dataclass(eq=False)
class Application:
    """One call of a weighted layer in a pass.

    Attributes:
        layer: The layer, with the batch normalisation behind it folded in.
        rule: How it hands relevance on.
        inputs: What it was given.
        raw: What it gave, before the batch normalisation.
        affine: Scale and shift of the batch normalisation, or None without one.
    """

    layer: WeightedLayer
    rule: Rule | InputRule
    inputs: Tensor
    raw: Outputs = field(default_factory=Outputs)
    affine: tuple[Tensor, Tensor] | None = None
    _propagation: Propagation | None = None

    @property
    def outputs(self) -> Tensor:
        """What it gave, bias and batch normalisation included."""
        raw = self.raw.read()
        return raw if self.affine is None else (raw * self.affine[0]).add_(self.affine[1])

    def propagate(self, multipliers: Tensor) -> Tensor:
        """From the outputs to the inputs; what does not depend on the multipliers is computed the first time."""
        if self._propagation is None:
            self._propagation = self.rule(self.layer, self.inputs.detach(), self.outputs)
        return self._propagation(multipliers)


@dataclass(frozen=True)
class Mark:
    """What is known of a tensor that descends from the images.

    Attributes:
        pixels: It is still made of pixels, and carries relevance instead of multipliers.
        gate: How much it looks like the gate of a product: 2 after a sigmoid, 1 after clipping, else 0.
        made_by: The weighted layer whose output it is.
        shares: Outputs of a layer that change when it is overwritten.
    """

    pixels: bool = False
    gate: int = 0
    made_by: Application | None = None
    shares: Outputs | None = None


@dataclass
class Operations:
    """The handlers of one pass.

    Attributes:
        first: Rule of the layers that see pixels.
        convolution: Rule of the other convolutions, and of normalisations that follow no layer.
        linear: Rule of the other linear layers.
        applications: The weighted layers called so far.
    """

    first: Rule | InputRule
    convolution: Rule
    linear: Rule
    applications: list[Application]

    def handlers(self) -> dict[Callable[..., Any], Handler]:
        """What stands in for each function."""
        table: dict[Handler, list[Callable[..., Any]]] = {
            _added_up: SUMS + RECTIFIERS + MAXIMA,
            _moved: MOVES,
            _elementwise: ELEMENTWISE,
            _divided: DIVISIONS,
            _multiplied: PRODUCTS,
            partial(_activated, gate=0): ACTIVATIONS,
            partial(_activated, gate=1): CLIPS,
            partial(_activated, gate=2): GATES,
            self._convolved: CONVOLUTIONS,
            self._transformed: LINEAR,
            self._normalized: NORMALIZATIONS,
            self._matrix_multiplied: MATRIX_PRODUCTS,
            _softmax: SOFTMAXES,
            partial(_by, attention.layer_normalized): LAYER_NORMALIZATIONS,
            partial(_by, attention.group_normalized): GROUP_NORMALIZATIONS,
            partial(_by, attention.attended): ATTENTIONS,
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
        scale, shift = _scale_and_shift(call)
        mark: Mark = call.marks[inputs]
        source = mark.made_by
        if source is not None and source.affine is None and source.raw.intact and inputs.ndim != 3:
            layer = source.layer.followed_by(scale, shift)
            shape = (-1, *[1] * (inputs.ndim - 2))
            affine = scale.view(shape), shift.view(shape)
            return self._record(call, Application(layer, source.rule, source.inputs, source.raw, affine))
        if mark.pixels:
            return _elementwise(call)
        return self._apply(call, diagonal_layer(scale, shift, inputs.ndim - 2), self.convolution, inputs)

    def _matrix_multiplied(self, call: Call) -> tuple[Any, Mark]:
        """A linear layer where the second factor is a constant matrix."""
        if len(call.on_path) > 1:
            return _by(attention.multiplied, call)
        inputs, weight = call.argument(0, "input"), call.argument(1, "other")
        if call.on_path[0] is not inputs or weight.ndim != 2:
            raise call.refusal("expected a product with a constant matrix on the right, or of two signals.")
        return self._apply(call, linear_layer(weight.detach().T), self.linear, inputs)

    def _apply(self, call: Call, layer: WeightedLayer, rule: Rule, inputs: Tensor) -> tuple[Any, Mark]:
        if not call.marks[call.on_path[0]].pixels:
            return self._record(call, Application(layer, rule, inputs))
        if isinstance(self.first, InputRule):
            return self._record(call, Application(layer, self.first, inputs))
        return self._record(call, Application(layer, self.first, _Entered.apply(inputs)))

    def _record(self, call: Call, application: Application) -> tuple[Any, Mark]:
        outputs = _Applied.apply(application.inputs, application, call)
        self.applications.append(application)
        return outputs, Mark(made_by=application, shares=application.raw)


class _Applied(torch.autograd.Function):
    """A weighted layer, with its rule for a gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, application: Application, call: Call) -> Tensor:
        outputs = call.run()
        if application.affine is None:
            application.raw.hold(outputs)
        ctx.save_for_backward(inputs)  # torch then notices if the model overwrites them
        ctx.application = application
        return outputs

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("Relevance maps cannot be differentiated: leave `create_graph=False`.")
        _ = ctx.saved_tensors
        return ctx.application.propagate(multipliers), None, None


class _Entered(torch.autograd.Function):
    """The step from pixels to features: from multipliers to relevance."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        return pixels.view_as(pixels)

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> Tensor:
        (pixels,) = ctx.saved_tensors
        return pixels * multipliers


class _Unchanged(torch.autograd.Function):
    """A function of one tensor that hands relevance on as it is: ``f(x) / x`` in multipliers, 1 among pixels."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, call: Call, pixels: bool) -> Tensor:
        before = inputs.clone() if call.inplace and not pixels else inputs
        outputs = call.run()
        if call.inplace:
            ctx.mark_dirty(inputs)
        ctx.ratio = None if pixels else torch.where(before == 0, 0, outputs / before)
        ctx.shape = inputs.shape
        return outputs

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        ratio = 1 if ctx.ratio is None else ctx.ratio
        return (multipliers * ratio).sum_to_size(ctx.shape), None, None


def _moved(call: Call) -> tuple[Any, Mark]:
    """Copies and views: each number goes back to where it came from."""
    given = _marks(call)
    pixels = all(one.pixels for one in given)
    shares = given[0].shares if len(given) == 1 else None
    return _native(call if pixels else _entered(call)), Mark(pixels, min(one.gate for one in given), None, shares)


def _added_up(call: Call) -> tuple[Any, Mark]:
    """Sums and selections: their gradient is what proportional shares are in multipliers."""
    return _native(_entered(call)), Mark(gate=min(one.gate for one in _marks(call)))


def _elementwise(call: Call) -> tuple[Any, Mark]:
    """Sums, and sums and products with constants; standardised pixels are still pixels."""
    given = _marks(call)
    if len(given) == 1 and given[0].pixels:
        return _Unchanged.apply(call.on_path[0], call, True), given[0]
    return _added_up(call)


def _divided(call: Call) -> tuple[Any, Mark]:
    if len(call.on_path) > 1 or call.argument(0, "input") is not call.on_path[0]:
        raise call.refusal("expected a division by a constant, got one by what depends on the image: it has no rule.")
    return _elementwise(call)


def _multiplied(call: Call) -> tuple[Any, Mark]:
    """A scaling, or a signal and its gate: the gate gets nothing."""
    if len(call.on_path) == 1:
        return _elementwise(call)
    gate = _gate(call)
    if call.inplace and gate is call.argument(0, "input"):
        raise call.refusal("expected the signal to be multiplied in place by its gate, got the reverse.")
    return _native(call.mapped(lambda one: one.detach() if one is gate else _enter(call, one))), Mark()


def _gate(call: Call) -> Tensor:
    """The one of two factors that looks more like a gate; of equals the smaller one, which is broadcast."""
    first, second = sorted(call.on_path, key=lambda one: (call.marks[one].gate, -one.numel()))
    if call.marks[first].gate == call.marks[second].gate and first.numel() == second.numel():
        raise call.refusal("expected one factor to be a gate (such as a sigmoid), got two signals: they have no rule.")
    return second


def _activated(call: Call, gate: int) -> tuple[Any, Mark]:
    """Activations that hand relevance on unchanged."""
    call = _entered(call)
    _keep_overwritten(call)
    return _Unchanged.apply(call.argument(0, "input"), call, False), Mark(gate=gate)


def _softmax(call: Call) -> tuple[Any, Mark]:
    """Its gradient is its rule, and its results are gates."""
    return _native(_entered(call)), Mark(gate=2)


def _by(function: Callable[[Call], Tensor], call: Call) -> tuple[Any, Mark]:
    return function(_entered(call)), Mark()


def _entered(call: Call) -> Call:
    """The call with pixels turned into features."""
    return call.mapped(partial(_enter, call))


def _enter(call: Call, tensor: Tensor) -> Tensor:
    return _Entered.apply(tensor) if call.marks[tensor].pixels else tensor


def _native(call: Call) -> Any:
    _keep_overwritten(call)
    return call.run()


def _keep_overwritten(call: Call) -> None:
    if call.inplace:
        mark = call.marks.get(call.argument(0, "input"))
        if mark is not None and mark.shares is not None:
            mark.shares.keep()


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
