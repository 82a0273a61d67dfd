"""What a pass leaves behind for its way back: the calls of weighted layers, and the steps that have a rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_xai.attribution.lrp.rules import InputRule, Propagation, Rule, ratio
from lightning_xai.attribution.lrp.weighted import WeightedLayer
from lightning_xai.trace import Call


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
        pixels: Whether that is still made of pixels.
        raw: What it gave, before the batch normalisation: that one's own outputs are often overwritten by a ReLU.
        affine: Scale and shift of the batch normalisation, or None without one.
        version: How often the inputs had been overwritten when the layer saw them.
    """

    layer: WeightedLayer
    rule: Rule | InputRule
    inputs: Tensor
    pixels: bool = False
    raw: Outputs = field(default_factory=Outputs)
    affine: tuple[Tensor, Tensor] | None = None
    version: int = -1
    _propagation: Propagation | None = None

    def __post_init__(self) -> None:
        self.version = self.inputs._version if self.version < 0 else self.version

    @property
    def outputs(self) -> Tensor:
        """What it gave, bias and batch normalisation included."""
        raw = self.raw.read()
        return raw if self.affine is None else (raw * self.affine[0]).add_(self.affine[1])

    def followed_by(self, scale: Tensor, shift: Tensor) -> Application:
        """The same call with a batch normalisation behind it."""
        layer = self.layer.followed_by(scale, shift)
        shape = (-1, *[1] * (self.layer.weight.ndim - 2))
        scale, shift = scale.view(shape), shift.view(shape)
        if self.affine is not None:
            scale, shift = self.affine[0] * scale, self.affine[1] * scale + shift
        return replace(self, layer=layer, affine=(scale, shift), _propagation=None)

    def foldable(self, dimensions: int) -> bool:
        """Whether a normalisation of outputs of so many dimensions is one of its channels, and they are untouched."""
        return self.raw.intact and (self.layer.geometry is not None or dimensions == 2)

    def sees_what(self, other: Application) -> bool:
        """Whether both calls were given the same, and nobody overwrote it in between."""
        return self.inputs is other.inputs and self.version == other.version

    def propagate(self, multipliers: Tensor) -> Tensor:
        """From the outputs to the inputs; what does not depend on the multipliers is computed the first time."""
        if self._propagation is None:
            self._propagation = self.rule(self.layer, self.inputs.detach(), self.outputs)
        return self._propagation(multipliers)

    def apply(self, call: Call) -> Tensor:
        """What the layer's last function gives, with the rule on the way back to the inputs."""
        enters = self.pixels and not isinstance(self.rule, InputRule)
        return _Applied.apply(Entered.apply(self.inputs) if enters else self.inputs, self, call)


class _Applied(torch.autograd.Function):
    """A weighted layer, with its rule for a gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, application: Application, call: Call) -> Tensor:
        outputs = call.run()
        if outputs._is_view() and not call.inplace:  # nobody may overwrite a view that a custom function gave
            outputs = outputs.clone()
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


class Entered(torch.autograd.Function):
    """The step from pixels to features: from multipliers to relevance."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        """The pixels."""
        ctx.save_for_backward(pixels)
        return pixels.view_as(pixels)

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> Tensor:
        """The relevance of the pixels."""
        (pixels,) = ctx.saved_tensors
        return pixels * multipliers


class Unchanged(torch.autograd.Function):
    """A function of one tensor that hands relevance on as it is: ``f(x) / x`` in multipliers, 1 among pixels."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, call: Call, pixels: bool) -> Tensor:
        """What the function itself gives."""
        before = inputs.clone() if call.inplace and not pixels else inputs
        outputs = call.run()
        if call.inplace:
            ctx.mark_dirty(inputs)
        ctx.ratio = None if pixels else ratio(outputs, before)
        ctx.shape = inputs.shape
        return outputs

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        """Relevance, unchanged."""
        ratio = 1 if ctx.ratio is None else ctx.ratio
        return (multipliers * ratio).sum_to_size(ctx.shape), None, None
