"""Modes of modules and of autograd, changed inside a context and restored after it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_xai.types import ForwardContext


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
def lent(model: nn.Module) -> Iterator[None]:
    """Others may use the model inside, and change whatever they change: it is as before after.

    Restored are modes, hooks, and what modules hold: attributes, submodules, parameters and buffers as objects, with
    ``requires_grad``. Gradients of parameters are put aside meanwhile, so that nobody adds to them. Not restored are
    values written into parameters and buffers.

    Args:
        model: The model.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with lent(layer):
        ...     layer.eval()(torch.ones(1, 1)).sum().backward()
        >>> layer.training, layer.weight.grad
        (True, None)
    """
    modules = [(module, dict(module.__dict__)) for module in model.modules()]
    # Dictionaries are refilled and not replaced: whoever registered a hook holds a reference to the one it is in.
    contents = [(one, dict(one)) for _, held in modules for one in held.values() if isinstance(one, dict)]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None
        yield
    finally:
        for one, held in [*((module.__dict__, held) for module, held in modules), *contents]:
            one.clear()
            one.update(held)
        for parameter, differentiated, gradient in parameters:
            parameter.requires_grad_(differentiated).grad = gradient


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


def differentiable_attention() -> AbstractContextManager[Any]:
    """Attention by plain operations inside: the fused kernels have a first derivative only."""
    return sdpa_kernel(SDPBackend.MATH)


def current_autocast(device: torch.device) -> ForwardContext:
    """What makes the autocast that is on now again later, wherever that is.

    Args:
        device: Where the model runs.

    Returns:
        A function that makes the context; that of no autocast where none is on.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     context = current_autocast(torch.device("cpu"))
        >>> with context():
        ...     torch.get_autocast_dtype("cpu")
        torch.bfloat16
    """
    if not torch.is_autocast_enabled(device.type):
        return nullcontext
    return partial(torch.autocast, device.type, torch.get_autocast_dtype(device.type))


_OWN_PASS = ContextVar("lightning_xai_own_pass", default=False)


@contextmanager
def own_pass() -> Iterator[None]:
    """Passes of our own inside: whoever listens to a model or observes it takes no notice of them."""
    token = _OWN_PASS.set(True)
    try:
        yield
    finally:
        _OWN_PASS.reset(token)


def in_own_pass() -> bool:
    """Whether a pass of our own is running in this thread."""
    return _OWN_PASS.get()


_BYSTANDER = ContextVar("lightning_xai_bystander", default=False)


@contextmanager
def bystander() -> Iterator[None]:
    """Inside runs what only watches a pass: nothing stands in for its operations, and they are in no graph."""
    token = _BYSTANDER.set(True)
    try:
        with torch.no_grad():
            yield
    finally:
        _BYSTANDER.reset(token)


def is_bystander() -> bool:
    """Whether what only watches a pass is running in this thread."""
    return _BYSTANDER.get()


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
