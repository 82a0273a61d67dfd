"""The toy networks of figures 3 and 5 of the paper on SGLRP, as one layer each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai import attribution, explain
from lightning_xai.attribution import z_plus
from lightning_xai.report import Table

EXAMPLES: dict[str, list[list[float]]] = {
    "figure 3: z2 speaks for classes 2 and 3": [[0, 0, 1], [1, 4, 0], [0, 4, 0]],
    "figure 5: z2 is all that speaks for classes 1 and 3": [[0, 1, 0], [0, 3, 1], [0, 1, 0]],
    "figure 5, but z1 speaks for class 3, which is probable": [[0, 1, 0], [0, 3, 1], [4, 0, 0]],
}
"""Weights (classes, nodes z1 to z3) of a last layer under nodes that are all 1; class 2 is explained."""


def worked_examples() -> Table:
    """The toy networks of figures 3 and 5: the share of each node in what is positive."""
    rows: list[list[Any]] = []
    for title, weights in EXAMPLES.items():
        layer = nn.Linear(3, 3, bias=False)
        layer.weight = nn.Parameter(torch.tensor(weights, dtype=torch.float32))
        nodes, rules = torch.ones(1, 1, 1, 3), attribution.Rules(first=z_plus)
        methods = {"LRP": attribution.LRP(rules), "CLRP": attribution.CLRP(rules), "SGLRP": attribution.SGLRP(rules)}
        maps = explain(nn.Sequential(nn.Flatten(), layer), nodes, 1, attributions=methods)
        rows += [[f"{title}; {name}", *_shares(one)] for name, one in maps.items()]
    return Table(
        "Worked examples: relevance of the nodes, % of what is positive", ["", "z1", "z2", "z3"], rows, digits=0
    )


def _shares(maps: Tensor) -> list[float]:
    positive = maps.flatten().relu()
    return (100 * positive / positive.sum().clamp(min=1e-12)).tolist()
