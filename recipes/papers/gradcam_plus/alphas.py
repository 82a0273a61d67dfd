"""The alphas of Grad-CAM++ from outside: what they are made from, what they do to the map, and their histogram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_xai.attribution import guarded_alphas

Array = np.ndarray[Any, np.dtype[Any]]

BINS = 2001
"""Of ``tanh(alpha - 1/2)`` in [-1, 1]: near 1/2, the middle of the middle one, a thousandth of alpha each."""

SIGNS = {"positive": "g > 0", "negative": "g < 0"}
"""How the alphas of `facts_of_images` and `histograms` are split: those of g > 0 alone reach the map."""


class Witness:
    """The ``alphas`` of `GradCAMPlusPlus`, with a memory: ``explain`` is run for a map, as ever.

    Attributes:
        activations: Activations (N,D,h,w) of the last call.
        gradients: Gradients (N,D,h,w) of the last call.

    Example:
        >>> witness = Witness()
        >>> witness(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)), witness.gradients
        (tensor([[[[0.3333]]]]), tensor([[[[1.]]]]))
    """

    activations: Tensor
    gradients: Tensor

    def __call__(self, activations: Tensor, gradients: Tensor, *, scale: float = 1.0) -> Tensor:
        """The guarded alphas (N,D,h,w)."""
        self.activations, self.gradients = activations.detach(), gradients.detach()
        return guarded_alphas(activations, gradients, scale=scale)

    @property
    def second_term(self) -> Tensor:
        """What Lerma and Lucas 2022 eq. 13 adds to 2, ``s = g_ij sum_ab A_ab``, (N,D,h,w).

        Where g > 0, s is also what the unit adds to the sum of Grad-CAM+'s map, but for 1/Z.
        """
        return self.gradients * self.activations.sum((2, 3), keepdim=True)


def facts_of_images(witness: Witness) -> dict[str, list[Any]]:
    """What is to be known of the alphas of each image.

    Args:
        witness: What they are made from.

    Returns:
        Lists of N: ``distribution``, for each of `SIGNS`; ``weighted``, the mean alpha by its unit's part in the
        Grad-CAM+ map; ``equation_6``, the right side of Lerma and Lucas 2022 eq. 6 divided by its left side, which
        would be 1 if the alphas solved the equation that defines them; ``least_activation``.

    Example:
        >>> witness = Witness()
        >>> _ = witness(torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, -1.0]]]]))
        >>> {name: values for name, values in facts_of_images(witness).items() if name != "distribution"}
        {'weighted': [0.25], 'equation_6': [0.5], 'least_activation': [1.0]}
    """
    # with Y = exp(S) eq. 6 is Y = sum_k {sum_ab alpha_ab ReLU(Y g_ab)} [sum_ij A_ij]: Y cancels
    parts = (witness.second_term * (witness.gradients > 0)).double()
    right_sides = (parts / (2 + parts)).sum((1, 2, 3))
    alphas = 1 / (2 + witness.second_term)
    pairs = list(zip(alphas, witness.gradients, strict=True))
    return {
        "distribution": [{"positive": _ends(a[g > 0]), "negative": _ends(a[g < 0])} for a, g in pairs],
        "weighted": listed(right_sides / parts.sum((1, 2, 3))),
        "equation_6": listed(right_sides),
        "least_activation": witness.activations.amin((1, 2, 3)).tolist(),
    }


def listed(values: Tensor) -> list[float | None]:
    """Numbers as JSON takes them: None for NaN.

    Example:
        >>> listed(torch.tensor([0.5, torch.nan]))
        [0.5, None]
    """
    return [_number(one) for one in values.tolist()]


def _number(value: float) -> float | None:
    largest = torch.finfo(torch.float32).max  # an alpha whose denominator rounds to 0: JSON has no infinity
    return None if math.isnan(value) else max(-largest, min(largest, value))


def _ends(alphas: Tensor) -> dict[str, float | None]:
    """How many there are, from where to where, and the part near 1/2, where Grad-CAM++ is half of Grad-CAM+."""
    if not len(alphas):
        return {"count": 0, "minimum": None, "maximum": None, "near_half": None}
    near_half = ((alphas - 0.5).abs() < 0.05).float().mean()
    numbers = {"minimum": alphas.amin(), "maximum": alphas.amax(), "near_half": near_half}
    return {"count": len(alphas), **{name: _number(float(one)) for name, one in numbers.items()}}


def histograms(witness: Witness) -> dict[str, list[int]]:
    """How many alphas lie in each bin of ``tanh(alpha - 1/2)``, by the sign of the gradient, as in figure 4 (right).

    `BINS` counts for each of `SIGNS`; units whose gradient is 0 have no alpha.

    Example:
        >>> witness = Witness()
        >>> _ = witness(torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]]))
        >>> {sign: sum(counts) for sign, counts in histograms(witness).items()}
        {'positive': 1, 'negative': 0}
    """
    squeezed = torch.tanh(1 / (2 + witness.second_term) - 0.5).double()
    chosen = {"positive": witness.gradients > 0, "negative": witness.gradients < 0}
    return {sign: torch.histc(squeezed[of], BINS, -1, 1).long().tolist() for sign, of in chosen.items()}


def alphas_of_bins() -> Array:
    """The alpha in the middle of each bin, (BINS,)."""
    return 0.5 + np.arctanh((np.arange(BINS) + 0.5) * 2 / BINS - 1)


def quantiles(counts: Array, shares: list[float]) -> list[float]:
    """Quantiles of alpha from a histogram (BINS,): the middle of the bin that holds each; NaN of an empty one.

    Example:
        >>> counts = np.zeros(BINS, dtype=int)
        >>> counts[1000:1003] = 1
        >>> [round(one, 3) for one in quantiles(counts, [0.5, 1.0])]
        [0.501, 0.502]
    """
    if not counts.sum():
        return [math.nan] * len(shares)
    places = np.searchsorted(counts.cumsum() / counts.sum(), np.array(shares) - 1e-12)
    return alphas_of_bins()[places].tolist()


def box(counts: Array) -> dict[str, float]:
    """A box plot's numbers from a histogram: quartiles, and whiskers to the last value within 1.5 boxes of them.

    As ``Axes.bxp`` takes them, of counts (BINS,) that are not all 0.

    Example:
        >>> counts = np.zeros(BINS, dtype=int)
        >>> counts[[0, 1000, 1002, 1004]] = 1, 10, 10, 10
        >>> {name: round(value, 3) for name, value in box(counts).items()}
        {'q1': 0.5, 'med': 0.502, 'q3': 0.504, 'whislo': 0.5, 'whishi': 0.504}
    """
    q1, median, q3 = quantiles(counts, [0.25, 0.5, 0.75])
    values, reach = alphas_of_bins(), 1.5 * (q3 - q1)
    near = values[(counts > 0) & (values >= q1 - reach) & (values <= q3 + reach)]
    return {"q1": q1, "med": median, "q3": q3, "whislo": float(near.min()), "whishi": float(near.max())}
