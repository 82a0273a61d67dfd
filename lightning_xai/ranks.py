"""Rank correlation of maps."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of maps, each with its partner; equal values share their mean rank.

    Maps are to be compared before any ReLU, which would turn whole regions into ties. Only the order of values
    counts: neither scale nor offset.

    Example:
        >>> rank_correlation(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[10.0, 30.0, 20.0]]]))
        tensor([0.5000], dtype=torch.float64)
    """
    return correlation_of_ranks(unit_ranks(first), unit_ranks(second))


def unit_ranks(maps: Tensor) -> Tensor:
    """Ranks of the values of each map (N,...), about their mean and of length 1, (N,P); NaN where all values are equal.

    Of a map that holds infinity or NaN they are NaN, too.

    Example:
        >>> unit_ranks(torch.tensor([[7.0, 9.0], [1.0, 1.0]]))
        tensor([[-0.7071,  0.7071],
                [    nan,     nan]], dtype=torch.float64)
    """
    ranks = _ranks(maps)
    ranks = ranks - ranks.mean(1, keepdim=True)
    lengths = torch.where(maps.flatten(1).isfinite().all(1), ranks.norm(dim=1), torch.nan)
    return ranks / lengths[:, None]


def correlation_of_ranks(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation (N,) of maps whose `unit_ranks` (N,P) are given.

    Example:
        >>> correlation_of_ranks(torch.tensor([[0.6, 0.8]]), torch.tensor([[0.8, 0.6]]))
        tensor([0.9600])
    """
    return (first * second).sum(1).clamp(-1, 1)


def _ranks(maps: Tensor) -> Tensor:
    in_order, order = maps.detach().flatten(1).sort(1)
    places = torch.arange(order.shape[1], device=order.device)
    begins = torch.ones_like(order, dtype=torch.bool)  # where a run of equal values does
    begins[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    ends = begins.roll(-1, 1)
    first = torch.where(begins, places, 0).cummax(1).values
    last = torch.where(ends, places, order.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(order, dtype=torch.float64).scatter_(1, order, (first + last + 1).double() / 2)
