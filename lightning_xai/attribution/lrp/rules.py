"""Rules of layer-wise relevance propagation for weighted layers, as pure functions.

A rule says how the relevance ``R_j`` of a layer's outputs is shared among its inputs. All are written in *multipliers*:
the multiplier of a number ``a`` is ``m = R / a``, its relevance per unit. Where a rule shares in proportion to
``a_i w_ij``, that factor ``a_i`` never has to be divided out again, and whatever shares in proportion to what was added
(sums, averages, residual connections, pooling, ReLU) hands multipliers on like gradients.

Letters: ``a_i`` inputs, ``w_ij`` weights, ``z_j`` outputs, ``w+ = max(w, 0)``, ``w- = min(w, 0)``. An output whose
denominator is zero shares nothing: its relevance is lost, and shows in the conservation error (but for `lossless`).

Every rule takes a layer with its inputs and its outputs, bias included, and returns the way from the multipliers of the
outputs to those of the inputs; rules of the first layer (`InputRule`), whose inputs may be zero, to the relevance.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_xai.attribution.lrp.weighted import WeightedLayer
from lightning_xai.standard import Standard, standard_of

Propagation: TypeAlias = Callable[[Tensor], Tensor]
"""From the multipliers of a layer's outputs to those of its inputs; to the relevance itself for rules of the first."""

Rule: TypeAlias = Callable[[WeightedLayer, Tensor, Tensor], Propagation]
"""``(layer, inputs, outputs) -> propagation``; what does not depend on the relevance is computed once."""


_ROUNDING = 16
"""Where contributions cancel or are all zero, rounding leaves about as many units of the last place of their sum."""


def z_plus(layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """The z+ rule, ``R_i = sum_j (a_i w_ij)+ / sum_i' (a_i' w_i'j)+ R_j``; biases are ignored.

    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition", 2017, for inputs
    >= 0, where ``(a w)+ = a w+`` (Iwana et al. 2019 eq. 1, whose sum takes the relevance of the upper node). Signed
    inputs, as
    after a linear bottleneck, need ``(a w)+ = a+ w+ + a- w-``, which costs twice as much. Conserves but for outputs to
    which nothing contributes positively.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0, -1.0]]))
        >>> a = torch.tensor([[1.0, 1.0, 1.0]])
        >>> a * z_plus(layer, a, torch.tensor([[2.0]]))(torch.tensor([[1.0]]))
        tensor([[0.6667, 1.3333, 0.0000]])
    """
    total, back = _positive_contributions(layer, inputs)
    share = ratio(outputs, total)
    return lambda multipliers: back(multipliers * share)


def lossless(layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """The z+ rule for outputs of both signs, ``R_i = sum_j (a_i w_ij)^s / sum_i' (a_i' w_i'j)^s R_j``; loses nothing.

    ``s`` is the sign of ``sum_i a_i w_ij``, so that there is a contribution of it: the limit of the signed `gamma`
    (Andéol et al. 2021) for large gamma, without the bias. It differs from `z_plus` where an output is negative (linear
    bottlenecks, residual sums) or where a bias alone made it positive. An output all of whose contributions are zero,
    as of a depthwise convolution over an empty channel, gives its relevance to the other outputs at its position, in
    proportion to their size; this last step is ours, and keeps what no rule of shares can keep. Twice the cost of
    `z_plus`.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, -2.0, -3.0], [0.0, 0.0, 0.0]]), torch.tensor([0.0, 2.0]))
        >>> a = torch.tensor([[1.0, 1.0, 1.0]])
        >>> a * lossless(layer, a, torch.tensor([[-4.0, 2.0]]))(torch.tensor([[-1.0, 3.0]]))
        tensor([[0., 4., 6.]])
    """
    raised, back = _positive_contributions(layer, inputs)
    linear = outputs if layer.bias is None else outputs - layer.bias
    lowered = linear - raised
    positive = linear > 0
    noise = _ROUNDING * torch.finfo(linear.dtype).eps * torch.maximum(raised, outputs.abs())
    own = torch.where(positive, raised, lowered)
    alive = own.abs() > noise
    share = ratio(outputs, own) * alive
    channels = -1 if layer.weight.ndim == 2 else 1
    per_size = outputs.sign() * ratio(alive, (outputs.abs() * alive).sum(channels, keepdim=True))

    def propagate(multipliers: Tensor) -> Tensor:
        orphaned = (multipliers * outputs * ~alive).sum(channels, keepdim=True)
        shared = (multipliers + per_size * orphaned) * share
        up, down = shared * positive, shared * ~positive
        return layer.transpose(down, layer.weight, inputs) + back(up - down)

    return propagate


def whole(layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """All relevance of an output to the one input that it has, ``R_i = R_i``, of a layer that is one-to-one.

    There is nobody to share with, and no reason to lose anything: what a batch normalisation that follows no layer
    does. An input of exactly zero cannot have any; what a shift alone made of it is lost.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import diagonal_layer
        >>> layer = diagonal_layer(torch.tensor([2.0]), torch.tensor([-5.0]), 1)
        >>> a = torch.tensor([[[1.0]]])
        >>> a * whole(layer, a, torch.tensor([[[-3.0]]]))(torch.tensor([[[1.0]]]))
        tensor([[[-3.]]])
    """
    share = ratio(outputs, inputs)
    return lambda multipliers: multipliers * share


def epsilon(layer: WeightedLayer, inputs: Tensor, outputs: Tensor, *, stabilizer: float = 1e-6) -> Propagation:
    """The epsilon rule, ``R_i = sum_j a_i w_ij / (z_j + eps sign(z_j)) R_j``, with ``sign(0) = 1``.

    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    2015, eq. 58. The bias takes its share and keeps it, as eps does; eps, the stabilizer, is in units of the outputs.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0, -1.0]]))
        >>> a = torch.tensor([[1.0, 1.0, 1.0]])
        >>> a * epsilon(layer, a, torch.tensor([[2.0]]))(torch.tensor([[1.0]]))
        tensor([[ 1.0000,  2.0000, -1.0000]])
    """
    share = ratio(outputs, torch.where(outputs < 0, outputs - stabilizer, outputs + stabilizer))
    return lambda multipliers: layer.transpose(multipliers * share, layer.weight, inputs)


def gamma(layer: WeightedLayer, inputs: Tensor, outputs: Tensor, *, boost: float = 0.25) -> Propagation:
    """The gamma rule: contributions of the sign of the output count ``1 + gamma`` times.

    ``R_i = sum_j c_ij / sum_i' c_i'j R_j`` with ``c = a w + gamma (a w)+`` where ``z_j > 0``, and ``(a w)-`` in place
    of ``(a w)+`` where ``z_j < 0``. For inputs and outputs >= 0 this is ``w + gamma w+`` of Montavon et al.,
    "Layer-Wise Relevance Propagation: An Overview", 2019, section 10.2.3; the signed form is that of Andéol et al.,
    "Learning Domain Invariant Representations by Joint Wasserstein Distance Minimization", 2021. The bias is one of the
    contributions, and keeps its share. A boost of 0 gives the epsilon rule without eps, large ones z+ where z > 0.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0, -1.0]]))
        >>> a = torch.tensor([[1.0, 1.0, 1.0]])
        >>> a * gamma(layer, a, torch.tensor([[2.0]]), boost=1.0)(torch.tensor([[1.0]]))
        tensor([[ 0.8000,  1.6000, -0.4000]])
    """
    bias = torch.zeros_like(outputs) if layer.bias is None else layer.bias.expand_as(outputs)
    positive = outputs > 0
    linear = outputs - bias  # W a
    raised, back = _positive_contributions(layer, inputs)
    boosted = torch.where(positive, raised, linear - raised) + torch.where(
        positive, bias.clamp(min=0), bias.clamp(max=0)
    )
    share = ratio(outputs, outputs + boost * boosted)

    def propagate(multipliers: Tensor) -> Tensor:
        shared = multipliers * share
        up, down = shared * positive, shared * ~positive
        plain = layer.transpose(shared + boost * down, layer.weight, inputs)
        return plain + boost * back(up - down)

    return propagate


def alpha_beta(
    layer: WeightedLayer, inputs: Tensor, outputs: Tensor, *, alpha: float = 2.0, beta: float = 1.0
) -> Propagation:
    """The alpha-beta rule, ``R_i = sum_j (alpha (a_i w_ij)+ / z_j+ - beta (a_i w_ij)- / z_j-) R_j``.

    Bach et al. 2015 eq. 60, with biases ignored, so that alpha = 1, beta = 0 is `z_plus`. Conserves for
    ``alpha - beta = 1`` where an output has contributions of both signs.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0, -1.0]]))
        >>> a = torch.tensor([[1.0, 1.0, 1.0]])
        >>> a * alpha_beta(layer, a, torch.tensor([[2.0]]))(torch.tensor([[1.0]]))
        tensor([[ 1.3333,  2.6667, -2.0000]])
    """
    raised, back = _positive_contributions(layer, inputs)
    linear = outputs if layer.bias is None else outputs - layer.bias
    # a difference that is rounding alone is nothing, and not something to divide by
    lowered = (raised - linear) * (raised - linear > _ROUNDING * torch.finfo(linear.dtype).eps * raised)
    positive, negative = alpha * ratio(outputs, raised), beta * ratio(outputs, lowered)

    def propagate(multipliers: Tensor) -> Tensor:
        up, down = multipliers * positive, multipliers * negative
        # - beta (a w)- / z-  =  beta ((a w) - (a w)+) / |z-|
        plain = layer.transpose(down, layer.weight, inputs)
        return plain + back(up - down)

    return propagate


def z_box(layer: WeightedLayer, inputs: Tensor, outputs: Tensor, *, low: Tensor, high: Tensor) -> Propagation:
    """The zB rule for inputs within ``[l, h]``, ``R_i = sum_j c_ij / sum_i' c_i'j R_j``, ``c = x w - l w+ - h w-``.

    Montavon et al. 2017; Iwana et al. 2019 eq. 2, in which the box bounds the layer's *input*. Every contribution is
    >= 0, and
    an input of zero can have one. Biases are ignored, the layer's padding contributes nothing. The bounds are one for
    each channel, (C,1,1) or (N,C,1,1), or for each feature, (I,).

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, -1.0]]))
        >>> x, ends = torch.tensor([[0.0, 0.5]]), torch.tensor(1.0)
        >>> z_box(layer, x, torch.tensor([[-0.5]]), low=-ends, high=ends)(torch.tensor([[-2.0]]))
        tensor([[0.6667, 0.3333]])
    """
    raised = layer.weight.clamp(min=0)
    # w- = w - w+, so that two weights do for three terms: (x - h) w + (h - l) w+
    total = _response(layer, high - low, raised, inputs) - _response(layer, high, layer.weight, inputs)
    total += outputs
    share = ratio(outputs, total if layer.bias is None else total.sub_(layer.bias))

    def propagate(multipliers: Tensor) -> Tensor:
        plain, positive = _both_transposes(layer, multipliers * share, (layer.weight, raised), inputs)
        return (inputs - high) * plain + (high - low) * positive

    return propagate


def w_square(layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """The w2 rule, ``R_i = sum_j w_ij^2 / sum_i' w_i'j^2 R_j``, for inputs without bounds.

    Montavon et al. 2017. An input of zero has relevance.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, -2.0]]))
        >>> w_square(layer, torch.zeros(1, 2), torch.tensor([[5.0]]))(torch.tensor([[1.0]]))
        tensor([[1., 4.]])
    """
    return _shares_of(layer.weight.square(), layer, inputs, outputs)


def flat(layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """The flat rule: every input of an output has the same share of it, ``R_i = sum_j R_j / |inputs of j|``.

    Bach et al., "Controlling Explanatory Heatmap Resolution and Semantics via Decomposition Depth", 2016.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, -2.0]]))
        >>> flat(layer, torch.zeros(1, 2), torch.tensor([[5.0]]))(torch.tensor([[1.0]]))
        tensor([[2.5000, 2.5000]])
    """
    return _shares_of(torch.ones_like(layer.weight), layer, inputs, outputs)


def negated_z_plus(layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """The z+ rule of a layer whose weights are negated: what speaks against an output gets its relevance.

    The virtual "not this class" neurons of Gu et al., "Understanding Individual Decisions of CNNs via Contrastive
    Backpropagation", 2018, as a rule for the last layer.

    Example:
        >>> from lightning_xai.attribution.lrp.weighted import linear_layer
        >>> layer = linear_layer(torch.tensor([[1.0, 2.0, -1.0]]))
        >>> a = torch.tensor([[1.0, 1.0, 1.0]])
        >>> a * negated_z_plus(layer, a, torch.tensor([[2.0]]))(torch.tensor([[1.0]]))
        tensor([[0., 0., 2.]])
    """
    return z_plus(dataclasses.replace(layer, weight=-layer.weight), inputs, outputs)


@dataclass(frozen=True)
class Epsilon:
    """The rule `epsilon` with its stabilizer.

    Attributes:
        stabilizer: eps >= 0, in units of a layer's outputs.
    """

    stabilizer: float = 1e-6

    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """See `epsilon`."""
        return epsilon(layer, inputs, outputs, stabilizer=self.stabilizer)


@dataclass(frozen=True)
class Gamma:
    """The rule `gamma` with its weight.

    Attributes:
        boost: gamma >= 0.
    """

    boost: float = 0.25

    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """See `gamma`."""
        return gamma(layer, inputs, outputs, boost=self.boost)


@dataclass(frozen=True)
class AlphaBeta:
    """The rule `alpha_beta` with its weights.

    Attributes:
        alpha: Weight of the positive contributions.
        beta: Weight of the negative contributions; alpha - beta = 1 conserves.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """See `alpha_beta`."""
        return alpha_beta(layer, inputs, outputs, alpha=self.alpha, beta=self.beta)


class InputRule(ABC):
    """A rule for the first layer, which may give relevance to inputs that are zero.

    Subclasses are frozen dataclasses.
    """

    @abstractmethod
    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """From the multipliers of the outputs to the relevance of the inputs."""


@dataclass(frozen=True)
class ZBox(InputRule):
    """The rule `z_box` with its bounds.

    Attributes:
        low: Lower bound of each channel of what the first layer is given, (C,); None takes each image's own smallest
            value of the channel.
        high: Upper bound of each channel; None takes the largest value.

    Raises:
        ValueError: If an input lies outside of the bounds.

    Example:
        >>> ZBox.standardized(mean=(0.5,), std=(0.25,))
        ZBox(low=(-2.0,), high=(2.0,))
    """

    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # plain numbers can be hashed and compared, lists and tensors cannot
            bounds = getattr(self, name)
            if bounds is not None:
                object.__setattr__(self, name, tuple(float(bound) for bound in bounds))

    @classmethod
    def standardized(cls, mean: Standard, std: Sequence[float] | None = None) -> ZBox:
        """The bounds of pixels in [0, 1] that were standardised, ``(pixels - mean) / std``, as in Iwana et al. 2019.

        Args:
            mean: Mean of each channel, or what says both (`Standard`).
            std: Standard deviation of each channel.
        """
        pairs = list(zip(*standard_of(mean, std), strict=True))
        return cls(tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs))

    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """See `z_box`."""
        spatial = tuple(range(2, inputs.ndim))
        least, most = (inputs.amin(spatial, True), inputs.amax(spatial, True)) if spatial else (inputs, inputs)
        low = least if self.low is None else _per_channel(self.low, inputs)
        high = most if self.high is None else _per_channel(self.high, inputs)
        slack = 1e-3 * (high - low)
        if (least < low - slack).any() or (most > high + slack).any():
            raise ValueError(
                f"`ZBox` expected inputs of the first layer within low={self.low} and high={self.high}, got values in "
                f"[{inputs.min().item():.4g}, {inputs.max().item():.4g}]. Give the bounds of your standardisation, "
                "`ZBox.standardized(mean, std)`, or none."
            )
        return z_box(layer, inputs, outputs, low=low, high=high)


@dataclass(frozen=True)
class WSquare(InputRule):
    """The rule `w_square`."""

    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """See `w_square`."""
        return w_square(layer, inputs, outputs)


@dataclass(frozen=True)
class Flat(InputRule):
    """The rule `flat`."""

    def __call__(self, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
        """See `flat`."""
        return flat(layer, inputs, outputs)


def _per_channel(values: tuple[float, ...], inputs: Tensor) -> Tensor:
    if len(values) != inputs.shape[1]:
        raise ValueError(
            f"`ZBox` expected a bound for each of the {inputs.shape[1]} channels of the first layer, got {values}."
        )
    return inputs.new_tensor(values).view(-1, *[1] * (inputs.ndim - 2))


def _shares_of(shares: Tensor, layer: WeightedLayer, inputs: Tensor, outputs: Tensor) -> Propagation:
    """Contributions that do not depend on the inputs."""
    share = ratio(outputs, layer.forward(torch.ones_like(inputs), shares))
    return lambda multipliers: layer.transpose(multipliers * share, shares, inputs)


def _positive_contributions(layer: WeightedLayer, inputs: Tensor) -> tuple[Tensor, Propagation]:
    """``sum_i (a_i w_ij)+``, and its way back ``sum_j 1[a_i w_ij > 0] w_ij s_j``."""
    raised = layer.weight.clamp(min=0)
    if inputs.amin() >= 0:  # half the cost
        return layer.forward(inputs, raised), lambda shared: layer.transpose(shared, raised, inputs)
    lowered = layer.weight - raised
    total = layer.forward(inputs.clamp(min=0), raised) + layer.forward(inputs.clamp(max=0), lowered)

    def back(shared: Tensor) -> Tensor:
        above, below = (layer.transpose(shared, weight, inputs) for weight in (raised, lowered))
        return torch.where(inputs > 0, above, below)

    return total, back


def _response(layer: WeightedLayer, bounds: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    """``W b`` for bounds that are constant over each channel: from the responses to the channels, whatever N is."""
    if inputs.ndim == 2:
        return layer.forward(bounds.expand_as(inputs), weight)
    channels, beyond = inputs.shape[1], inputs.shape[2:]
    units = torch.eye(channels, dtype=inputs.dtype, device=inputs.device).view(channels, channels, *[1] * len(beyond))
    responses = layer.forward(units.expand(channels, channels, *beyond), weight)
    return torch.einsum("nc,c...->n...", bounds.expand(len(inputs), channels, *[1] * len(beyond)).flatten(1), responses)


def _both_transposes(
    layer: WeightedLayer, outputs: Tensor, weights: tuple[Tensor, Tensor], inputs: Tensor
) -> tuple[Tensor, ...]:
    """Two ways back; with as few channels as pixels have, one convolution of twice as many takes half the time."""
    if layer.geometry is None or layer.weight.shape[1] != inputs.shape[1]:
        return tuple(layer.transpose(outputs, weight, inputs) for weight in weights)
    return layer.transpose(outputs, torch.cat(weights, 1), torch.cat([inputs, inputs], 1)).chunk(2, 1)


def ratio(outputs: Tensor, total: Tensor) -> Tensor:
    """``z / total`` where there is anything to share, else 0."""
    return (outputs / total).nan_to_num_(0.0, 0.0, 0.0)
