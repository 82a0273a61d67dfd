"""Modes of modules and of autograd, changed inside a context and restored after it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

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
    with _switched_off(module for module in model.modules() if module.training):
        yield


@contextmanager
def batch_norm_evaluation(model: nn.Module) -> Iterator[None]:
    """Batch normalisation with its running statistics inside; nothing else changes.

    Args:
        model: The model.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    with _switched_off(module for module in model.modules() if isinstance(module, kinds) and module.training):
        yield


@contextmanager
def _switched_off(training: Iterable[nn.Module]) -> Iterator[None]:
    modules = list(training)
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
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


class _Stance:
    """How many contexts want compiled code to run eagerly, and what restores the stance after the last of them."""

    users = 0
    restore = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Compiled code runs eagerly inside, where it would not see hooks that are added after compilation.

    Callbacks end in the order in which they began: their contexts overlap without nesting. A stance restored by each
    would stay behind for ever, so the last one to end restores it.
    """
    if _Stance.users == 0 and "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it is slow
        _Stance.restore.enter_context(torch.compiler.set_stance("force_eager"))
    _Stance.users += 1
    try:
        yield
    finally:
        _Stance.users -= 1
        if _Stance.users == 0:
            _Stance.restore.close()
