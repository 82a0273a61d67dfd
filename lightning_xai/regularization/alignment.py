"""The arithmetic of the term: the loss as mean and sum, its gradient and the guided one, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_xai.kinds import fits
from lightning_xai.regularization.errors import cosine_error
from lightning_xai.trace import Rectifiers, guided, kind_of

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A classification loss: ``(logits (N,K), targets) -> ()``, the mean over images, or ``(N,)``, one for each image."""


@dataclass(frozen=True)
class Alignment:
    """How a batch's gradients agree with its guided gradients.

    Attributes:
        error: ``L_R``, (), to be differentiated.
        cosine: Mean cosine between the gradient and the guided gradient, (), in [-1, 1].
        norm_ratio: Mean ratio of their L2 norms, gradient over guided gradient, ().
    """

    error: Tensor
    cosine: Tensor
    norm_ratio: Tensor


def alignment(
    student: Tensor,
    teacher: Tensor,
    point: Tensor,
    counts: Tensor,
    error: Callable[[Tensor, Tensor], Tensor],
    rectifiers: Rectifiers = "relu",
) -> Alignment:
    """The term of one batch: ``L_R = sum_i c_i E(grad_i student, stop(guided gradient_i teacher)) / sum_i c_i``.

    Student and teacher are scalars, the gradients are taken at a point (N,C,H,W) that is a leaf of both graphs, and the
    error is 0 where no image counts.

    Raises:
        ValueError: If there are too few rectifiers, or the scalars do not depend on the point.

    Example:
        >>> images = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
        >>> y = (torch.relu(images) * torch.tensor([-1.0, 1.0])).sum()
        >>> alignment(y, y, images, torch.ones(1), cosine_error).cosine
        tensor(0.7071)
    """
    gradients, guided_gradients = gradient_pair(student, teacher, point, rectifiers)
    errors, seen = error(gradients, guided_gradients), gradients.detach()
    mean = (counts * errors).sum() / counts.sum().clamp(min=torch.finfo(counts.dtype).tiny)
    return Alignment(mean, -cosine_error(seen, guided_gradients).mean(), _norm_ratio(seen, guided_gradients))


def gradient_pair(
    student: Tensor, teacher: Tensor, images: Tensor, rectifiers: Rectifiers = "relu"
) -> tuple[Tensor, Tensor]:
    """The gradient of the student, to be differentiated again, and the guided gradient of the teacher, a constant.

    Raises:
        ValueError: If the teacher's graph has too few rectifiers, or does not reach the images.

    Example:
        >>> images = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
        >>> y = (torch.relu(images) * torch.tensor([-1.0, 1.0])).sum()
        >>> gradients, guided_gradients = gradient_pair(y, y, images)
        >>> gradients.tolist(), guided_gradients.tolist()
        ([[[[-1.0, 1.0]]]], [[[[0.0, 1.0]]]])
    """
    with guided(teacher, rectifiers):
        (guided_gradients,) = torch.autograd.grad(teacher, images, retain_graph=True, allow_unused=True)
    if guided_gradients is None:
        raise ValueError(
            "The guided-gradient term expected logits that depend on the images, got some whose graph ends before: a "
            "part of the model runs under torch.no_grad() or detaches what it gives. Freeze it by "
            "requires_grad_(False) instead, or take the term behind it, by `layer`."
        )
    (gradients,) = torch.autograd.grad(student, images, create_graph=True)
    return gradients, guided_gradients


def mean_and_sum(criterion: Criterion, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The classification loss as the mean and as the sum over images.

    Of a mean that weights images unequally, as class weights do, the sum is N times it.

    Raises:
        ValueError: If the criterion gives something else, or takes no such targets.

    Example:
        >>> import torch.nn.functional as F
        >>> mean_and_sum(F.cross_entropy, torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        (tensor(0.6931), tensor(2.0794))
    """
    if not callable(criterion):
        raise TypeError(f"`criterion` expected a function of logits and targets, got {criterion!r}.")
    try:
        loss = criterion(logits, targets)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"`targets` expected what the criterion takes beside logits {tuple(logits.shape)}, as a rule labels (N,), "
            f"int64, from 0 to {logits.shape[-1] - 1}, got {_described(targets)}. The criterion says: {error}"
        ) from error
    if not isinstance(loss, Tensor):
        raise TypeError(f"`criterion` expected to give a tensor, got {type(loss).__name__}.")
    if loss.shape == (len(logits),):
        return loss.mean(), loss.sum()
    if loss.ndim != 0:
        raise ValueError(f"`criterion` expected to give () or ({len(logits)},), got {tuple(loss.shape)}.")
    return loss, loss * len(logits)


def _described(targets: object) -> str:
    if not isinstance(targets, Tensor) or not fits(targets, Tensor):
        return kind_of(targets)
    known = targets.numel() and not targets.is_complex()
    values = f" from {targets.min().item():g} to {targets.max().item():g}" if known else ""
    return f"{tuple(targets.shape)}, {str(targets.dtype).removeprefix('torch.')}{values}"


def _norm_ratio(gradients: Tensor, guided_gradients: Tensor) -> Tensor:
    student, teacher = (one.flatten(1).float().norm(dim=1) for one in (gradients, guided_gradients))
    some = teacher > 0
    ratios = torch.where(some, student / teacher, 0.0)  # picking rows by a mask would wait for the GPU
    return ratios.sum() / some.sum().clamp(min=1)
