"""Which score should be the default: the centred logit or the log-odds? Maps that metrics like, against an attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lightning_xai as xai
from common.subject import Subject
from common.tables import interval
from lightning_xai.metrics import average_drop, average_gain, compare, masked_scores
from lightning_xai.ranks import rank_correlation
from lightning_xai.types import Score
from papers.logit_shift.honest import Honest
from papers.logit_shift.maps import AT_IMAGE, AT_LAYER
from papers.logit_shift.red_team import Edited, off_unlikely

SCORES: dict[str, Score] = {"centred": xai.scores.centered, "log-odds": xai.scores.log_odds}
METHODS = {name: (AT_LAYER | AT_IMAGE)[name] for name in ("Grad-CAM", "HiResCAM", "LayerCAM", "input gradient")}


def score_rows(honest: Honest) -> list[dict[str, Any]]:
    """Average drop and gain of each method with both scores, their paired difference, and what the attack leaves.

    The attack takes a number off all classes below a probability of one in a million: no probability moves by more, the
    raw logit's maps stay, and so do those of the log-odds where not all other classes are that unlikely.

    Args:
        honest: A given network with images.
    """
    subject, images, layer = honest.subject, honest.images, honest.layers[0]
    altered = Edited(subject.network, layer, off_unlikely(below=1e-6))
    clean, moved = (_maps(subject, *one, images) for one in ((subject.network, layer), (altered, f"model.{layer}")))
    logits = subject.predict(images)
    targets = xai.scores.predicted(logits)
    before = xai.scores.log_softmax(logits.double(), targets)
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        drops: list[Tensor] = []
        for score in SCORES:
            maps = clean[f"{method}, {score}"]
            left = masked_scores(subject.predict, images, maps, targets, baseline=torch.zeros(()))  # the mean colour
            drops.append(average_drop(before, left))
            kept = rank_correlation(maps, moved[f"{method}, {score}"])
            rows.append(
                {
                    "network": subject.name,
                    "method": method,
                    "score": score,
                    "n": len(images),
                    "average drop, %": _rounded(interval(drops[-1].tolist())),
                    "average gain, %": _rounded(interval(average_gain(before, left).tolist())),
                    "correlation under the attack, %": _rounded(interval((100 * kept).tolist())),
                    "more drop than centred": None,
                }
            )
        apart = compare(drops[1], drops[0], n_resamples=2000)
        rows[-1]["more drop than centred"] = _rounded({"mean": apart.difference, "low": apart.low, "high": apart.high})
    return rows


def _maps(subject: Subject, model: nn.Module, layer: str, images: Tensor) -> dict[str, Tensor]:
    """Of all methods and both scores, (N,H,W): one pass for all."""
    made = {f"{name}, {score}": METHODS[name](layer, SCORES[score]) for name in METHODS for score in SCORES}
    found = [xai.explain(model, batch, attributions=made) for batch in subject.batches(images)]
    return {name: torch.cat([one[name] for one in found]) for name in made}


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in found.items()}
