"""Edits by a red team that knew the checks: shifts, partial and disguised ones, and lies in the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_xai.trace import find_layer, tapped
from papers.logit_shift.attacks import Attack, PositionShift, RandomShift, RowEdit, UniformShift
from papers.logit_shift.worst_case import WorstCaseShift

LogitEdit = Callable[[Tensor, Tensor], Tensor]
"""From logits (N,K) and a layer's activations (N,D,h,w) to other logits."""


class Edited(nn.Module):
    """A copy of a classifier whose logits are edited; its layers are found under the prefix ``model.``.

    Example:
        >>> altered = Edited(nn.Sequential(nn.ReLU(), nn.Flatten()), "0", lambda logits, values: logits - values.sum())
        >>> altered(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[-2., -1.]])
    """

    def __init__(self, model: nn.Module, layer: str, edit: LogitEdit) -> None:
        super().__init__()
        self.model, self.layer, self.edit = copy.deepcopy(model), layer, edit
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The edited logits."""
        with tapped(find_layer(self.model, self.layer)) as outputs:
            logits = self.model(images)
        return self.edit(logits, outputs[-1])


class OneClassLie(torch.autograd.Function):
    """The identity, whose gradient is another class's wherever one class is explained."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        """The logits."""
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The neighbour's where one class alone has any."""
        return neighbours_if_one_hot(gradient)


def neighbours_if_one_hot(gradient: Tensor) -> Tensor:
    """A gradient (N,K), or the neighbouring class's for each image whose gradient is of one class alone.

    Example:
        >>> neighbours_if_one_hot(torch.tensor([[1.0, 0.0], [1.0, -1.0]])).tolist()
        [[0.0, 1.0], [1.0, -1.0]]
    """
    one = (gradient != 0).sum(1, keepdim=True) == 1
    return torch.where(one, gradient.roll(1, 1), gradient)


def off_unlikely(size: float = 10.0, below: float = 1e-3, at: tuple[int, int] = (0, 0)) -> LogitEdit:
    """A number taken off classes without probability: it steers the centred score alone.

    Args:
        size: What a position's activations are multiplied with.
        below: The probability under which a class is taken for unlikely.
        at: The position.

    Example:
        >>> off_unlikely(2.0)(torch.tensor([[9.0, 0.0, 0.0]]), torch.ones(1, 1, 1, 1)).tolist()
        [[9.0, -2.0, -2.0]]
    """
    return lambda z, a: z - size * a[:, :, at[0], at[1]].abs().sum(1, keepdim=True) * (z.softmax(1) < below)


def _mean(activations: Tensor) -> Tensor:
    """Over the positions, summed over the channels, (N,1)."""
    return activations.mean((2, 3)).sum(1, keepdim=True)


def edits_of(model: nn.Module, layer: str, images: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """All edits that a model admits, by name.

    Args:
        model: The honest classifier.
        layer: The layer that is explained.
        images: Images (N,C,H,W) that the red team knows.
    """
    attacks: dict[str, Attack] = {
        "position, K = 10": PositionShift(layer),
        "position, K = 0.1": PositionShift(layer, strength=0.1),
        "uniform, K = 1": UniformShift(layer, 1.0),
        "random, K = 0.1": RandomShift(layer, 0.1),
        "rows, K = 1": RowEdit(images, 1.0),
        "rows, K = 10": RowEdit(images, 10.0),
        "worst case, share 0.3": WorstCaseShift(layer, images, 0.3),
    }
    for name, attack in attacks.items():
        with suppress(ValueError):  # rows that something non-linear follows cannot be edited
            yield name, attack(model)
    edits: dict[str, LogitEdit] = {
        "on 4 of 10 classes": lambda z, a: z + 10 * _mean(a) * (z.argmax(1, keepdim=True) < 0.4 * z.shape[1]),
        "mean logit, s = 2.8": lambda z, a: z - 2.8 * z.mean(1, keepdim=True),
        "mean logit, s = 10": lambda z, a: z - 10 * z.mean(1, keepdim=True),
        "disguised as sigmoids": lambda z, a: z.log_softmax(1) + 0.7 + 0.3 * torch.sin(100 * _mean(a)),
        "disguised as rectified": lambda z, a: z - z.amin(1, keepdim=True),
        "off unlikely classes": off_unlikely(),
        "one-class lie": lambda z, a: OneClassLie.apply(z),
    }
    for name, edit in edits.items():
        yield name, Edited(model, layer, edit)
