"""What Lerma and Lucas say of pre- and post-softmax scores, as sums that can be done by hand and one that cannot.

Each table has what an equation says, in plain arithmetic, beside what maps of the library say of a classifier with a
handful of weights, in float64. The paper states its equations without numbers: these are ours. The last example
trains two networks that differ in nothing but their pre-softmax gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from math import exp
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_xai as xai
from common.data.planted import CLASSES, planted_evidence
from common.planted_network import fitted, small_network, standardized
from lightning_xai.attribution import Attribution
from lightning_xai.ranks import rank_correlation
from lightning_xai.report import Cell, Table
from lightning_xai.types import Score

Weights: TypeAlias = Sequence[Sequence[float]]
"""``dz_i/dx_j`` of a linear classifier ``z = W x``: a row for each class."""

Quantity: TypeAlias = tuple[str, Callable[[Weights], list[float]] | None, Callable[[Weights], list[float]]]
"""A name, what an equation says of a network (None: there is no closed form), and what was measured."""

CLASS = 0  # the class that is explained; of three
AT = (1.0, 0.5)
FIRST: Weights = ((1.0, 2.0), (0.0, -1.0), (-1.0, 0.0))
SHIFT = (10.0, -10.0)  # dt/dx_j
EQUAL_AT = (0.4, 0.4, 1.0)
DECIDING = (1.0, 0.0, -1.0)  # dz_i/dx_3
UNIT: Weights = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # inputs that are the logits
MARGINS = (1.0, 4.0, 8.0, 12.0, 16.0, 18.0, 25.0, 50.0, 100.0)


def classifier(weights: Weights) -> nn.Module:
    """``z = W x``, float64."""
    head = nn.Linear(len(weights[0]), len(weights), bias=False, dtype=torch.float64)
    head.weight.data = torch.tensor(weights, dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), head)


def image_of(at: Sequence[float]) -> Tensor:
    """An image (1,1,1,W) with a pixel for each input."""
    return torch.tensor(at, dtype=torch.float64).view(1, 1, 1, -1)


def output(weights: Weights, at: Sequence[float]) -> list[float]:
    """The network's probability of the class."""
    return [classifier(weights)(image_of(at)).softmax(1)[0, CLASS].item()]


def attributed(weights: Weights, at: Sequence[float], method: Attribution) -> list[float]:
    """The map of an image that has one pixel for each input.

    Example:
        >>> attributed(((1.0, 2.0), (0.0, 1.0)), (1.0, 0.5), xai.InputGradient(score=xai.scores.pre_softmax))
        [1.0, 2.0]
    """
    return xai.explain(classifier(weights), image_of(at), CLASS, attributions=method).flatten().tolist()


def gradient(weights: Weights, at: Sequence[float], score: Score) -> list[float]:
    """The derivative of a score with respect to each input."""
    return attributed(weights, at, xai.InputGradient(score=score))


def path(weights: Weights, at: Sequence[float], score: Score) -> list[float]:
    """Integrated Gradients from zero."""
    return attributed(weights, at, xai.IntegratedGradients(score=score, baseline=torch.tensor(0.0)))


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image (eq. 11)."""
    return F.cross_entropy(logits, targets, reduction="none")


def exp_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """What eq. 18 prints."""
    return loss(logits, targets).exp()


def exp_minus_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """What eq. 18 means: the probability."""
    return (-loss(logits, targets)).exp()


def logits_at(weights: Weights, at: Sequence[float]) -> list[float]:
    """``z = W x``."""
    return [sum(w * x for w, x in zip(row, at, strict=True)) for row in weights]


def softmax(logits: Sequence[float]) -> list[float]:
    """Eq. 1.

    Example:
        >>> softmax([0.0, 0.0])
        [0.5, 0.5]
    """
    powers = [exp(z) for z in logits]
    return [power / sum(powers) for power in powers]


def weighted_rows(factors: Iterable[float], weights: Weights) -> list[float]:
    """``sum_i factor_i dz_i/dx_j`` for each input."""
    products = [[factor * w for w in row] for factor, row in zip(factors, weights, strict=True)]
    return [sum(column) for column in zip(*products, strict=True)]


def log_gradient(weights: Weights, at: Sequence[float]) -> list[float]:
    """``d log y_c/dx = sum_i (delta_ic - y_i) dz_i/dx``, eq. 16 with eq. 19."""
    return weighted_rows([(i == CLASS) - y for i, y in enumerate(softmax(logits_at(weights, at)))], weights)


def post_gradient(weights: Weights, at: Sequence[float]) -> list[float]:
    """``dy_c/dx = y_c sum_i (delta_ic - y_i) dz_i/dx``, eq. 7."""
    return [softmax(logits_at(weights, at))[CLASS] * one for one in log_gradient(weights, at)]


def centred_gradient(weights: Weights) -> list[float]:
    """``d(z_c - mean z)/dx``."""
    return weighted_rows([(i == CLASS) - 1 / len(weights) for i in range(len(weights))], weights)


def times(gradients: Iterable[float], at: Sequence[float]) -> list[float]:
    """Gradient times input: Integrated Gradients of a linear score from zero."""
    return [g * x for g, x in zip(gradients, at, strict=True)]


def compared(networks: Sequence[Weights], quantities: Sequence[Quantity]) -> list[list[Cell]]:
    """Rows of a table: for each network what the equation says and what was measured."""
    rows: list[list[Cell]] = []
    for name, equation, measured in quantities:
        columns: list[Sequence[float | None]] = []
        for weights in networks:
            found = measured(weights)
            columns += [equation(weights) if equation else [None] * len(found), found]
        single = len(columns[1]) == 1
        for j, cells in enumerate(zip(*columns, strict=True)):
            rows.append([name if single else f"{name}, x{j + 1}", *cells])
    return rows


def shift_paradox() -> Table:
    """Section II.B, first case: ``z_i + t`` has the same outputs and post-softmax gradients (eq. 8 and 9)."""
    networks = FIRST, [[w + s for w, s in zip(row, SHIFT, strict=True)] for row in FIRST]
    quantities: list[Quantity] = [
        ("y_c, eq. 8", lambda w: [softmax(logits_at(w, AT))[CLASS]], lambda w: output(w, AT)),
        ("dz_c/dx", lambda w: list(w[CLASS]), lambda w: gradient(w, AT, xai.scores.pre_softmax)),
        ("dy_c/dx, eq. 9", lambda w: post_gradient(w, AT), lambda w: gradient(w, AT, xai.scores.post_softmax)),
        ("d log y_c/dx", lambda w: log_gradient(w, AT), lambda w: gradient(w, AT, xai.scores.log_softmax)),
        ("d(z_c - mean z)/dx", centred_gradient, lambda w: gradient(w, AT, xai.scores.centered)),
        ("IG of z_c", lambda w: times(w[CLASS], AT), lambda w: path(w, AT, xai.scores.pre_softmax)),
        ("IG of y_c", None, lambda w: path(w, AT, xai.scores.post_softmax)),
        ("IG of z_c - mean z", lambda w: times(centred_gradient(w), AT), lambda w: path(w, AT, xai.scores.centered)),
    ]
    return Table(
        "Section II.B, first case: the same outputs, other pre-softmax gradients",
        ["", "z, by hand", "z, measured", "z + t, by hand", "z + t, measured"],
        compared(networks, quantities),
        f"z = W x with dz_i/dx = {FIRST}, x = {AT}, dt/dx = {SHIFT}; the first class is explained.",
        digits=6,
    )


def equal_influence_paradox() -> Table:
    """Section II.B, second case: inputs that move all logits alike do not matter to the outputs (eq. 10)."""
    networks = [[(k1, k2, w) for w in DECIDING] for k1, k2 in ((5.0, 0.5), (0.5, 5.0))]
    at = EQUAL_AT
    quantities: list[Quantity] = [
        ("y_c", lambda w: [softmax(logits_at(w, at))[CLASS]], lambda w: output(w, at)),
        ("dz_c/dx", lambda w: list(w[CLASS]), lambda w: gradient(w, at, xai.scores.pre_softmax)),
        (
            "dy_c/dx, eq. 10",
            lambda w: [0.0, 0.0, post_gradient(w, at)[2]],
            lambda w: gradient(w, at, xai.scores.post_softmax),
        ),
        ("d(z_c - mean z)/dx", lambda w: [0.0, 0.0, 1.0], lambda w: gradient(w, at, xai.scores.centered)),
    ]
    return Table(
        "Section II.B, second case: inputs that move all logits alike",
        ["", "K1 >> K2, by hand", "K1 >> K2, measured", "K1 << K2, by hand", "K1 << K2, measured"],
        compared(networks, quantities),
        "dz_i/dx1 = K1, dz_i/dx2 = K2, (5, 0.5) and (0.5, 5), dz_i/dx3 = (1, 0, -1): two networks with the same "
        "probabilities everywhere, of which the pre-softmax gradient ranks x1 and x2 first; x3 alone decides.",
        digits=6,
    )


def loss_equations() -> Table:
    """Both sides of the equations of sections II.A, II.C and II.D; eq. 18 as it is printed and as it is meant."""
    logits = logits_at(FIRST, AT)
    y = softmax(logits)
    of_loss, of_y = gradient(FIRST, AT, loss), gradient(FIRST, AT, xai.scores.post_softmax)
    sure = y[CLASS] * (1 - y[CLASS])
    sides = {
        "eq. 4: dy_c/dz_c = y_c (1 - y_c)": (gradient(UNIT, logits, xai.scores.post_softmax)[CLASS], sure),
        "eq. 13: dL/dz_c = y_c - t_c": (gradient(UNIT, logits, loss)[CLASS], y[CLASS] - 1),
        "eq. 16: dL/dx = -sum_i (delta_ic - y_i) dz_i/dx": (of_loss[0], -log_gradient(FIRST, AT)[0]),
        "eq. 17: dL/dx = -(1 / y_c) dy_c/dx": (of_loss[0], -of_y[0] / y[CLASS]),
        "eq. 18, printed: dy_c/dx = -d exp(L)/dx": (of_y[0], -gradient(FIRST, AT, exp_loss)[0]),
        "eq. 18, corrected: dy_c/dx = d exp(-L)/dx": (of_y[0], gradient(FIRST, AT, exp_minus_loss)[0]),
        "eq. 19: dL/dx = -d log y_c/dx": (of_loss[0], -gradient(FIRST, AT, xai.scores.log_softmax)[0]),
    }
    rows: list[list[Cell]] = [[name, left, right, right / left] for name, (left, right) in sides.items()]
    caption = f"At x1 of the first network; y_c = {y[CLASS]:.6f}, and eq. 18 as printed is off by 1 / y_c^2."
    return Table("Sections II.A, II.C and II.D: both sides", ["", "left", "right", "right / left"], rows, caption, 6)


def in_dtype(score: Score, dtype: torch.dtype) -> Score:
    """A score that is computed in a dtype; the network stays in its own."""
    return lambda logits, targets: score(logits.to(dtype), targets)


def torch_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """The probability as most programs take it."""
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


def torch_log_softmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Its log as most programs take it."""
    return logits.log_softmax(1).gather(1, targets[:, None])[:, 0]


def saturation_by_margin() -> Table:
    """The derivative with respect to the logit of the class where the softmax saturates, exact and in float32."""
    scores: dict[str, Score] = {
        "post, torch": in_dtype(torch_softmax, torch.float32),
        "post, library": in_dtype(xai.scores.post_softmax, torch.float32),
        "log, torch": in_dtype(torch_log_softmax, torch.float32),
        "log, library": in_dtype(xai.scores.log_softmax, torch.float32),
        "centred": in_dtype(xai.scores.centered, torch.float32),
    }
    rows = []
    for margin in MARGINS:
        exact = 2 * exp(-margin) / (1 + 2 * exp(-margin)) ** 2  # y_c (1 - y_c)
        found = [gradient(UNIT, (margin, 0.0, 0.0), score)[CLASS] for score in scores.values()]
        rows.append([f"{margin:g}", *(f"{one:.3g}" for one in (exact, *found))])
    caption = "Logits (margin, 0, 0), explained in float32. The exact derivative of log y_c is that of y_c over y_c."
    return Table("dS/dz_c as the softmax saturates", ["margin", "y_c (1 - y_c)", *scores], rows, caption)


def two_trainings(seed: int, n: int, scores: dict[str, Score]) -> dict[str, float]:
    """Two trainings whose networks are one function, with other pre-softmax gradients (section II.B).

    They begin at the same weights but for a vector that is added to all rows of the last layer, which no softmax sees,
    nor the loss, nor any gradient of it: so it stays, whatever the number of steps, shrunk by weight decay.

    Args:
        seed: Of images, weights and order.
        n: Number of training images.
        scores: The scores by name.

    Returns:
        The largest difference of a probability between the networks; and for each score the least rank correlation
        of their Grad-CAM maps, before the ReLU, on 32 other images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = small_network().double()
        second = copy.deepcopy(first)
        rows: Tensor = second[-1].weight.data  # type: ignore[assignment]
        rows += torch.randn_like(rows[0])
    for model in (first, second):
        _train(model, seed, n)
    images = standardized(planted_evidence(torch.arange(32) % len(CLASSES), seed=seed + 1).images).double()
    with torch.no_grad():
        change = float((first(images).softmax(1) - second(images).softmax(1)).abs().max())
    methods = {name: xai.GradCAM("6", score=score, relu=False) for name, score in scores.items()}
    maps = [xai.explain(model, images, attributions=methods) for model in (first, second)]
    agreement = {name: float(rank_correlation(maps[0][name], maps[1][name]).min()) for name in scores}
    return {"largest difference of a probability": change, **agreement}


def _train(model: nn.Module, seed: int, n: int) -> None:
    data = planted_evidence(torch.arange(n) % len(CLASSES), seed=seed)
    images, order = standardized(data.images).double(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    fitted(model, images, data.labels, optimizer, epochs=2, batch_size=32, order=order)
