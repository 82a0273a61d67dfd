"""Schedules: the weight lambda of the training term as a function of the optimizer step.

A schedule is any function ``step -> weight`` with a Python float as result. Steps count from 0. The classes here are
frozen dataclasses with plain fields, so that a LightningCLI file can name them by ``class_path`` and ``init_args``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

from lightning_xai.kinds import fits, require_number

Schedule: TypeAlias = Callable[[int], float]
"""The weight lambda, 0 or more, at an optimizer step: ``step -> weight``."""


@dataclass(frozen=True)
class ConstantWeight:
    """The same weight at every step.

    Args:
        value: The weight, 0 or more.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> ConstantWeight(0.3)(1000)
        0.3
    """

    value: float

    def __post_init__(self) -> None:
        _require_weight("value", self.value)

    def __call__(self, step: int) -> float:
        """The weight at an optimizer step."""
        return float(self.value)


@dataclass(frozen=True)
class LinearWarmup:
    """From 0 at step 0 in a straight line to ``value`` at step ``steps``, constant after.

    Early in training the term can be unstable: the gradients it aligns are those of an untrained network.

    Args:
        value: The final weight, 0 or more.
        steps: Length of the warm-up in optimizer steps, 1 or more.

    Raises:
        ValueError: If the weight is negative or not finite, or if there is less than one step.

    Example:
        >>> schedule = LinearWarmup(0.5, steps=100)
        >>> [schedule(step) for step in (0, 50, 100, 1000)]
        [0.0, 0.25, 0.5, 0.5]
    """

    value: float
    steps: int

    def __post_init__(self) -> None:
        _require_weight("value", self.value)
        _require_steps(self.steps)

    def __call__(self, step: int) -> float:
        """The weight at an optimizer step."""
        return self.value * min(1.0, step / self.steps)


def _require_weight(name: str, weight: float) -> None:
    require_number(name, weight)
    if not (isfinite(weight) and weight >= 0):
        raise ValueError(f"`{name}` expected a finite number of 0 or more, got {weight}.")


def _require_steps(steps: int) -> None:
    if not fits(steps, int) or steps < 1:
        raise ValueError(
            f"`steps` expected 1 or more, got {steps!r}. For a weight without a schedule use ConstantWeight."
        )
