"""Modes of modules and of autograd, changed inside a context and restored after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_xai.trace.attributes import attributes_restored
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
    with _switched_off(module for module in model.modules() if module.training or module in _IN_EVALUATION):
        yield


@contextmanager
def batch_norm_evaluation(model: nn.Module) -> Iterator[None]:
    """Batch normalisation with its running statistics inside; nothing else changes.

    Args:
        model: The model.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    found = (module for module in model.modules() if isinstance(module, kinds))
    with _switched_off(module for module in found if module.training or module in _IN_EVALUATION):
        yield


_LOCK = RLock()
_IN_EVALUATION: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # how many contexts switched each module off


@contextmanager
def _switched_off(training: Iterable[nn.Module]) -> Iterator[None]:
    # Contexts of several threads may overlap on a module that two models share: the last one switches it on again.
    with _LOCK:
        modules = list(training)
        for module in modules:
            _IN_EVALUATION[module] = _IN_EVALUATION.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in modules:
                _IN_EVALUATION[module] -= 1
                if _IN_EVALUATION[module] == 0:
                    del _IN_EVALUATION[module]
                    module.training = True


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Others may use the model inside, and change whatever they change: it is as before after.

    Restored are modes, hooks, and what modules hold: attributes, submodules, parameters and buffers as objects, with
    ``requires_grad``. Gradients of parameters are put aside meanwhile, so that nobody adds to them. Not restored are
    values written into parameters and buffers.

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


class _Shared:
    """A state of the whole process that several contexts want at once: the first sets it, the last restores it.

    Callbacks end in the order in which they began, and threads whenever they do: such contexts overlap without nesting.
    If each restored what it had found, that of another would stay behind for ever.

    Args:
        make: Makes the context that sets and restores the state.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._users = 0
        self._restore = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with _LOCK:
            if self._users == 0:
                self._restore.enter_context(self._make())
            self._users += 1
        try:
            yield
        finally:
            with _LOCK:
                self._users -= 1
                if self._users == 0:
                    self._restore.close()


def _force_eager() -> AbstractContextManager[Any]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it is slow
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


eager = _Shared(_force_eager)
"""Compiled code runs eagerly inside, where it would not see hooks that are added after compilation."""

differentiable_attention = _Shared(partial(sdpa_kernel, SDPBackend.MATH))
"""Attention by plain operations inside: the fused kernels have a first derivative only."""


class GraphKept(TorchFunctionMode):
    """Inside, a model's own ``torch.no_grad()`` does not cut the graph, once that has begun.

    A backbone that a model runs without gradients, because it is frozen, is explained as any other. The grad mode
    is set through a torch function, which a function mode sees; before the graph begins, or where something only
    watches, it does as it says. ``torch.inference_mode()`` can't be undone so.

    Args:
        begun: Whether the graph starts at the image; else `begin` is called where it starts.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> with GraphKept(begun=True), torch.no_grad():
        ...     y = 2 * x
        >>> y.requires_grad
        True
    """

    def __init__(self, begun: bool) -> None:
        super().__init__()
        self._begun = begun

    def begin(self) -> None:
        """From here on there is a graph, to the end of the pass."""
        self._begun = True
        torch.set_grad_enabled(True)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        ends = function is torch._C._set_grad_enabled and not args[0]
        if ends and self._begun and not is_bystander():
            return None
        return function(*args, **kwargs or {})


_MODEL_LOCKS: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()


@contextmanager
def alone_with(model: nn.Module) -> Iterator[None]:
    """Other threads that want to be alone with the model wait; those that only use it do not."""
    with _LOCK:
        lock = _MODEL_LOCKS.setdefault(model, RLock())
    with lock:
        yield


_BORROWED: ContextVar[nn.Module | None] = ContextVar("lightning_xai_borrowed", default=None)


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Passes of our own inside: nobody listens, modules are in evaluation mode, and after them the model is as before.

    Inside another such context of the same model it does nothing: many passes share the cost of one.
    """
    if _BORROWED.get() is model:
        yield
        return
    token = _BORROWED.set(model)
    try:
        with alone_with(model), own_pass(), attributes_restored(model), evaluation_mode(model):
            yield
    finally:
        _BORROWED.reset(token)
