"""A weight of the training term that sets itself, by a budget on what the term may do to the classification loss.

"A Learning Paradigm for Interpretable Gradients", 2024, asks that lambda "be as high as possible, in the sense of not
causing an increase of the classification loss". The budget here is read off the gradients of the two parts at the
parameters, so that no second training is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, inf, isfinite, log, sqrt
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_xai.kinds import require_count, require_kinds


@dataclass(frozen=True)
class GradientProducts:
    """Inner products of the gradients of ``L_C`` and ``L_R`` at all trained parameters.

    Attributes:
        classification: ``|grad L_C|^2``.
        regularization: ``|grad L_R|^2``.
        inner: ``<grad L_C, grad L_R>``.

    Example:
        >>> GradientProducts(4.0, 1.0, -1.0).cosine
        -0.5
    """

    classification: float
    regularization: float
    inner: float

    @property
    def usable(self) -> bool:
        """Whether both gradients are finite and not zero."""
        sizes = self.classification, self.regularization
        return isfinite(self.inner) and all(isfinite(one) and one > 0 for one in sizes)

    @property
    def cosine(self) -> float:
        """Between the two gradients, in [-1, 1]; NaN where one is zero or not finite."""
        return self.inner / sqrt(self.classification) / sqrt(self.regularization) if self.usable else float("nan")

    @property
    def norm_ratio(self) -> float:
        """``|grad L_R| / |grad L_C|``, 0 or more; NaN where one is zero or not finite."""
        return sqrt(self.regularization) / sqrt(self.classification) if self.usable else float("nan")


Budget: TypeAlias = Callable[[GradientProducts], float]
"""The highest weight that the budget allows, ``inf`` for any: ``products -> lambda``, of usable products."""


@dataclass(frozen=True)
class GradientShare:
    """The term's gradient may have this share of the size of the classification gradient.

    ``lambda |grad L_R| <= share |grad L_C|``. Below 1 every step still lowers ``L_C`` to first order, whatever the
    angle between the two.

    Args:
        share: The share, above 0.

    Raises:
        ValueError: If it is not.

    Example:
        >>> GradientShare(0.5)(GradientProducts(16.0, 1.0, 0.0))
        2.0
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not (isfinite(self.share) and self.share > 0):
            raise ValueError(f"`share` expected a finite number above 0, got {self.share}.")

    def __call__(self, products: GradientProducts) -> float:
        """The highest weight for products of gradients."""
        return self.share / products.norm_ratio


class AdaptiveWeight(nn.Module):
    """The weight lambda that a budget allows, measured while training.

    Every ``every_n_steps`` optimizer steps the gradients of both parts are taken at the trained parameters and the
    budget names the highest weight; lambda follows it, as an exponential mean of logarithms within ``bounds``, in about
    ``every_n_steps / (1 - smoothing)`` steps, 200 by default: in a short training ``start`` matters. A measurement in
    which a gradient is zero or not finite is passed over. Costs a backward pass of each part in such a
    step, counted in convolutions two plain steps: a tenth of a plain step in the mean of 20.

    The gradients are those of a batch, with its noise. Several processes (torch.distributed) take the mean of what each
    measures on its share, so that all have the same weight. Give it to ``GuidedGradientLoss(weight=...)``; its state
    is in the checkpoint. With ``every_n_steps`` of the loss the budget holds for the mean step.

    Args:
        budget: `GradientShare` or another function of the products.
        start: The first weight, within the bounds.
        bounds: Lowest and highest weight, both above 0: at 0 nothing could be measured.
        smoothing: Share of the old logarithm in the new one, in [0, 1).
        every_n_steps: Steps from one measurement to the next.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of its range.

    Example:
        >>> weight = AdaptiveWeight(GradientShare(0.5), start=1.0, smoothing=0.5)
        >>> parameter = Parameter(torch.tensor([2.0]))
        >>> weight.measure(0, (parameter * 16).sum(), parameter.square().sum() / 2, [parameter])
        GradientProducts(classification=256.0, regularization=4.0, inner=32.0)
        >>> weight(0)  # the mean of log 1 and log(0.5 * 16 / 2)
        2.0
    """

    def __init__(
        self,
        budget: Budget,
        *,
        start: float = 7.5e-3,
        bounds: tuple[float, float] = (1e-5, 10.0),
        smoothing: float = 0.9,
        every_n_steps: int = 20,
    ) -> None:
        super().__init__()
        require_kinds(AdaptiveWeight.__init__, budget=budget, start=start, bounds=bounds, smoothing=smoothing)
        require_count("every_n_steps", every_n_steps)
        low, high = bounds
        if not 0 < low <= start <= high < inf:
            raise ValueError(f"`bounds` expected 0 < low <= start <= high, got {bounds} and start {start}.")
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` expected a number in [0, 1), got {smoothing}.")
        self.budget = budget
        self.bounds = bounds
        self.smoothing = smoothing
        self.every_n_steps = every_n_steps
        self._log_weight = log(start)
        self._measured = -every_n_steps

    def forward(self, step: int) -> float:
        """The weight at an optimizer step."""
        return exp(self._log_weight)

    def measure(
        self, step: int, classification: Tensor, regularization: Tensor, parameters: Iterable[Parameter]
    ) -> GradientProducts | None:
        """Follow the budget, if it is time."""
        if 0 <= step - self._measured < self.every_n_steps:  # accumulated batches share a step; a new fit starts at 0
            return None
        self._measured = step
        products = gradient_products(classification, regularization, parameters)
        if products.usable:
            low, high = self.bounds
            allowed = log(min(max(self.budget(products), low), high))
            self._log_weight = self.smoothing * self._log_weight + (1 - self.smoothing) * allowed
        return products

    # Kept as numbers and not as buffers: reading a buffer waits for the GPU in each step, and a Trainer in half
    # precision would round it. The state is a tensor, as averages of state dicts expect.
    def get_extra_state(self) -> Tensor:
        """Logarithm of the weight and step of the last measurement, (2,)."""
        return torch.tensor([self._log_weight, self._measured], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self._log_weight, measured = state.tolist()
        self._measured = int(measured)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.budget}, bounds={self.bounds}, smoothing={self.smoothing}, every_n_steps={self.every_n_steps}"


def gradient_products(
    classification: Tensor, regularization: Tensor, parameters: Iterable[Parameter]
) -> GradientProducts:
    """Inner products of the gradients of two losses; of several processes, the means over processes.

    Example:
        >>> x = Parameter(torch.tensor([1.0, 2.0]))
        >>> gradient_products(x.sum(), x.square().sum() / 2, [x])
        GradientProducts(classification=2.0, regularization=5.0, inner=3.0)
    """
    trained = list(parameters)
    first, second = (
        torch.cat([one.flatten().double() for one in _gradients(loss, trained)])
        for loss in (classification, regularization)
    )
    products = torch.stack([first @ first, second @ second, first @ second])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(products)
        products /= dist.get_world_size()
    return GradientProducts(*products.tolist())


def _gradients(loss: Tensor, parameters: list[Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
