"""What the recipe ``gradcam_plus.py`` measures: maps, what they leave of the confidence, and the alphas behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

import lightning_xai as xai
from common.data.loading import ReadableLoader
from common.run import joined
from common.subject import Subject
from lightning_xai.attribution import Attribution, literal_alphas, weighted_sum
from lightning_xai.metrics import masked_scores, normalized_masks
from lightning_xai.ranks import rank_correlation
from lightning_xai.types import Score
from papers.gradcam_plus.alphas import Witness, facts_of_images, histograms, listed
from papers.logit_shift.maps import ActivationSum

CONFIDENT = 0.5
"""Images count whose right class has a probability above this, as in the paper."""
SCORES: dict[str, Score] = {"pre-softmax": xai.scores.pre_softmax, "post-softmax": xai.scores.post_softmax}
COMPARED_SIDE = 56
"""Maps of layers with some 14 x 14 units lose nothing when they are compared on about this many pixels a side."""
PAIRS = (
    ("Grad-CAM++", "Grad-CAM+"),
    ("Grad-CAM++, lambda 0.1", "Grad-CAM+"),
    ("Grad-CAM++, lambda 10", "Grad-CAM+"),
    ("Grad-CAM++ as printed", "Grad-CAM++"),
    ("Grad-CAM+", "Grad-CAM"),
    ("Grad-CAM++", "Grad-CAM"),
    ("Grad-CAM+", "sum of activations"),
)
"""Maps that are compared with one another."""


@dataclass(frozen=True)
class AllGradients(xai.GradCAMPlusPlus):
    """Grad-CAM++ without the ReLU of eq. 4: negative gradients count too, and with them their alphas, unguarded."""

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w)."""
        alphas = literal_alphas(activations, gradients, scale=self.scale)
        return weighted_sum(activations, (alphas * gradients).sum((2, 3)))


def masking_methods(layer: str | None) -> dict[str, Attribution]:
    """What is compared by what it leaves of the confidence: by score, and the controls, which have none."""
    kinds: dict[str, Callable[..., Attribution]] = {
        "Grad-CAM": xai.GradCAM,
        "Grad-CAM+": xai.GradCAMPlus,
        "Grad-CAM++": xai.GradCAMPlusPlus,
        "Grad-CAM++ without ReLU": AllGradients,
    }
    methods = {f"{name}, {score}": kind(layer, score=SCORES[score]) for score in SCORES for name, kind in kinds.items()}
    controls = {"sum of activations": ActivationSum(layer), "centred Gaussian": xai.attribution.CenteredGaussian()}
    return methods | controls | {"Fake-CAM": xai.attribution.FakeCAM()}


def compared_methods(layer: str | None, score: Score, witness: Witness) -> dict[str, Attribution]:
    """What is compared map by map, before any ReLU, which would make ties of regions; the witness listens in."""
    options: dict[str, Any] = {"score": score, "relu": False}
    return {
        "Grad-CAM": xai.GradCAM(layer, **options),
        "Grad-CAM+": xai.GradCAMPlus(layer, **options),
        "Grad-CAM++": xai.GradCAMPlusPlus(layer, alphas=witness, **options),
        "Grad-CAM++, lambda 0.1": xai.GradCAMPlusPlus(layer, scale=0.1, **options),
        "Grad-CAM++, lambda 10": xai.GradCAMPlusPlus(layer, scale=10, **options),
        "Grad-CAM++ as printed": xai.GradCAMPlusPlus(layer, alphas=literal_alphas, **options),
        "sum of activations": ActivationSum(layer),
    }


def closeness(maps: dict[str, Tensor]) -> dict[str, dict[str, list[float | None]]]:
    """Rank correlation and cosine of each pair of maps (N,H,W), for each image."""
    stride = max(1, next(iter(maps.values())).shape[1] // COMPARED_SIDE)
    small = {name: one[:, ::stride, ::stride].double() for name, one in maps.items()}
    return {
        f"{first} | {second}": {
            "rank": listed(rank_correlation(small[first], small[second])),
            "cosine": listed(cosine(small[first], small[second])),
        }
        for first, second in PAIRS
    }


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine (N,) of maps (N,H,W), however small they are; NaN where one is all zero.

    Example:
        >>> cosine(torch.tensor([[[1e-30, 0.0]]], dtype=torch.float64), torch.tensor([[[3.0, 4.0]]]))
        tensor([0.6000], dtype=torch.float64)
    """
    # torch's own takes norms below 1e-8 for 1e-8: post-softmax gradients of saturated images are smaller
    norms = [one.square().sum((1, 2)).sqrt() for one in (first, second)]
    return (first * second).sum((1, 2)) / (norms[0] * norms[1])


def measured(subject: Subject, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Everything about one batch: lists over its images, or over those that the classifier is right about."""
    witnesses = {score: Witness() for score in SCORES}
    masking = masking_methods(subject.layer)
    compared = {score: compared_methods(subject.layer, SCORES[score], one) for score, one in witnesses.items()}
    named = {f"{name} | {score}": method for score, methods in compared.items() for name, method in methods.items()}
    maps = xai.explain(subject.network, images, labels, attributions=masking | named)
    with torch.no_grad():
        scores = xai.scores.log_softmax(subject.network(images).double(), labels)
        confident = scores.exp() > CONFIDENT
        left = {name: _left(subject, images[confident], maps[name][confident], labels[confident]) for name in masking}
    return {
        "scores": scores.tolist(),
        "alphas": {score: facts_of_images(witness) for score, witness in witnesses.items()},
        "histograms": {score: {k: [v] for k, v in histograms(one).items()} for score, one in witnesses.items()},
        "masked_scores": left,
        "shown": {name: normalized_masks(maps[name][confident]).mean((1, 2)).tolist() for name in masking},
        "closeness": {
            score: closeness({name: maps[f"{name} | {score}"][confident] for name in methods})
            for score, methods in compared.items()
        },
    }


def _left(subject: Subject, images: Tensor, maps: Tensor, labels: Tensor) -> list[float]:
    if not len(images):
        return []
    return masked_scores(
        subject.network, images, maps, labels, baseline=xai.baselines.black(images, subject.mean, subject.std)
    ).tolist()


def measured_chunk(subject: Subject, images: Dataset[Any], indices: Sequence[int]) -> dict[str, Any]:
    """Everything about some of the images."""
    loader = ReadableLoader(Subset(images, indices), batch_size=subject.batch_size)
    device = subject.device
    return joined([measured(subject, some.to(device), labels.to(device)) for some, labels, _ in loader])
