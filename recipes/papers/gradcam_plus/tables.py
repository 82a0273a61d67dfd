"""The tables of the recipe ``gradcam_plus.py``, with the paper's numbers beside ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from common.tables import interval
from lightning_xai.metrics import RelativePerformance
from lightning_xai.report import Cell, Table
from papers.gradcam_plus.alphas import SIGNS, Array, quantiles
from papers.gradcam_plus.equations import equation_checks

METHODS = ("Grad-CAM", "Grad-CAM+", "Grad-CAM++")
CONTROLS = ("sum of activations", "centred Gaussian", "Fake-CAM")
PAPER = {  # methods: by score, relative performance, mean and standard deviation of its log (tables 1 and 2)
    ("Grad-CAM++", "Grad-CAM"): {"pre-softmax": (1.24, 0.21, 0.64), "post-softmax": (1.27, 0.24, 0.68)},
    ("Grad-CAM+", "Grad-CAM"): {"pre-softmax": (1.16, 0.15, 0.66), "post-softmax": (1.25, 0.22, 0.68)},
    ("Grad-CAM++", "Grad-CAM+"): {"pre-softmax": (1.06, 0.06, 0.41), "post-softmax": (1.01, 0.01, 0.11)},
}
OTHERS = (
    ("Grad-CAM++ without ReLU", "Grad-CAM++"),
    ("sum of activations", "Grad-CAM"),
    ("sum of activations", "Grad-CAM+"),
    ("centred Gaussian", "Grad-CAM"),
    ("Fake-CAM", "Grad-CAM"),
)
NEAR = 1.1
"""Two methods leave the same where neither leaves this many times as much as the other."""


def performance(found: dict[str, Any], score: str, methods: tuple[str, ...]) -> RelativePerformance:
    """The metric after its images, with their values; controls have no score."""
    left = found["masked_scores"]
    columns = {name: left[name if name in CONTROLS else f"{name}, {score}"] for name in methods}
    scores = torch.tensor(found["scores"], dtype=torch.float64)
    metric = RelativePerformance(methods, keep_values=True)
    masked = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    metric.update(scores[scores.exp() > metric.threshold], masked)
    metric.compute()
    return metric


def tables(found: dict[str, Any], seed: int) -> list[Table]:
    """Tables 1 and 2, and what they do not tell."""
    every = (*METHODS, OTHERS[0][0], *CONTROLS)
    metrics = {score: performance(found, score, every) for score in next(iter(PAPER.values()))}
    return [
        _ratios(metrics, seed),
        _logs(metrics, seed),
        _shown(found, seed),
        _closeness(found, seed),
        _alphas(found),
        _weighted(found, seed),
        _equations(),
    ]


def _values(metric: RelativePerformance, pair: tuple[str, str]) -> Array:
    row, column = map(metric.methods.index, pair)
    return metric.values[:, row, column].numpy()  # type: ignore[index]


def _geometric(values: Array, seed: int) -> Cell:
    found = interval(values, seed)
    return {name: float(np.exp(one)) for name, one in found.items()} if isinstance(found, dict) else None


def _ratios(metrics: dict[str, RelativePerformance], seed: int) -> Table:
    rows: list[list[Cell]] = []
    for pair in (*PAPER, *OTHERS):
        rows.append([" vs ".join(pair)])
        for score, metric in metrics.items():
            rows[-1] += [_geometric(_values(metric, pair), seed), PAPER[pair][score][0] if pair in PAPER else None]
    return Table(
        "Table 1: relative performance; above 1 the first leaves more of the confidence",
        ["methods", *(head for score in metrics for head in (score, "paper"))],
        rows,
        f"{_n(metrics)} images whose right class has a probability above 0.5; geometric means with 95 % intervals "
        "over images. Paper: VGG16, 4219 images of ImageNetV2. The last four rows are controls.",
        2,
    )


def _logs(metrics: dict[str, RelativePerformance], seed: int) -> Table:
    rows: list[list[Cell]] = []
    for score, metric in metrics.items():
        for pair, paper in PAPER.items():
            values, (_, paper_mean, paper_spread) = _values(metric, pair), paper[score]
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            alike = interval(100 * (np.abs(values) < np.log(NEAR)), seed)
            rows.append(
                [f"{' vs '.join(pair)}, {score}", interval(values, seed), paper_mean, spread, paper_spread, alike]
            )
    caption = f"{_n(metrics)} images. Alike: images on which neither leaves {NEAR:g} times what the other leaves."
    heads = ["methods", "mean", "paper", "std", "paper", "alike, %"]
    return Table("Table 2: log relative performance", heads, rows, caption, 2)


def _n(metrics: dict[str, RelativePerformance]) -> int:
    return len(next(iter(metrics.values())).values)  # type: ignore[arg-type]


def _shown(found: dict[str, Any], seed: int) -> Table:
    rows: list[list[Cell]] = [
        [name, interval(100 * np.array(shares), seed), interval(found["masked_scores"][name], seed)]
        for name, shares in found["shown"].items()
    ]
    caption = "Mean of the min-max normalised map, and of the log probability of the class on what it leaves."
    return Table("How much of the image is shown", ["map", "shown, %", "log probability"], rows, caption, 2)


def _closeness(found: dict[str, Any], seed: int) -> Table:
    scores = list(found["closeness"])
    rows: list[list[Cell]] = []
    for pair in found["closeness"][scores[0]]:
        values = [found["closeness"][score][pair][kind] for kind in ("rank", "cosine") for score in scores]
        rows.append([pair.replace(" | ", " and "), *(interval(one, seed) for one in values)])
    heads = [f"{kind}, {score}" for kind in ("rank", "cosine") for score in scores]
    caption = "Spearman's correlation and cosine of maps before the ReLU; means over the same images."
    return Table("How alike the maps are", ["maps", *heads], rows, caption, 3)


def _alphas(found: dict[str, Any]) -> Table:
    shares = (0.01, 0.25, 0.5, 0.75, 0.99)
    rows: list[list[Cell]] = []
    for score, by_sign in found["histograms"].items():
        for sign, counts in by_sign.items():
            seen = [one[sign] for one in found["alphas"][score]["distribution"] if one[sign]["count"]]
            if not seen:
                continue
            within = quantiles(np.sum(counts, axis=0), list(shares))
            near = sum(one["count"] * one["near_half"] for one in seen) / sum(one["count"] for one in seen)
            least, largest = min(one["minimum"] for one in seen), max(one["maximum"] for one in seen)
            numbers = [least, *within, largest]
            rows.append([f"{SIGNS[sign]}, {score}", *(f"{one:.4g}" for one in numbers), f"{100 * near:.1f}"])
    heads = ["units", "smallest", *(f"{100 * share:.0f} %" for share in shares), "largest", "near 1/2, %"]
    caption = (
        "All units of all images whose gradient is not 0; quantiles to 0.001. The paper saw -1398101.4 and 559240.56, "
        "of both signs together. Only alphas with g > 0 reach the map."
    )
    return Table("Alphas, 1 / (2 + g sum A)", heads, rows, caption)


def _weighted(found: dict[str, Any], seed: int) -> Table:
    rows: list[list[Cell]] = [
        [
            score,
            interval(facts["weighted"], seed),
            interval(facts["equation_6"], seed),
            float(np.median(facts["equation_6"])),
        ]
        for score, facts in found["alphas"].items()
    ]
    heads = ["score", "alpha weighted by g sum A", "eq. 6, right / left, mean", "median"]
    caption = (
        "Weighted: by its unit's part in the map of Grad-CAM+; where it is 1/2 for all units both maps are the same. "
        "Eq. 6 defines the alphas: where they solve it right / left is 1."
    )
    return Table("What the alphas do", heads, rows, caption, 3)


def _equations() -> Table:
    rows: list[list[Cell]] = [[name, f"{error:.1e}"] for name, error in equation_checks().items()]
    caption = "A function of two channels of 2 x 2 units in float64; errors up to 1e-12 are rounding."
    return Table("The derivation (section 3.1, appendix A)", ["statement", "relative error"], rows, caption)
