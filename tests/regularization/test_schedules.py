"""Schedules: tables of steps and weights, errors, and their use from LightningCLI files."""

import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
from jsonargparse import auto_cli

from lightning_xai.regularization.schedules import ConstantWeight, LinearWarmup, Schedule

TABLE = [
    (ConstantWeight(0.3), {0: 0.3, 7: 0.3, 10**6: 0.3}),
    (ConstantWeight(0), {0: 0.0}),
    (LinearWarmup(2, steps=4), {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 2.0, 10**6: 2.0}),
    (LinearWarmup(0.3, steps=1), {0: 0.0, 1: 0.3, 2: 0.3}),
]


@pytest.mark.parametrize(("schedule", "weights"), TABLE, ids=lambda value: str(value) if callable(value) else "")
def test_schedule_gives_the_weights_of_the_table(schedule: Schedule, weights: dict[int, float]) -> None:
    """Weights at the steps where they change, before and after."""
    assert {step: schedule(step) for step in weights} == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize(("schedule", "weights"), TABLE, ids=lambda value: str(value) if callable(value) else "")
def test_schedule_gives_python_floats(schedule: Schedule, weights: dict[int, float]) -> None:
    """Also where its fields are integers."""
    assert {type(schedule(step)) for step in weights} == {float}


def test_end_of_the_way_is_exact() -> None:
    """The last weight is the one that was asked for, not one rounding away from it."""
    assert LinearWarmup(0.3, 7)(49) == LinearWarmup(0.3, 49)(49) == 0.3


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("value", ConstantWeight),
        ("value", lambda wrong: LinearWarmup(wrong, 10)),
    ],
)
def test_negative_and_non_finite_weights_are_refused(
    name: str, make: Callable[[float], Schedule], wrong: float
) -> None:
    """A negative weight would train the gradients apart."""
    with pytest.raises(ValueError, match=f"`{name}` expected a finite number of 0 or more, got {wrong}"):
        make(wrong)


@pytest.mark.parametrize("steps", [0, -5])
def test_less_than_one_step_is_refused(steps: int) -> None:
    """There is no way of length zero; the remedy is named."""
    with pytest.raises(ValueError, match=f"`steps` expected 1 or more, got {steps}. .* use ConstantWeight"):
        LinearWarmup(1.0, steps)


def test_schedules_are_frozen_values() -> None:
    """Equal by their fields, not to be written to, and picklable."""
    schedule = LinearWarmup(1.0, 10)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(schedule) == hash(LinearWarmup(1.0, 10))
    with pytest.raises(FrozenInstanceError):
        schedule.value = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("expected", "init_args"),
    [
        (ConstantWeight(0.5), {"value": 0.5}),
        (LinearWarmup(0.5, 10), {"value": 0.5, "steps": 10}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedule_can_be_named_in_a_cli_file(expected: Schedule, init_args: dict[str, object]) -> None:
    """By class path and init_args, where the option takes a number or a schedule."""
    class_path = f"lightning_xai.regularization.schedules.{type(expected).__name__}"
    text = json.dumps({"class_path": class_path, "init_args": init_args})
    assert auto_cli(_weight, args=[text]) == expected


def _weight(weight: float | Schedule) -> float | Schedule:
    return weight
