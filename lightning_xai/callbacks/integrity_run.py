"""What `ModelIntegrity` knows of the run that is under way: one state, one outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import pytorch_lightning as pl

from lightning_xai.callbacks.integrity_check import IntegrityCheck
from lightning_xai.callbacks.integrity_finding import Finding
from lightning_xai.callbacks.probes import Probes
from lightning_xai.trace import plain_tensors


class Phase(Enum):
    """Where the validation that is under way stands."""

    NOT_DUE = auto()
    DUE = auto()
    CHECKED = auto()


@dataclass
class Outcome:
    """What all ranks are told of a check that rank zero made.

    Attributes:
        figures: What is logged.
        alarm: What is said of a flagged model.
        trouble: Why the check could not be made.
        failure: What the user's function raised.
    """

    figures: dict[str, float] = field(default_factory=dict)
    alarm: str | None = None
    trouble: str | None = None
    failure: str | None = None


@dataclass
class IntegrityRun:
    """The state of one run.

    Attributes:
        probes: The images that are judged.
        check: What judges them.
        phase: Where the validation that is under way stands.
        validations: How many there were, the sanity check aside.
        started: Whether the weights that training starts from were checked.
        checked_at: The step of the last check.
        flagged: Whether the model was flagged at least once.
        outcome: Of the last check.

    Example:
        >>> run = IntegrityRun(Probes(8), IntegrityCheck())
        >>> run.validation_begins(rehearsal=False, every=2)
        >>> run.phase.name
        'NOT_DUE'
    """

    probes: Probes
    check: IntegrityCheck
    phase: Phase = Phase.NOT_DUE
    validations: int = 0
    started: bool = False
    checked_at: int | None = None
    flagged: bool = False
    outcome: Outcome = field(default_factory=Outcome)

    def validation_begins(self, *, rehearsal: bool, every: int) -> None:
        """Decide whether a validation is one of those that are checked.

        Args:
            rehearsal: Whether it is the sanity check.
            every: Of how many validations one is checked.
        """
        self.probes.restart()
        self.validations += not rehearsal
        self.phase = Phase.NOT_DUE if rehearsal or self.validations % every else Phase.DUE


def attempt(work: Callable[[], Finding]) -> tuple[Finding | None, Exception | None]:
    """What the work gives, or why it could not be done: no check, whatever hinders it, is worth the end of a run."""
    try:
        with plain_tensors():
            return work(), None
    except Exception as error:
        return None, error


def call_action(action: Any, outcome: Outcome, finding: Finding | None) -> Exception | None:
    """Hand a flagged model's finding to the user's function; what it raised is part of the outcome, too."""
    if outcome.alarm and finding is not None and callable(action):
        try:
            action(finding)
        except Exception as error:
            outcome.failure = f"{type(error).__name__}: {error}"
            return error
    return None


def is_untrained(trainer: pl.Trainer) -> bool:
    """Whether nobody trained yet: what there is to say of a fresh head is that it is fresh."""
    return trainer.state.fn == "fit" and trainer.global_step == 0
