"""How often honest classifiers are accused, and which edits are found: by definition, and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from lightning_xai import GradCAM, HiResCAM, explain
from lightning_xai.integrity import Fingerprint, Verdict, inspect_model
from lightning_xai.ranks import rank_correlation
from lightning_xai.report import Table
from lightning_xai.scores import pre_softmax
from papers.logit_shift.honest import Honest
from papers.logit_shift.maps import layer_in
from papers.logit_shift.red_team import edits_of

MOVED = 0.1
"""One minus the rank correlation with the honest raw map, before any ReLU, above which an edit moved it."""


@dataclass
class Check:
    """One check of one model.

    Attributes:
        model: Its name.
        kind: Of the honest models.
        classes: Number of classes.
        layer: Where it was checked.
        edit: What the red team did; empty for the honest model.
        verdict: Of the check without a reference.
        suspicion: What the verdict rests on.
        worst: Disagreement of raw and centred maps, of any probe.
        stands_apart: Which score's maps do, where they differ.
        moved: One minus the rank correlation with the honest model's raw map, of any probe.
        was_clean: Whether the honest model was.
        against_reference: Verdict with the honest model's fingerprint.
    """

    model: str
    kind: str
    classes: int
    layer: str
    edit: str
    verdict: str
    suspicion: float
    worst: float
    stands_apart: str | None
    moved: float | None = None
    was_clean: bool | None = None
    against_reference: str | None = None


def checks(honest: Honest, *, attacked: bool) -> list[Check]:
    """The honest model at each layer, and at the first one all its edits."""
    model, images, layer = honest.subject.network, honest.images, honest.layers[0]
    found = [_check(honest, one, "", model) for one in honest.layers]
    if not attacked:
        return found
    fingerprint = Fingerprint.of(model, images, layer=layer)
    before = raw_maps(model, images, layer)
    for name, altered in edits_of(model, layer, images):
        here = layer_in(altered, layer)
        one, after = _check(honest, here, name, altered), raw_maps(altered, images, here)
        one.moved = max(float(1 - rank_correlation(before[name], after[name]).nan_to_num(0).min()) for name in before)
        one.was_clean = found[0].verdict == Verdict.CLEAN.name
        one.against_reference = fingerprint.compare(altered, images, layer=here).verdict.name
        found.append(one)
    return found


def raw_maps(model: nn.Module, images: Tensor, layer: str) -> dict[str, Tensor]:
    """Grad-CAM and HiResCAM of the raw logit, before any ReLU."""
    methods = {"Grad-CAM": GradCAM(layer, relu=False), "HiResCAM": HiResCAM(layer, relu=False)}
    return explain(model, images, attributions=methods, score=pre_softmax)


def _check(honest: Honest, layer: str, edit: str, model: nn.Module) -> Check:
    inspection = inspect_model(model, honest.images, layer=layer)
    return Check(
        honest.subject.name,
        honest.kind,
        honest.subject.predict(honest.images[:1]).shape[1],
        layer,
        edit,
        inspection.verdict.name,
        inspection.suspicion,
        float(inspection.worst.max()),
        inspection.stands_apart,
    )


def proportion(hits: int, n: int) -> dict[str, float] | None:
    """A share in percent with the interval of Clopper and Pearson, which is exact for independent trials.

    Example:
        >>> proportion(0, 1)
        {'mean': 0.0, 'low': 0.0, 'high': 97.5}
    """
    if not n:
        return None
    low, high = binomtest(hits, n).proportion_ci(method="exact")
    return {name: round(100 * value, 2) for name, value in {"mean": hits / n, "low": low, "high": high}.items()}


def honest_rows(found: Sequence[Check]) -> list[dict[str, Any]]:
    """False alarms by number of classes, of all, and by kind."""
    honest = [one for one in found if not one.edit]
    groups = {f"{k} classes": [c for c in honest if c.classes == k] for k in sorted({c.classes for c in honest})}
    groups |= {"all": honest} | {
        kind: [c for c in honest if c.kind == kind] for kind in dict.fromkeys(c.kind for c in honest)
    }
    return [{"honest": name, **_counted(chosen)} for name, chosen in groups.items()]


def _counted(chosen: Sequence[Check]) -> dict[str, Any]:
    verdicts = Counter(one.verdict for one in chosen)
    accused = sum(Verdict[one.verdict].alarms for one in chosen)
    return {
        "checks": len(chosen),
        "accused": accused,
        "accused, %": proportion(accused, len(chosen)),
        "maps differ": verdicts[Verdict.MAPS_DIFFER.name],
        "clean": verdicts[Verdict.CLEAN.name],
        "largest suspicion": round(max(one.suspicion for one in chosen), 3),
    }


def edit_rows(found: Sequence[Check]) -> list[dict[str, Any]]:
    """What became of each edit: by definition, and measured."""
    honest = [one for one in found if not one.edit]
    names = dict.fromkeys(one.edit for one in found if one.edit)
    return [_edit_row(name, [one for one in found if one.edit == name], honest) for name in names]


def _edit_row(name: str, these: list[Check], honest: list[Check]) -> dict[str, Any]:
    moved = [one for one in these if one.moved is not None and one.moved > MOVED]
    passed = [one for one in moved if one.verdict == Verdict.CLEAN.name]
    accused = sum(Verdict[one.verdict].alarms for one in moved)
    told = sum(one.against_reference != Verdict.UNCHANGED.name for one in these)
    scores = torch.tensor([one.suspicion for one in (*these, *honest)])
    labels = torch.tensor([1] * len(these) + [0] * len(honest))
    return {
        "edit": name,
        "n": len(these),
        "moved a map": len(moved),
        "by definition 0: moved, called clean": sum(bool(one.was_clean) for one in passed),
        "moved towards the centred map": sum(not one.was_clean for one in passed),
        "moved, maps differ": len(moved) - len(passed) - accused,
        "moved, accused, %": proportion(accused, len(moved)),
        "the centred score stands apart": sum(one.stands_apart == "centred score" for one in these),
        "AUC of the suspicion": round(binary_auroc(scores, labels).item(), 3),
        "told with a reference, %": proportion(told, len(these)),
    }


def training_rows(trainings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Honest trainings by number of classes: how many were let through, and how near to an alarm they came."""
    rows: list[dict[str, Any]] = []
    for classes in dict.fromkeys(one["classes"] for one in trainings):
        these = [one for one in trainings if one["classes"] == classes]
        through = sum(one["error"] is None for one in these)
        rows.append(
            {
                "trained": f"{classes} classes",
                "n": len(these),
                "checks": sum(one["checks"] for one in these),
                "let through": through,
                "let through, %": proportion(through, len(these)),
                "largest suspicion": max(one["suspicion"] for one in these),
            }
        )
    return rows


def table(title: str, rows: Sequence[dict[str, Any]], caption: str = "") -> Table:
    """Rows with the same names as a table."""
    return Table(title, ["", *list(rows[0])[1:]], [list(row.values()) for row in rows], caption, 2)
