"""How often honest models are accused by the check of their logits, and which edits it finds: measured, not defined.

    python recipes/integrity_roc.py                     # networks trained here on generated images
    python recipes/integrity_roc.py --data DIR          # linear probes, tuned and given weights, ImageNet's too
    python recipes/integrity_roc.py --data DIR --only probes    # one group; more later, with --resume
    python recipes/integrity_roc.py --data DIR --only scores    # centred score or log-odds, as the default?

Data: nothing, or a folder with ``weights/cifar10_resnet20.safetensors``, ``cifar10_resnet44``,
``imagenet_squeezenet1_1`` and ``imagenet_mobilenetv1_075_fp16``, ``cifar10_train.npz``, ``cifar10_test.npz`` (JPEG
files end to end as ``jpeg``, ``offsets``, ``labels``) and photographs in ``imagenet/val/*/*.JPEG``.
Output: tables on the screen, and a run folder with ``results.json`` (every check) and ``report.html``.

Two kinds of statements are kept apart. By definition: a model is called clean where raw and centred maps have a rank
correlation of at least 0.975 on every probe, so that no edit of a model that was clean moved a map under 0.9 and is
called clean; the column "by definition 0" tests the program. Measured: how often an honest model is accused (a logit
shift or a false gradient), by number of classes with 95 % intervals (Clopper and Pearson, as if checks were
independent; networks share data and some their features), and how often an edit that moved a map is. What is neither
clean nor accused is told as "maps differ".

Besides: honest trainings under ``ModelIntegrity(action="raise")``. On its own (``--only scores``, with ``--data``):
what speaks for the centred score and for the log-odds as the default.

Expected with ``--data``: none of 824 checks of honest models accused (0 to 0.45 %; of 274 with two classes 0 to 1.3 %),
40 of 40 trainings let through; strong shifts and lying backward passes accused on all of 81 models, shifts of a third
of the gradient and less told as maps that differ. Ten minutes of one quiet CPU core.
"""

from __future__ import annotations

import common.threads  # noqa: F401

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal

from common.options import RunOptions, option, parsed
from common.run import Run
from lightning_xai.integrity import OneClassError
from lightning_xai.report import Results
from papers.logit_shift.honest import CLASSES, Honest, photos, probes, real, small, source, tuned
from papers.logit_shift.rates import Check, checks, edit_rows, honest_rows, table, training_rows
from papers.logit_shift.score_default import score_rows
from papers.logit_shift.trainings import guarded

ATTACKED = 10
"""One honest model in so many is attacked, too."""
SCORED = {"real": 200, "photos": 40}
"""Images with which the scores are compared."""
GROUPS: dict[str, Callable[..., Iterator[Honest]]] = {"probes": probes, "tuned": tuned, "real": real, "photos": photos}


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    run: RunOptions = RunOptions(Path("runs/integrity_roc"))
    data: Path | None = option(None, "folder with weights and images; without it, networks trained here")
    only: Literal["small", "probes", "tuned", "real", "photos", "trainings", "scores"] | None = option(
        None, "one group of models"
    )
    trainings: int = option(10, "guarded trainings for each number of classes")

    def __post_init__(self) -> None:
        if self.data is None and self.only in (*GROUPS, "scores"):
            raise ValueError(f"--only {self.only} expected --data")


def checked(models: Iterator[Honest]) -> list[dict[str, Any]]:
    """All checks of some honest models, and of the edits of some of them."""
    found: list[Check] = []
    for i, honest in enumerate(models):
        with suppress(OneClassError):  # a network that prefers one class is not checked, as no user's is
            found += checks(honest, attacked=i % ATTACKED == 0)
    return [asdict(one) for one in found]


def all_checks(run: Run, settings: Settings) -> list[Check]:
    """Those of every group that is wanted or was finished before."""
    if settings.only in ("trainings", "scores"):
        return []
    few = 1 if settings.run.fast_dev_run else None
    groups = {"small": lambda: small(settings.data, 20 if few else 80)}
    if settings.data is not None:
        groups |= {name: partial(make, settings.data) for name, make in GROUPS.items()}
    for name, models in groups.items():
        if settings.only in (None, name):
            run.part(name, lambda models=models: checked(islice(models(), few)))  # type: ignore[misc]
    return [Check(**one) for name in groups if run.has(name) for one in run.part(name, list)]


def all_trainings(run: Run, settings: Settings) -> list[dict[str, Any]]:
    """Each is a part of the run."""
    if settings.only not in (None, "trainings"):
        return []
    few = settings.run.fast_dev_run
    train, val = source(settings.data, "train", 640 if few else 1280), source(settings.data, "test", 400)
    todo = [(2, 0)] if few else list(product(CLASSES, range(settings.trainings)))
    epochs = 1 if few else 3
    return run.parts("trainings", todo, lambda one: guarded(train, val, *one, epochs))


def all_scores(run: Run, settings: Settings) -> list[dict[str, Any]]:
    """Of the four given networks."""
    if settings.only != "scores":
        return []
    found: list[dict[str, Any]] = []
    for group, n in SCORED.items():
        for honest in islice(GROUPS[group](settings.data, n), 2):
            found += run.part(f"scores_{honest.subject.name}", partial(score_rows, honest))
    return found


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    settings = parsed(Settings, __doc__, arguments)
    run = Run(settings.run, settings, free=("only",))
    found, trainings, scores = all_checks(run, settings), all_trainings(run, settings), all_scores(run, settings)
    honest, edits = (honest_rows(found), edit_rows(found)) if found else ([], [])
    guards = training_rows(trainings)
    titles = {
        "Honest models": honest,
        "Edits: what is found of those that moved a raw map of any probe under 0.9": edits,
        'Honest trainings under ModelIntegrity(action="raise")': guards,
        "The centred score and the log-odds as the default": scores,
    }
    n_honest = sum(not one.edit for one in found)
    summary = (
        f"{n_honest} checks of honest models, {len(found) - n_honest} of edited ones; "
        f"{sum(one['error'] is None for one in trainings)} of {len(trainings)} honest trainings were let through."
    )
    if settings.only == "scores":
        summary = "Four given networks on images of CIFAR-10 and of ImageNet; the attack acts on unlikely classes."
    tables = [table(title, rows) for title, rows in titles.items() if rows]
    values = {"checks": [*map(asdict, found)], "trainings": trainings, "scores": scores}
    return run.finish("Honest and edited logits", summary, tables, values=values)


if __name__ == "__main__":
    main()
