"""Schedules: the weight lambda of the training term as a function of the optimizer step.

A schedule is any function ``step -> weight`` with a Python float as result. Steps count from 0. The classes here are
frozen dataclasses with plain fields, so that a LightningCLI file can name them by ``class_path`` and ``init_args``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import TypeAlias

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


@dataclass(frozen=True)
class CosineWeight:
    """From ``start`` at step 0 along half a cosine to ``end`` at step ``steps``, constant after; up or down.

    Args:
        start: The first weight, 0 or more.
        end: The final weight, 0 or more.
        steps: Length of the way in optimizer steps, 1 or more.

    Raises:
        ValueError: If a weight is negative or not finite, or if there is less than one step.

    Example:
        >>> schedule = CosineWeight(1.0, 0.0, steps=100)
        >>> [schedule(step) for step in (0, 50, 100, 1000)]
        [1.0, 0.5, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _require_weight("start", self.start)
        _require_weight("end", self.end)
        _require_steps(self.steps)

    def __call__(self, step: int) -> float:
        """The weight at an optimizer step."""
        way = (1 - cos(pi * min(1.0, step / self.steps))) / 2
        return (1 - way) * self.start + way * self.end


@dataclass(frozen=True)
class StepWeight:
    """``value``, multiplied by ``gamma`` at each milestone.

    Args:
        value: The first weight, 0 or more.
        milestones: Optimizer steps from which on the weight is multiplied once more, increasing, 1 or more.
        gamma: The factor, 0 or more: below 1 the weight falls, above 1 it grows, 0 switches the term off.

    Raises:
        ValueError: If the weight or the factor is negative or not finite, or if the milestones do not increase.

    Example:
        >>> schedule = StepWeight(1.0, milestones=(100, 200), gamma=0.5)
        >>> [schedule(step) for step in (0, 99, 100, 200)]
        [1.0, 1.0, 0.5, 0.25]
    """

    value: float
    milestones: tuple[int, ...]
    gamma: float

    def __post_init__(self) -> None:
        _require_weight("value", self.value)
        _require_weight("gamma", self.gamma)
        earlier = (0, *self.milestones)
        if any(milestone <= before for before, milestone in zip(earlier, self.milestones, strict=False)):
            raise ValueError(f"`milestones` expected increasing steps of 1 or more, got {tuple(self.milestones)}.")

    def __call__(self, step: int) -> float:
        """The weight at an optimizer step."""
        return float(self.value * self.gamma ** sum(step >= milestone for milestone in self.milestones))


def _require_weight(name: str, weight: float) -> None:
    if not (isfinite(weight) and weight >= 0):
        raise ValueError(f"`{name}` expected a finite number of 0 or more, got {weight}.")


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(
            f"`steps` expected 1 or more, got {steps}. For a weight without a schedule use ConstantWeight."
        )
