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
    ranks = torch.stack([_ranks(first), _ranks(second)])
    ranks = ranks - ranks.mean(2, keepdim=True)
    norms = ranks.square().sum(2).sqrt()
    defined = (norms > 0).all(0) & first.flatten(1).isfinite().all(1) & second.flatten(1).isfinite().all(1)
    return torch.where(defined, ((ranks[0] * ranks[1]).sum(1) / norms.prod(0)).clamp(-1, 1), torch.nan)


def _ranks(maps: Tensor) -> Tensor:
    in_order, order = maps.detach().flatten(1).sort(1)
    places = torch.arange(order.shape[1], device=order.device)
    begins = torch.ones_like(order, dtype=torch.bool)  # where a run of equal values does
    begins[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    ends = begins.roll(-1, 1)
    first = torch.where(begins, places, 0).cummax(1).values
    last = torch.where(ends, places, order.shape[1]).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(order, dtype=torch.float64).scatter_(1, order, (first + last + 1).double() / 2)
