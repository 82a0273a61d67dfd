"""DeepLIFT: differences from a baseline instead of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai.attribution.base import ScoredAttribution
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.attribution.lrp import functions
from lightning_xai.attribution.paths import baseline_images, require_standardization
from lightning_xai.baselines import Baseline
from lightning_xai.scores import at_least_float32
from lightning_xai.standard import Standard
from lightning_xai.trace import Call, Handler, Interception, Trace, intercepted

_SMALLEST_STEP = 1e-10
"""Inputs that differ by less have the gradient for a multiplier, as in captum; in float16, by its smallest number."""


def secant_slope(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The rescale rule: the multiplier of a nonlinearity is ``(f(x) - f(x0)) / (x - x0)``.

    Shrikumar et al. 2017, eq. 10-11. Of inputs and outputs at the images, then at the baselines, (2N,...): slopes
    (N,...), and where x and x0 are too close for one.

    Example:
        >>> secant_slope(torch.tensor([2.0, -2.0]), torch.tensor([2.0, 0.0]))
        (tensor([0.5000]), tensor([False]))
    """
    step, rise = _difference(inputs), _difference(outputs)
    close = _too_close(step)
    return torch.where(close, 0, rise / step), close


@dataclass(frozen=True)
class DeepLIFT(ScoredAttribution):
    """DeepLIFT with the rescale rule: slopes from the baseline to the image in place of nonlinearities' gradients.

    Shrikumar et al., "Learning Important Features Through Propagating Activation Differences", 2017,
    https://arxiv.org/abs/1704.02685. Signed maps that sum to the score of the image minus that of the baseline, for
    scores linear in the logits: ``centered``, the mean-centred weights that the paper recommends in section 3.6, or
    ``pre_softmax``. For other scores the logits' differences are weighed by the score's gradient at the image.

    Max-pooling gives the difference to the two winners, as captum does; a product of two that depend on the image
    (squeeze and excitation) gives each its mean slope, which is exact. Functional calls and re-used modules are seen;
    an operation that has no rule is an error that names it. One forward and one backward pass of twice the images.

    Attributes:
        score: The number that is explained.
        baseline: What the image is compared with, as for `IntegratedGradients`.
        mean: Mean by which the images were standardised, or what says both (`Standard`); for a function only.
        std: Standard deviation by which they were standardised.

    Raises:
        ValueError: If a baseline function lacks ``mean`` and ``std``.

    Example:
        >>> from lightning_xai import explain
        >>> from lightning_xai.scores import pre_softmax
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> model[2].weight.data = torch.tensor([[1.0, -2.0]])
        >>> method = DeepLIFT(score=pre_softmax, baseline=torch.tensor(-1.0))
        >>> explain(model, torch.tensor([[[[1.0, 2.0]]]]), 1, attributions=method)
        tensor([[[ 1., -4.]]])
    """

    needs_reruns = True

    baseline: Baseline | Tensor | None = None
    mean: Standard | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_standardization(self.baseline, self.mean, self.std)

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed, in units of the score."""
        if trace.create_graph:
            raise RuntimeError("DeepLIFT's maps cannot be differentiated: leave `create_graph=False`.")
        images = trace.images.detach()
        baseline = baseline_images(images, self.baseline, self.mean, self.std)
        logits = at_least_float32(trace.logits.detach())
        slopes = torch.func.grad(lambda values: self.score(values, targets).sum())(logits)
        both = trace.rerun(torch.cat([images, baseline]), Secants(), rows=torch.arange(len(images)).repeat(2))
        multipliers = both.propagate(torch.cat([slopes, torch.zeros_like(slopes)]))[: len(images)]
        return channel_sum(multipliers * (images - baseline))


@dataclass(frozen=True)
class Secants(Interception):
    """The rescale rule in place of the gradients of nonlinearities, for a pass of images and then their baselines."""

    @contextmanager
    def __call__(self, model: nn.Module, images: Tensor) -> Iterator[None]:
        """The context in which a pass of the model runs."""
        with intercepted(model, images, _handlers(), None):
            yield


def _handlers() -> dict[Callable[..., Any], Handler]:
    linear = [
        *functions.SUMS,
        *functions.MOVES,
        *functions.MOVES_LIKE,
        *functions.CONCATENATIONS,
        *functions.ADDITIONS,
        *functions.ELEMENTWISE,
        *functions.NORMALIZATIONS,
    ]
    weighted = [*functions.CONVOLUTIONS, *functions.LINEAR, *functions.DIVISIONS]
    nonlinear = [
        *functions.RECTIFIERS,
        *functions.ACTIVATIONS,
        *functions.ODD_ACTIVATIONS,
        *functions.CLIPS,
        *functions.GATES,
    ]
    table: dict[Handler, list[Callable[..., Any]]] = {
        _linear: linear,
        _of_one: weighted,
        _nonlinear: nonlinear,
        _multiplied: functions.PRODUCTS,
        _pooled: functions.MAXIMA,
        _coupled: [
            *functions.LAYER_NORMALIZATIONS,
            *functions.GROUP_NORMALIZATIONS,
            *functions.RMS_NORMALIZATIONS,
            *functions.SOFTMAXES,
            *functions.ATTENTIONS,
            *functions.MULTI_HEAD_ATTENTIONS,
        ],
    }
    return {function: handler for handler, functions in table.items() for function in functions}


def _linear(call: Call) -> tuple[Any, None]:
    return call.run(), None


def _of_one(call: Call) -> tuple[Any, None]:
    if len(call.on_path) > 1 or call.on_path[0] is not call.argument(0, "input"):
        raise call.refusal("expected one argument that depends on the image, the first: of others it has no rule.")
    return call.run(), None


def _nonlinear(call: Call) -> tuple[Any, None]:
    inputs = call.argument(0, "input")
    if len(call.on_path) > 1:
        raise call.refusal("expected one argument that depends on the image: of others it has no rule.")
    native = _on_copy(call).run()
    slope, close = secant_slope(inputs.detach(), native.detach())
    return _overwritten(call, _Secant.apply(inputs, native, slope, close)), None


def _multiplied(call: Call) -> tuple[Any, None]:
    if len(call.on_path) == 1:
        return call.run(), None
    product = _on_copy(call).run().detach()
    return _overwritten(call, _Product.apply(*call.on_path, product)), None


def _pooled(call: Call) -> tuple[Any, None]:
    pooled = call.mapped(lambda one: _Divided.apply(one, _difference(one.detach()))).run()
    return _Weighed.apply(pooled), None


def _coupled(call: Call) -> tuple[Any, None]:
    raise call.refusal(
        "couples its inputs: the rescale rule's slope from the baseline belongs to a function of one number. "
        "`IntegratedGradients` is complete for any function."
    )


def _on_copy(call: Call) -> Call:
    """An in-place function overwrites a copy of its first argument."""
    first = call.argument(0, "input")
    return call.mapped(lambda one: one.clone() if one is first else one) if call.inplace else call


def _overwritten(call: Call, outputs: Tensor) -> Tensor:
    """In the end it overwrites the argument itself."""
    return call.argument(0, "input").copy_(outputs) if call.inplace else outputs


def _too_close(step: Tensor) -> Tensor:
    return step.abs() < max(_SMALLEST_STEP, torch.finfo(step.dtype).tiny)


def _difference(values: Tensor) -> Tensor:
    image, baseline = values.chunk(2)
    return image - baseline


def _for_images(multipliers: Tensor) -> Tensor:
    """Multipliers belong to the images; the baselines behind them have none."""
    return torch.cat([multipliers, torch.zeros_like(multipliers)])


class _Secant(torch.autograd.Function):
    """A nonlinearity whose multiplier is a slope, or its gradient where there is none."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, native: Tensor, slope: Tensor, close: Tensor) -> Tensor:
        ctx.slope, ctx.close = slope, close
        return native.clone()

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        above, _ = multipliers.chunk(2)
        return _for_images(above * ctx.slope), _for_images(above * ctx.close), None, None


class _Product(torch.autograd.Function):
    """A product of two: the difference is ``mean(b) (a - a0) + mean(a) (b - b0)``, exactly."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, product: Tensor) -> Tensor:
        ctx.means = [sum(one.chunk(2)) / 2 for one in (first, second)]
        return product.clone()

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> tuple[Tensor | None, ...]:
        above, _ = multipliers.chunk(2)
        first, second = ctx.means
        to_first = (above * second).sum_to_size(first.shape)
        return _for_images(to_first), _for_images((above * first).sum_to_size(second.shape)), None


class _Weighed(torch.autograd.Function):
    """Behind a maximum: what the image's winner exceeds the baseline's by, and what it falls short of it."""

    @staticmethod
    def forward(ctx: Any, pooled: Tensor) -> Tensor:
        image, baseline = pooled.chunk(2)
        larger = torch.maximum(image, baseline)
        ctx.differences = larger - baseline, image - larger
        return pooled.clone()

    @staticmethod
    def backward(ctx: Any, multipliers: Tensor) -> Tensor:
        above, _ = multipliers.chunk(2)
        return torch.cat([above * one for one in ctx.differences])


class _Divided(torch.autograd.Function):
    """Before a maximum: contributions of both winners become multipliers again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, step: Tensor) -> Tensor:
        ctx.step = step
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, contributions: Tensor) -> tuple[Tensor, None]:
        return _for_images(torch.where(_too_close(ctx.step), 0, sum(contributions.chunk(2)) / ctx.step)), None
