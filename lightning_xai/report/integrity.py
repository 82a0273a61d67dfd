"""What checks for logit shifts said, as far as it was logged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_xai.integrity import figure_named
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import number_named
from lightning_xai.report.run_folder import Log


@dataclass(frozen=True)
class Checks:
    """The checks of one network.

    Attributes:
        name: Name of the network, and of the callback where it is not the usual one.
        flagged: Whether a check flagged the network.
        words: The verdict in a sentence.
        figures: Title, last value and meaning of each figure.
    """

    name: str
    flagged: bool
    words: str
    figures: list[tuple[str, float, str]]


def checks(logs: Sequence[tuple[str, Log]]) -> list[Checks]:
    """What `lightning_xai.callbacks.ModelIntegrity` logged, by network and stage.

    Example:
        >>> log = Log("", values={"val/xai/integrity/flagged": {0: 0.0, 48: 1.0}})
        >>> [one.words for one in checks([("", log)])]
        ['Flagged in 1 of 2 checks, first at step 48: ... not to be trusted.']
    """
    return [one for model, log in logs for one in _of(model, log)]


def _of(model: str, log: Log) -> Iterator[Checks]:
    for text, flags in log.values.items():
        key = LogKey.parse(text)
        if key is not None and key.metric == "flagged" and key.stage != "train":
            unusual = key.name * (key.name != "integrity"), key.stage * (key.stage != "val")
            beside = [one for one in log.own_values() if (one[0].stage, one[0].name) == (key.stage, key.name)]
            figures = {str(one.metric): values for one, values in beside}
            last = [
                (number.title, values[max(values)], number.meaning)
                for one, values in figures.items()
                if one != "flagged"
                for number in [figure_named(one) or number_named(one)]
            ]
            yield Checks(
                ", ".join(filter(None, (model, *unusual))),
                any(flags.values()),
                _words(flags, figures.get("suspicion", {})),
                last,
            )


def _words(flags: dict[int, float], suspicion: dict[int, float]) -> str:
    flagged = sorted(step for step, flag in flags.items() if flag)
    if flagged:
        return (
            f"Flagged in {len(flagged)} of {len(flags)} checks, first at step {flagged[0]}: a number was added to all "
            "logits, and maps of the raw logit are not to be trusted."
        )
    largest = f", suspicion {max(suspicion.values()):.3g} at most" if suspicion else ""
    return f"{len(flags)} checks up to step {max(flags)}{largest}."
