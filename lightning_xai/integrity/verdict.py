"""What a check can conclude, and the threshold above which it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Verdict(Enum):
    """What was found. None says that somebody meant harm: training can leave any of it behind.

    Example:
        >>> print(Verdict.LOGIT_SHIFT)
        logit shift
    """

    CLEAN = "raw and centred maps agree"
    """Without a reference: what the raw logits say of an image is what the classes' differences say."""
    MAPS_DIFFER = "raw and centred maps differ"
    """Without a reference: explain with a zero-sum score; an unaltered head can be the reason."""
    FALSE_GRADIENT = "false gradient"
    """Without a reference: the backward pass answers to one class otherwise than to all together."""
    UNCHANGED = "unchanged"
    """With a reference: logits, gradients and maps agree, to the precision of the dtype."""
    OTHER_CODE = "the code differs; its maps on the probes do not"
    """With a reference: unchanged on the probes, by code, hooks or autograd functions that may act on other images."""
    LOGIT_SHIFT = "logit shift"
    """A number that is the same for all classes moves the raw logits' maps; the softmax and zero-sum maps do not see
    it."""
    CHANGED = "changed"
    """With a reference: the classes' differences are others too, as after any further training."""

    @property
    def alarms(self) -> bool:
        """Whether ordinary training was not found to leave this behind."""
        return self in (Verdict.LOGIT_SHIFT, Verdict.FALSE_GRADIENT)

    def __str__(self) -> str:
        return self.value


class HasSuspicion(Protocol):
    """A result that sums itself up in one number."""

    @property
    def suspicion(self) -> float:
        """The number, in [0, 1]."""


@dataclass(frozen=True)
class Threshold:
    """From which suspicion on a check without a reference reports.

    On images whose raw and centred maps look different, unaltered networks were found to share up to 0.91 of the
    gradient: heads for sigmoids and for distances most, others up to 0.65 (``recipes/integrity_roc.py``). The
    default lies above. `calibrated_threshold` takes it from models of one's own.

    Attributes:
        value: The suspicion.
        clean_models: How many clean models it was taken from; 0 for the default.

    Example:
        >>> print(Threshold())
        0.95 (default)
    """

    value: float = 0.95
    clean_models: int = 0

    def __str__(self) -> str:
        source = f"from {self.clean_models} clean models" if self.clean_models else "default"
        return f"{self.value:.3g} ({source})"


def calibrated_threshold(inspections: Sequence[HasSuspicion], false_positive_rate: float = 0.05) -> Threshold:
    """The threshold that a further clean model exceeds with at most a stated probability.

    The ``ceil((n + 1)(1 - rate))``-th smallest suspicion of ``n`` clean models: the bound of split conformal
    prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005), which holds for any distribution if the
    new model is drawn as they were: same architectures, losses and data, same kind of probes and layer.

    Args:
        inspections: Results for models that are known to be clean; at least ``1 / rate - 1``.
        false_positive_rate: Probability of a false alarm, in (0, 1).

    Returns:
        The threshold.

    Raises:
        ValueError: If the rate is not in (0, 1), or there are too few models for it.

    Example:
        >>> from types import SimpleNamespace
        >>> clean = [SimpleNamespace(suspicion=value) for value in (0.01, 0.03, 0.02, 0.04)]
        >>> print(calibrated_threshold(clean, false_positive_rate=0.2))
        0.04 (from 4 clean models)
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"`false_positive_rate` expected a number in (0, 1), got {false_positive_rate}.")
    n = len(inspections)
    rank = math.ceil((n + 1) * (1 - false_positive_rate) - 1e-9)
    if rank > n:
        raise ValueError(
            f"`inspections` expected at least {math.ceil(1 / false_positive_rate - 1e-9) - 1} clean models for a false "
            f"positive rate of {false_positive_rate}, got {n}. Inspect more models, or ask for a higher rate."
        )
    return Threshold(sorted(one.suspicion for one in inspections)[rank - 1], n)
