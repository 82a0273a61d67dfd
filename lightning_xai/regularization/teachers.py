"""What the term compares, and how much each image counts in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_xai.scores import log_softmax, pre_softmax

Teacher: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""What is compared: ``(summed loss (), logits (N,K), targets) -> (student (), teacher ())``.

The gradient of the student is taught to resemble the guided gradient of the teacher.
"""

ImageWeights: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""How much each image counts in the term: ``(logits (N,K), targets) -> (N,)``, non-negative."""

SATURATION = 100 * torch.finfo(torch.float32).eps
"""Below this ``1 - p`` the loss's gradient in float32 has lost all but two digits."""


def loss_teacher(loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The literal form (eq. 9): gradient and guided gradient of the loss.

    The guided rule is not odd. Clamping the gradient of the *loss* keeps evidence against the label, so that this form
    pulls the class's gradient away from its own guided map.

    Example:
        >>> loss_teacher(torch.tensor(2.0), torch.zeros(1, 2), torch.tensor([0]))
        (tensor(2.), tensor(2.))
    """
    return loss, loss


def negative_loss_teacher(loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and guided gradient of minus the loss, that is of the log-probability: evidence *for* the label.

    Example:
        >>> negative_loss_teacher(torch.tensor(2.0), torch.zeros(1, 2), torch.tensor([0]))
        (tensor(-2.), tensor(-2.))
    """
    return -loss, -loss


def class_score_teacher(loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of minus the loss, taught by the guided gradient of the label's logit.

    Example:
        >>> class_score_teacher(torch.tensor(2.0), torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        (tensor(-2.), tensor(3.))
    """
    scores = pre_softmax(logits, targets) if targets.ndim == 1 else (logits * targets).sum(1)
    return -loss, scores.sum()


def keep_saturated(logits: Tensor, targets: Tensor) -> Tensor:
    """Every image counts alike (literal).

    Example:
        >>> keep_saturated(torch.tensor([[0.0, 99.0]]), torch.tensor([1]))
        tensor([1.])
    """
    return logits.new_ones(len(logits), dtype=torch.float32)


def mask_saturated(logits: Tensor, targets: Tensor) -> Tensor:
    """Images whose gradient is rounding noise, ``1 - p < SATURATION``, do not count; without one label each, all do.

    Example:
        >>> mask_saturated(torch.tensor([[0.0, 99.0], [0.0, 1.0]]), torch.tensor([1, 1]))
        tensor([0., 1.])
    """
    return (weight_by_error(logits, targets) >= SATURATION).float()


def weight_by_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Images count by ``1 - p``, the size of the loss's gradient at the label's logit; without one label each, by 1.

    Example:
        >>> weight_by_error(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.5000])
    """
    if targets.ndim != 1 or targets.is_floating_point() or logits.shape[1] < 2:
        return keep_saturated(logits, targets)
    return -torch.expm1(log_softmax(logits.detach(), targets))
