"""Schedules: tables of steps and weights, errors, and their use from LightningCLI files."""

import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
from jsonargparse import auto_cli

from lightning_xai.regularization.schedules import ConstantWeight, CosineWeight, LinearWarmup, Schedule, StepWeight

TABLE = [
    (ConstantWeight(0.3), {0: 0.3, 7: 0.3, 10**6: 0.3}),
    (ConstantWeight(0), {0: 0.0}),
    (LinearWarmup(2, steps=4), {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 2.0, 10**6: 2.0}),
    (LinearWarmup(0.3, steps=1), {0: 0.0, 1: 0.3, 2: 0.3}),
    (CosineWeight(0.0, 1.0, steps=6), {0: 0.0, 1: 0.0669873, 2: 0.25, 3: 0.5, 4: 0.75, 5: 0.9330127, 6: 1.0, 7: 1.0}),
    (CosineWeight(1, 0.2, steps=6), {0: 1.0, 2: 0.8, 3: 0.6, 4: 0.4, 6: 0.2, 10**6: 0.2}),
    (StepWeight(0.8, milestones=(10, 20), gamma=0.5), {0: 0.8, 9: 0.8, 10: 0.4, 19: 0.4, 20: 0.2, 10**6: 0.2}),
    (StepWeight(1, milestones=(5,), gamma=0), {4: 1.0, 5: 0.0, 6: 0.0}),
    (StepWeight(1, milestones=(), gamma=0.1), {0: 1.0, 100: 1.0}),
]


@pytest.mark.parametrize(("schedule", "weights"), TABLE, ids=lambda value: str(value) if callable(value) else "")
def test_schedule_gives_the_weights_of_the_table(schedule: Schedule, weights: dict[int, float]) -> None:
    """Weights at the steps where they change, before and after."""
    assert {step: schedule(step) for step in weights} == pytest.approx(weights, rel=1e-6)


@pytest.mark.parametrize(("schedule", "weights"), TABLE, ids=lambda value: str(value) if callable(value) else "")
def test_schedule_gives_python_floats(schedule: Schedule, weights: dict[int, float]) -> None:
    """Also where its fields are integers."""
    assert {type(schedule(step)) for step in weights} == {float}


@pytest.mark.parametrize("schedule", [LinearWarmup(0.3, 7), CosineWeight(1.1, 0.3, 7), CosineWeight(0.0, 0.3, 49)])
def test_end_of_the_way_is_exact(schedule: Schedule) -> None:
    """The last weight is the one that was asked for, not one rounding away from it."""
    assert schedule(49) == 0.3


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("value", ConstantWeight),
        ("value", lambda wrong: LinearWarmup(wrong, 10)),
        ("start", lambda wrong: CosineWeight(wrong, 1.0, 10)),
        ("end", lambda wrong: CosineWeight(1.0, wrong, 10)),
        ("value", lambda wrong: StepWeight(wrong, (10,), 0.5)),
        ("gamma", lambda wrong: StepWeight(1.0, (10,), wrong)),
    ],
)
def test_negative_and_non_finite_weights_are_refused(
    name: str, make: Callable[[float], Schedule], wrong: float
) -> None:
    """A negative weight would train the gradients apart."""
    with pytest.raises(ValueError, match=f"`{name}` expected a finite number of 0 or more, got {wrong}"):
        make(wrong)


@pytest.mark.parametrize("steps", [0, -5])
@pytest.mark.parametrize("make", [lambda steps: LinearWarmup(1.0, steps), lambda steps: CosineWeight(0.0, 1.0, steps)])
def test_less_than_one_step_is_refused(make: Callable[[int], Schedule], steps: int) -> None:
    """There is no way of length zero; the remedy is named."""
    with pytest.raises(ValueError, match=f"`steps` expected 1 or more, got {steps}. .* use ConstantWeight"):
        make(steps)


@pytest.mark.parametrize("milestones", [(20, 10), (10, 10), (0, 10), (-1,)])
def test_milestones_that_do_not_increase_are_refused(milestones: tuple[int, ...]) -> None:
    """Nor may the first be step 0, where it would be a part of the value."""
    with pytest.raises(ValueError, match=r"`milestones` expected increasing steps of 1 or more, got \("):
        StepWeight(1.0, milestones, 0.5)


def test_schedules_are_frozen_values() -> None:
    """Equal by their fields, not to be written to, and picklable."""
    schedule = StepWeight(1.0, (10, 20), 0.5)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(schedule) == hash(StepWeight(1.0, (10, 20), 0.5))
    with pytest.raises(FrozenInstanceError):
        schedule.value = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("expected", "init_args"),
    [
        (ConstantWeight(0.5), {"value": 0.5}),
        (LinearWarmup(0.5, 10), {"value": 0.5, "steps": 10}),
        (CosineWeight(0.0, 0.5, 10), {"start": 0.0, "end": 0.5, "steps": 10}),
        (StepWeight(0.5, (10, 20), 0.1), {"value": 0.5, "milestones": [10, 20], "gamma": 0.1}),
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
