"""Maps of several methods by several scores, image by image: the numbers behind the recipe ``score_choice.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor

import lightning_xai as xai
from common.subject import Subject
from lightning_xai.attribution import Attribution
from lightning_xai.metrics import pointing_game
from lightning_xai.ranks import rank_correlation
from lightning_xai.types import OneLayer, Score, TargetRule
from papers.score_choice.examples import in_dtype, torch_log_softmax, torch_softmax

Key: TypeAlias = tuple[str, str]
"""Method and score."""

Maps: TypeAlias = dict[Key, Tensor]
"""Maps (N,H,W) by method and score."""

COLUMNS = ("image", "quantity", "method", "score", "against", "value")
"""What is measured, in long form: a row for each image and quantity, empty where a column says nothing of it."""

SCORES: dict[str, Score] = {
    "pre-softmax": xai.scores.pre_softmax,
    "post-softmax": xai.scores.post_softmax,
    "log-softmax": xai.scores.log_softmax,
    "centred": xai.scores.centered,
}
PAIRS = list(combinations(SCORES, 2))
GRADIENT_METHODS: dict[str, Callable[[Any, Score], Attribution]] = {
    "Grad-CAM": lambda layer, score: xai.GradCAM(layer, score=score, relu=False),
    "Grad-CAM+": lambda layer, score: xai.GradCAMPlus(layer, score=score, relu=False),
    "Grad-CAM++": lambda layer, score: xai.GradCAMPlusPlus(layer, score=score, relu=False),
}
PATH_METHODS = ("RSI Grad-CAM", "Integrated Gradients")
METHODS = (*GRADIENT_METHODS, *PATH_METHODS)
CONTROLS: dict[str, Attribution] = {
    "centred Gaussian": xai.attribution.CenteredGaussian(),
    "noise": xai.attribution.Random(),
}
# In float32 or narrower, as programs compute them and as the library does; the network stays in float64.
ROUNDED: dict[str, tuple[str, Score]] = {
    "post-softmax, torch, float32": ("post-softmax", in_dtype(torch_softmax, torch.float32)),
    "post-softmax, library, float32": ("post-softmax", in_dtype(xai.scores.post_softmax, torch.float32)),
    "log-softmax, torch, float32": ("log-softmax", in_dtype(torch_log_softmax, torch.float32)),
    "log-softmax, library, float32": ("log-softmax", in_dtype(xai.scores.log_softmax, torch.float32)),
    "centred, library, float32": ("centred", in_dtype(xai.scores.centered, torch.float32)),
    "post-softmax, torch, bfloat16": ("post-softmax", in_dtype(torch_softmax, torch.bfloat16)),
}


@dataclass(frozen=True)
class GradientNorm(Attribution):
    """Length of the score's gradient at a layer: a map with the same number at every pixel."""

    layer: str | None
    score: Score

    def layers(self) -> list[OneLayer]:
        """The layer."""
        return [self.layer]

    def __call__(self, trace: Any, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W)."""
        norms = trace.gradient(self.score, targets, of=self.layer).flatten(1).norm(dim=1)
        return norms[:, None, None].expand(-1, *trace.images.shape[2:])


def path_methods(subject: Subject, n_steps: int) -> dict[Key, Attribution]:
    """RSI Grad-CAM and Integrated Gradients with each score."""
    options: dict[str, Any] = {**subject.standard, "n_steps": n_steps, "batch_size": subject.batch_size}
    methods: dict[Key, Attribution] = {}
    for name, score in SCORES.items():
        methods["RSI Grad-CAM", name] = xai.attribution.RSIGradCAM(subject.layer, score=score, relu=False, **options)
        methods["Integrated Gradients", name] = xai.IntegratedGradients(score=score, **options)
    return methods


def exact(subject: Subject) -> Subject:
    """The same classifier in float64, for what is said to be equal."""
    return replace(subject, network=copy.deepcopy(subject.network).double())


@dataclass(frozen=True)
class Chunk:
    """Images of which one class each is explained.

    Attributes:
        images: Images (N,C,H,W), float32.
        labels: Labels (N,).
        targets: Which class is explained, as a function of logits and labels.
        masks: Where the evidence is, (N,H,W), bool; None where it is not known.
        n_path: How many of the images the path methods get, the first ones.
        n_steps: Steps of path methods.
    """

    images: Tensor
    labels: Tensor
    targets: TargetRule
    masks: Tensor | None
    n_path: int
    n_steps: int


def measured(subject: Subject, chunk: Chunk) -> tuple[pd.DataFrame, Maps]:
    """All that is measured of some images, and their maps before any ReLU.

    Gradients and the maps of one gradient are computed in float64, since what is said of them is equality; path methods
    in float32. The frame has `COLUMNS`, images counted from 0.
    """
    precise, images = exact(subject), chunk.images.double()
    logits = precise.predict(images).cpu()
    targets = chunk.targets(logits, chunk.labels)
    tables = [_confidence(logits, targets), *_lengths(_explained(precise, images, targets, _norms(subject.layer)))]
    pairs = product(GRADIENT_METHODS, SCORES)
    at_one_point = {(name, score): GRADIENT_METHODS[name](subject.layer, SCORES[score]) for name, score in pairs}
    maps = _explained(precise, images, targets, at_one_point)
    if chunk.n_path:
        few, theirs = chunk.images[: chunk.n_path], targets[: chunk.n_path]
        maps |= _explained(subject, few, theirs, path_methods(subject, chunk.n_steps))
    tables += [_rows(values.abs().amax((1, 2)), "magnitude", *key) for key, values in maps.items()]
    tables += _agreement(maps)
    if chunk.masks is not None:
        controls = {(name, ""): method for name, method in CONTROLS.items()}
        tables += _hits(maps | _explained(subject, chunk.images, targets, controls), chunk.masks)
    return pd.concat(tables, ignore_index=True), maps


def baseline_probabilities(subject: Subject, images: Tensor) -> list[float]:
    """Probability of each class at the black image, where paths begin."""
    first = images[:1].double()
    black = xai.baselines.black(first, subject.mean, subject.std).expand_as(first)
    return exact(subject).predict(black).softmax(1)[0].tolist()


def tolerance(side: int) -> int:
    """How far a peak may lie beside: 15 of 224 pixels, as in the pointing game.

    Example:
        >>> tolerance(224)
        15
    """
    return round(15 * side / 224)


def _explained(
    subject: Subject, images: Tensor, targets: Tensor, methods: Mapping[Key, Attribution]
) -> dict[Key, Tensor]:
    named = {" ".join(key): method for key, method in methods.items()}
    found = [
        xai.explain(subject.network, some, of, attributions=named) for some, of in subject.batches(images, targets)
    ]
    return {key: torch.cat([one[" ".join(key)] for one in found]).cpu() for key in methods}


def _rows(values: Tensor, quantity: str, method: str = "", score: str = "", against: str = "") -> pd.DataFrame:
    """One value (N,) for each image."""
    numbers = values.double().numpy()
    return pd.DataFrame(
        dict(zip(COLUMNS, (range(len(numbers)), quantity, method, score, against, numbers), strict=True))
    )


def _confidence(logits: Tensor, targets: Tensor) -> pd.DataFrame:
    """Probability of the class, what is left to 1, and whether nothing is left in narrower floats."""
    left = -torch.expm1(xai.scores.log_softmax(logits, targets))
    narrow = {dtype: torch_softmax(logits.to(dtype), targets) == 1 for dtype in (torch.float32, torch.bfloat16)}
    return pd.concat(
        [
            _rows(targets, "class"),
            _rows(1 - left, "p"),
            _rows(left, "1 - p"),
            *(_rows(ones, "p == 1", str(dtype).removeprefix("torch.")) for dtype, ones in narrow.items()),
        ]
    )


def _norms(layer: str | None) -> dict[Key, Attribution]:
    """Lengths of the gradient of each score, and of the error of its gradient where the score is rounded."""
    norms: dict[Key, Attribution] = {("norm", name): GradientNorm(layer, score) for name, score in SCORES.items()}
    errors = {
        ("error", name): GradientNorm(layer, _difference(rounded, SCORES[exact]))
        for name, (exact, rounded) in ROUNDED.items()
    }
    return norms | errors


def _lengths(found: Mapping[Key, Tensor]) -> Iterator[pd.DataFrame]:
    """One number from each map of `GradientNorm`; errors relative to the gradient."""
    lengths = {key: maps[:, 0, 0] for key, maps in found.items()}
    for (quantity, score), values in lengths.items():
        whole = lengths["norm", ROUNDED[score][0]] if quantity == "error" else 1
        yield _rows(values / whole, quantity, score=score)


def _difference(first: Score, second: Score) -> Score:
    """A score whose gradient is the difference of two scores' gradients."""
    return lambda logits, targets: first(logits, targets).double() - second(logits, targets)


def _agreement(maps: Maps) -> Iterator[pd.DataFrame]:
    """How far maps of two scores agree: rank correlation, cosine, and whether the peak moved."""
    for method, pair in product(dict.fromkeys(method for method, _ in maps), PAIRS):
        first, second = (maps[method, score] for score in pair)
        yield _rows(rank_correlation(first, second), "rank correlation", method, *pair)
        yield _rows((_unit(first) * _unit(second)).sum(1), "cosine", method, *pair)
        yield _rows(peak_moved(first, second), "peak moved", method, *pair)


def _unit(maps: Tensor) -> Tensor:
    """Vectors of length 1, NaN for empty maps; F.cosine_similarity takes lengths below 1e-8 for 1e-8."""
    values = maps.flatten(1).double()
    return values / values.norm(dim=1, keepdim=True)


def peak_moved(first: Tensor, second: Tensor) -> Tensor:
    """Whether the largest pixels of maps lie further apart than the pointing game tolerates.

    Example:
        >>> peak_moved(torch.eye(1, 400).view(1, 20, 20), torch.eye(1, 400).flip(1).view(1, 20, 20))
        tensor([True])
    """
    width = first.shape[2]
    places = torch.stack([one.flatten(1).argmax(1) for one in (first, second)])
    rows, columns = (places // width).diff(dim=0)[0], (places % width).diff(dim=0)[0]
    return rows.square() + columns.square() > tolerance(width) ** 2


def _hits(maps: Maps, masks: Tensor) -> Iterator[pd.DataFrame]:
    """The pointing game of each map; maps may be fewer than masks."""
    for key, one in maps.items():
        yield _rows(pointing_game(one, masks[: len(one)], tolerance=tolerance(one.shape[2])), "hit", *key)
