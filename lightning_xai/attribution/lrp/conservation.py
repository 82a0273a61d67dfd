"""How much of the relevance arrives, and the warning where much of it does not."""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

_BEARABLE = 0.1
"""Share that may be lost without a word: rounding, and here and there an output that a bias alone made."""

_CHECKED: WeakKeyDictionary[nn.Module, set[Hashable]] = WeakKeyDictionary()
"""Of each model, the rules that need no (other) warning."""


def conservation_error(relevance: Tensor, seeds: Tensor) -> Tensor:
    """What was lost or added on the way, ``(sum_i R_i - sum_n R_n) / sum_n |R_n|``.

    Not zero where biases take a share (epsilon, gamma), where nothing contributes to an output under the rule, so that
    its bias alone made it (z+; most depthwise outputs of a MobileNet), or where a logit is exactly zero. Zero proves
    little: relevance can be conserved and wrong.

    Args:
        relevance: Relevance (N,C,H,W), or signed maps (N,H,W) of a method with ``relu=False``.
        seeds: Relevance of the logits, (N,K): ``method.seed(logits, targets)``.

    Returns:
        Errors (N,), 0 where all was conserved, -1 where all was lost; NaN where the seeds are all zero.

    Example:
        >>> import torch
        >>> conservation_error(torch.full((1, 2, 2), 0.5), torch.tensor([[0.0, 4.0]]))
        tensor([-0.5000])
    """
    return (relevance.flatten(1).sum(1) - seeds.sum(1)) / seeds.abs().sum(1)


def to_be_checked(model: nn.Module, rules: Hashable) -> bool:
    """Whether nothing was said yet of what these rules lose in this model."""
    return rules not in _CHECKED.get(model, ())


def warn_of_loss(model: nn.Module, rules: Hashable, relevance: Tensor, seeds: Tensor) -> None:
    """Say once for each model and set of rules how much of the relevance arrives, if it is far from all.

    The seeds (N,K) have one sign for each image.
    """
    known = seeds.abs().sum(1) > 0
    if not known.any():
        return
    kept = (1 + conservation_error(relevance, seeds) * seeds.sum(1).sign())[known].median().item()
    if abs(kept - 1) <= _BEARABLE:
        return
    _CHECKED.setdefault(model, set()).add(rules)
    rank_zero_warn(
        f"LRP expected the relevance of the pixels to sum up to that of the logits, got {kept:.0%} of it (median of "
        f"{len(seeds)} images of this batch). What is missing belongs to biases, or to outputs to which nothing "
        "contributes under the rule, as in depthwise convolutions and linear bottlenecks. The docstring of `Rules` "
        "says which rules keep more; `conservation_error` computes the share of each map. Said once for a model."
    )
