"""The relevance that the logits are given: what LRP, CLRP and SGLRP differ in.

A seed makes the relevance (N,K) of logits (N,K) and targets (N,); those with a contrast need K >= 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_xai.scores import centered, pre_softmax
from lightning_xai.types import Score

Seed: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The relevance of the logits that is propagated: ``(logits (N,K), targets (N,)) -> relevance (N,K)``."""


def target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = z_t``, nothing elsewhere (Iwana et al. 2019 eq. 3); with K = 1, target 0 is the negative of the logit.

    Example:
        >>> target_logit(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([[0., 3.]])
    """
    if logits.shape[1] == 1:
        return pre_softmax(logits, targets)[:, None]
    return logits * F.one_hot(targets, logits.shape[1])


def contrastive(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = z_t``, ``R_n = -z_t / (K - 1)`` (CLRP, Iwana et al. 2019 eq. 7); the sum is zero.

    Where ``z_t < 0`` all signs are reversed, and the map shows what speaks for the other classes (`is_reversed`
    finds such images; of the labels of CIFAR-10 1 % were seen).

    Example:
        >>> contrastive(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([[-1.5000,  3.0000, -1.5000]])
    """
    hot = _one_hot(logits, targets)
    return (logits * hot).sum(1, keepdim=True) * (hot - (1 - hot) / (logits.shape[1] - 1))


def softmax_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = 1``, ``R_n = -y_n / (1 - y_t)``: the gradient of ``y_t`` divided by ``y_t (1 - y_t)``.

    Iwana et al. 2019 eq. 10 has ``R_t = y_t (1 - y_t)``, ``R_n = -y_t y_n``, which vanishes where the softmax
    saturates. The
    factor is constant for an image, so that the map is the same up to its scale; here it comes from the softmax over
    the other classes, which does not saturate. The sum is zero.

    Example:
        >>> softmax_gradient(torch.tensor([[0.0, 90.0, 0.0]]), torch.tensor([1]))
        tensor([[-0.5000,  1.0000, -0.5000]])
    """
    hot = _one_hot(logits, targets)
    return hot - logits.masked_fill(hot.bool(), -torch.inf).softmax(1)


def absolute_target_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_t = |z_t|``, nothing elsewhere, as in the reference code of Gu et al. 2018.

    Example:
        >>> absolute_target_logit(torch.tensor([[1.0, -3.0]]), torch.tensor([1]))
        tensor([[0., 3.]])
    """
    return target_logit(logits, targets).abs()


def absolute_other_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """``R_n = |z_n|`` for all classes but the target, as in the reference code of Gu et al. 2018.

    Example:
        >>> absolute_other_logits(torch.tensor([[1.0, -3.0]]), torch.tensor([0]))
        tensor([[0., 3.]])
    """
    return logits.abs() * (1 - _one_hot(logits, targets))


@dataclass(frozen=True)
class ScoreGradient:
    """``R_n = z_n dS/dz_n``: the logits share relevance as the gradient of a score weighs them.

    With a zero-sum score (`centered`, `log_softmax`) the
    *multipliers* of the logits sum to zero. Then a ``t(x)`` that is added to all logits gets no relevance, and the map
    does not see it. The seeds of `CLRP` and `SGLRP`, whose *relevance* sums to zero, do see it: what
    each logit gets is shared between it and ``t(x)``.

    Attributes:
        score: The score S.

    Example:
        >>> ScoreGradient()(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([[-0.5000,  1.5000]])
    """

    score: Score = centered

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The relevance (N,K) of logits (N,K)."""
        gradient = torch.func.grad(lambda values: self.score(values, targets).sum())(logits.detach())
        return logits * gradient


def is_reversed(logits: Tensor, targets: Tensor) -> Tensor:
    """Where the logit of the target is negative, so that `contrastive` reverses the map: bools (N,).

    Example:
        >>> is_reversed(torch.tensor([[1.0, -3.0], [1.0, 3.0]]), torch.tensor([1, 1])).float().mean()
        tensor(0.5000)
    """
    return pre_softmax(logits, targets) < 0


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.shape[1] < 2:
        raise ValueError(
            f"`seed` expected logits of at least 2 classes, got shape {tuple(logits.shape)}: there is no other class "
            "to contrast with. Use `LRP()`."
        )
    return F.one_hot(targets, logits.shape[1]).to(logits)
