"""What a logit shift does to maps: the numbers behind the recipe ``logit_shift.py``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_xai as xai
from common.subject import Subject
from lightning_xai.attribution import Attribution
from lightning_xai.integrity import Fingerprint, Inspection, center_logits, inspect_model, locate_shift
from lightning_xai.ranks import rank_correlation
from lightning_xai.types import OneLayer, Score
from papers.logit_shift.attacks import Attack, EnergyShift, PositionShift, RandomShift, RowEdit, UniformShift

SCORES: dict[str, Score] = {
    "raw logit": xai.scores.pre_softmax,
    "centred": xai.scores.centered,
    "post-softmax": xai.scores.post_softmax,
}
BLIND_TO_SHIFTS = ("centred", "post-softmax")  # score(z + t) = score(z) for any number t, and so are their gradients
AT_LAYER: dict[str, Callable[[str, Score], Attribution]] = {
    "Grad-CAM": lambda layer, score: xai.GradCAM(layer, score=score, relu=False),
    "Grad-CAM+": lambda layer, score: xai.GradCAMPlus(layer, score=score, relu=False),
    "Grad-CAM++": lambda layer, score: xai.GradCAMPlusPlus(layer, score=score, relu=False),
    "XGrad-CAM": lambda layer, score: xai.XGradCAM(layer, score=score, relu=False),
    "HiResCAM": lambda layer, score: xai.HiResCAM(layer, score=score, relu=False),
    "LayerCAM": lambda layer, score: xai.LayerCAM(layer, score=score, relu=False),
}
AT_IMAGE: dict[str, Callable[[str, Score], Attribution]] = {
    "input gradient": lambda layer, score: xai.InputGradient(score=score),
    "input x gradient": lambda layer, score: xai.InputXGradient(score=score),
}
MOVED = 0.9  # below this median rank correlation with the clean map, before any ReLU, a map looks different
LOCATED_WITH = 4  # images; locating takes three sweeps for each layer


@dataclass(frozen=True)
class ActivationSum(Attribution):
    """The sum of a layer's activations: what Grad-CAM's raw map turns into under a strong `PositionShift`."""

    layer: str | None

    def layers(self) -> list[OneLayer]:
        """The layer."""
        return [self.layer]

    def __call__(self, trace: Any, targets: Tensor) -> Tensor:
        """Maps (N,H,W); nothing of the class is in them."""
        total = trace.activation(self.layer).sum(1, keepdim=True)
        return F.interpolate(total, trace.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Explained(Subject):
    """A clean classifier in float64 with the images whose maps are made, at a layer that is known by name."""

    layer: str
    images: Tensor


def layer_in(model: nn.Module, layer: str) -> str:
    """The name of a layer of the clean model in an altered or repaired one, which may have wrapped it."""
    names = dict(model.named_modules())
    while layer not in names:
        layer = f"model.{layer}"
    return layer


def attacks_on(subject: Explained, position: tuple[int, int], strength: float) -> dict[str, nn.Module]:
    """Altered copies, by the name of the edit; edits that this model does not admit are left out."""
    layer = subject.layer
    kinds: dict[str, Attack] = {
        "position": PositionShift(layer, position, strength),
        "uniform": UniformShift(layer, strength),
        "random": RandomShift(layer, strength),
        "rows": RowEdit(subject.images[:LOCATED_WITH], strength),
        "image": EnergyShift(strength=strength),
    }
    altered: dict[str, nn.Module] = {}
    for name, attack in kinds.items():
        try:
            altered[name] = attack(subject.network)
        except ValueError:
            if name != "rows":  # whose edit would change the softmax where something non-linear follows
                raise
    return altered


def maps_of(subject: Explained, model: nn.Module, methods: dict[str, Attribution]) -> dict[str, Tensor]:
    """Maps (N,H,W) of the class that the model predicts, by name."""
    found = [xai.explain(model, images, attributions=methods) for images in subject.batches(subject.images)]
    return {name: torch.cat([one[name] for one in found]) for name in methods}


def probabilities(subject: Explained, model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Probabilities and logits (N,K) in a dtype."""
    model = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        logits = torch.cat([model(images.to(dtype)) for images in subject.batches(subject.images)])
    return logits.softmax(1), logits


def paper_numbers(subject: Explained, position: tuple[int, int], strength: float) -> dict[str, float]:
    """What the paper's edit does: nothing to predictions and centred maps, much to raw-logit maps.

    Returns:
        Softmax: its largest change in float64, and in float32 in units of ``eps |t|``. Raw logit: least and median
        correlation of Grad-CAM with the sum of activations, and share of images whose peak lies at the position.
        Centred score: largest change of a map relative to its maximum.
    """
    altered = PositionShift(subject.layer, position, strength)(subject.network)
    results = _softmax_changes(subject, altered)
    clean, found = (_compared_maps(subject, model) for model in (subject.network, altered))
    correlation = _pearson(found["Grad-CAM, raw logit"], found["sum"])
    shape = Fingerprint.of(subject.network, subject.images[:2], layer=subject.layer).layer_shape[1:]
    for name in ("Grad-CAM", "HiResCAM"):
        results[f"{name} peak at position"] = float(_at(found[f"{name}, raw logit"], shape, position).double().mean())
        before, after = (maps[f"{name}, centred"] for maps in (clean, found))
        change = (after - before).abs().amax((1, 2)) / before.abs().amax((1, 2))
        results[f"{name} centred change"] = float(change.max())
    return results | {
        "Grad-CAM correlation with sum, least": float(correlation.min()),
        "Grad-CAM correlation with sum, median": float(correlation.median()),
    }


def _compared_maps(subject: Explained, model: nn.Module) -> dict[str, Tensor]:
    layer = layer_in(model, subject.layer)
    methods: dict[str, Attribution] = {"sum": ActivationSum(layer)}
    for name in ("Grad-CAM", "HiResCAM"):
        methods |= {f"{name}, {score}": AT_LAYER[name](layer, SCORES[score]) for score in ("raw logit", "centred")}
    return maps_of(subject, model, methods)


def _softmax_changes(subject: Explained, altered: nn.Module) -> dict[str, float]:
    changes, shifts = {}, {}
    for dtype in (torch.float64, torch.float32):
        (before, clean), (after, logits) = (probabilities(subject, one, dtype) for one in (subject.network, altered))
        changes[dtype] = float((after - before).abs().max())
        shifts[dtype] = float((logits - clean).abs().max())
    eps = torch.finfo(torch.float32).eps
    return {
        "largest shift": shifts[torch.float64],
        "softmax change in float64": changes[torch.float64],
        "softmax change in float32": changes[torch.float32],
        "softmax change in float32 / (eps |t|)": changes[torch.float32] / (eps * max(shifts[torch.float32], 1e-30)),
    }


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    first, second = (one.flatten(1) - one.flatten(1).mean(1, keepdim=True) for one in (first, second))
    return F.cosine_similarity(first, second, dim=1)


def _cells(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Row and column (N,2) of a layer's position under the largest pixel of each map (N,H,W)."""
    width = maps.shape[2]
    peak = maps.flatten(1).argmax(1)
    return torch.stack([peak // width * shape[0] // maps.shape[1], peak % width * shape[1] // width], 1)


def _at(maps: Tensor, shape: tuple[int, ...], position: tuple[int, int]) -> Tensor:
    wanted = torch.tensor([p % side for p, side in zip(position, shape, strict=True)], device=maps.device)
    return (_cells(maps, shape) == wanted).all(1)


def sensitivity(subject: Explained, altered: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """Method x score x edit: which maps of an altered model are those of the clean one.

    Returns:
        For each: ``agreement``, the median rank correlation with the clean map before any ReLU; ``peaks``, the share of
        images whose largest pixel lies at another position of the layer; and ``proved``, whether the map cannot change
        in real arithmetic, since the score does not see the shift, or the shift does not depend on the layer.
    """
    shape = Fingerprint.of(subject.network, subject.images[:2], layer=subject.layer).layer_shape[1:]
    clean = maps_of(subject, subject.network, _all_methods(subject.layer))
    rows = []
    for edit, model in altered.items():
        found = maps_of(subject, model, _all_methods(layer_in(model, subject.layer)))
        for name, maps in found.items():
            method, _, score = name.partition(", ")
            moved = (_cells(maps, shape) != _cells(clean[name], shape)).any(1)
            rows.append(
                {
                    "method": method,
                    "score": score,
                    "edit": edit,
                    "proved": score in BLIND_TO_SHIFTS or (edit == "image" and method in AT_LAYER),
                    "agreement": float(rank_correlation(maps, clean[name]).nanmedian()),
                    "peaks": float(moved.double().mean()),
                }
            )
    return rows


def _all_methods(layer: str) -> dict[str, Attribution]:
    kinds = AT_LAYER | AT_IMAGE
    return {f"{name}, {score}": make(layer, SCORES[score]) for name, make in kinds.items() for score in SCORES}


def verdicts(subject: Explained, altered: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """What the detectors say of the clean, the altered and the repaired models.

    Returns:
        For each model the verdict alone, at the layer and at the image, that with the clean model as the reference (for
        repaired ones with its own logits centred), and where the shift was located; for repaired ones how far their raw
        maps are the centred maps of the clean model.
    """
    subject = replace(subject, images=subject.images[:32])
    fingerprint = Fingerprint.of(subject.network, subject.images, layer=subject.layer)
    centred = center_logits(subject.network)
    fingerprint_of_centred = Fingerprint.of(centred, subject.images, layer=layer_in(centred, subject.layer))
    rows = [_judged(subject, fingerprint, "clean", subject.network)]
    for name, model in altered.items():
        rows.append(_judged(subject, fingerprint, name, model))
        with warnings.catch_warnings():  # that maps of the edited model disagree is why it is repaired
            warnings.filterwarnings("ignore", "Maps of the centred score look different")
            repaired = center_logits(model, subject.images[:LOCATED_WITH])
        row = _judged(subject, fingerprint_of_centred, f"{name}, repaired", repaired)
        rows.append(row | {"repair": _repair_agreement(subject, repaired)})
    return rows


def _judged(subject: Explained, fingerprint: Fingerprint, name: str, model: nn.Module) -> dict[str, Any]:
    layer = layer_in(model, subject.layer)
    at_layer, inspection = (inspect_model(model, subject.images, layer=layer, image_level=one) for one in (False, True))
    comparison = fingerprint.compare(model, subject.images, layer=layer)
    return {
        "model": name,
        "alone": str(inspection.verdict),
        "at layer": at_layer.suspicion,
        "at image": inspection.suspicion,
        "with reference": str(comparison.verdict),
        "located": _place(model, subject.images[:LOCATED_WITH]) if at_layer.verdict.alarms else None,
    }


def _place(model: nn.Module, images: Tensor) -> str | None:
    found: Inspection | None = locate_shift(model, images)
    return None if found is None else f"{found.layer} {found.position}"


def _repair_agreement(subject: Explained, repaired: nn.Module) -> float:
    """Least rank correlation of the repaired model's raw Grad-CAM with the clean model's centred one."""
    raw = AT_LAYER["Grad-CAM"](layer_in(repaired, subject.layer), xai.scores.pre_softmax)
    found = maps_of(subject, repaired, {"map": raw})["map"]
    centred = AT_LAYER["Grad-CAM"](subject.layer, xai.scores.centered)
    return float(rank_correlation(found, maps_of(subject, subject.network, {"map": centred})["map"]).min())
