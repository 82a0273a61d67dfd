"""What the experiment on SGLRP measures on one batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_xai as xai
from lightning_xai import metrics
from lightning_xai.attribution import is_reversed
from lightning_xai.scores import log_softmax
from papers.sglrp.networks import Judged

LEVELS = tuple(range(101))
"""Energies in percent of figure 13."""
TARGETS = {"label": xai.scores.label, "second class": xai.scores.second_best}
"""The classes of figures 11 (a) and (b)."""

Values = dict[str, Any]
"""Lists of one value for each image, in nested dicts, in a form that JSON takes."""


def printed_seed(logits: Tensor, targets: Tensor) -> Tensor:
    """Equation 10 as it is printed, ``R_n = dy_t / dz_n``, without the care for saturation that our SGLRP takes.

    Example:
        >>> printed_seed(torch.tensor([[0.0, 0.0], [0.0, 20.0]]), torch.tensor([1, 1]))
        tensor([[-2.5000e-01,  2.5000e-01],
                [-2.0612e-09,  0.0000e+00]])
    """
    hot, probabilities = F.one_hot(targets, logits.shape[1]), logits.softmax(1)
    return (probabilities * hot).sum(1, keepdim=True) * (hot - probabilities)


def facts(logits: Tensor, targets: Tensor, maps: dict[str, Tensor]) -> Values:
    """What is known of each image beside the metrics: where equations 7 and 10 fail, and which maps show nothing."""
    return {
        "probability": log_softmax(logits.double(), targets).exp().tolist(),
        "reversed": is_reversed(logits, targets).tolist(),
        # where no logit gets positive relevance, no pixel does
        "saturated": (printed_seed(logits, targets) <= 0).all(1).tolist(),
        "nothing": {name: metrics.degenerate(one).tolist() for name, one in maps.items()},
    }


def patches(subject: Judged, images: Tensor, labels: Tensor) -> Values:
    """Figure 11: change of the probability when the pixels around each map's maximum take the average colour."""
    logits = subject.predict(images)
    color = xai.baselines.mean_color(images, subject.mean, subject.std, color=subject.color)
    found: Values = {"labels": labels.tolist()}
    for kind, choose in TARGETS.items():
        targets = choose(logits, labels)
        maps = xai.explain(subject.network, images, targets, attributions=subject.methods())
        before, changes = log_softmax(logits.double(), targets), {}
        for name, one in maps.items():
            after = metrics.patch_masked_scores(subject.predict, images, one, targets, baseline=color)
            changes[name] = (after.exp() - before.exp()[:, None]).tolist()
        found[kind] = {"changes": changes, "score": before.tolist(), **facts(logits, targets, maps)}
    return found


def pointing(subject: Judged, images: Tensor, labels: Tensor, masks: Tensor) -> Values:
    """Figure 13: how many points of each map lie on the object, and how many there are, by energy."""
    logits = subject.predict(images)
    targets = subject.boxed_targets(logits, labels)
    maps = xai.explain(subject.network, images, targets, attributions=subject.methods())
    found: Values = {"labels": labels.tolist(), "share": masks.double().mean((1, 2)).tolist(), "hits": {}, "points": {}}
    for name, one in maps.items():
        hits, points = metrics.energy_pointing(one, masks, levels=LEVELS)
        found["hits"][name], found["points"][name] = hits.tolist(), points.tolist()
    return found | facts(logits, targets, maps)


def side_by_side(first: Tensor, second: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Two images in one (N,C,H,2W), as two objects in one photograph, and masks (N,H,2W) of the halves.

    Example:
        >>> both, halves = side_by_side(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
        >>> both, halves[1]
        (tensor([[[[0., 1.]]]]), tensor([[[False,  True]]]))
    """
    both, right = torch.cat([first, second], 3), torch.zeros_like(first[:, 0], dtype=torch.bool)
    return both, [torch.cat(halves, 2) for halves in ((~right, right), (right, ~right))]


def mosaics(subject: Judged, first: Sequence[Tensor], second: Sequence[Tensor]) -> Values:
    """In place of figure 6: the share of each map's positive relevance on the one of two images that it explains."""
    (_, left, left_labels), (_, right, right_labels) = first, second
    both, halves = side_by_side(left, right)
    logits, found = subject.predict(both), {}
    for side, targets, half in zip(("left", "right"), (left_labels, right_labels), halves, strict=True):
        maps = xai.explain(subject.network, both, targets, attributions=subject.methods())
        shares = {name: (100 * metrics.energy_in_box(one, half)).tolist() for name, one in maps.items()}
        shown = {name: [None if v != v else v for v in metrics.complexity(one).tolist()] for name, one in maps.items()}
        found[side] = {"share": shares, "complexity": shown, **facts(logits, targets, maps)}
    return found
