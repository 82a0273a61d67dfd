"""Modes of modules and of autograd, changed inside a context and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside, each in its own mode again after.

    Args:
        model: The model; ``train()`` and ``eval()``, which users override, are not called.

    Example:
        >>> layer = nn.Dropout()
        >>> with evaluation_mode(layer):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def batch_norm_evaluation(model: nn.Module) -> Iterator[None]:
    """Batch normalisation with its running statistics inside; nothing else changes.

    Args:
        model: The model.
    """
    training = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def plain_tensors() -> Iterator[None]:
    """No gradients and no inference mode inside: tensors made here can be used anywhere later.

    Example:
        >>> with torch.inference_mode(), plain_tensors():
        ...     print(torch.ones(1).is_inference())
        False
    """
    with torch.inference_mode(False), torch.no_grad():
        yield
