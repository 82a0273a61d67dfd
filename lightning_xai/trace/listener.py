"""Hearing a model's forward where somebody else calls it, as a Trainer's validation step does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import RLock, get_ident
from types import FunctionType, MethodType
from typing import Any, ClassVar
from weakref import ref

import torch
from torch import nn

from lightning_xai.trace.calling import Calling, images_in
from lightning_xai.trace.capture import Capture
from lightning_xai.trace.modes import alone_with, eager, in_own_pass
from lightning_xai.trace.recording import recorded, require_python_forward
from lightning_xai.trace.trace import Trace


class Listener:
    """Context in which every gradient-free call of a model leaves a trace, and callers notice nothing.

    The model's ``forward`` is shadowed on the instance. The graph starts at the captured layer (before it the pass
    is gradient-free) or at the image; the caller gets a detached copy of the output. Calls made with gradients
    enabled, by other threads, without images or with no logits (N,K) in the output pass unheard, and so do `run` and
    `predict`. Several listeners to one model share each forward and its trace.

    Args:
        model: The classifier.
        capture: What to keep.
        calling: Where the logits are in the output, and the context in which later passes of the same trace run
            (`Trace.rerun`); their other arguments are those that were heard.

    Attributes:
        traces: One for each call heard, in order.
        capture: What to keep.

    Raises:
        TypeError: If the model is scripted or traced.
        RuntimeError: If its parameters are inference tensors.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> with Listener(model, Capture()) as listener, torch.no_grad():
        ...     logits = model(torch.ones(3, 1, 2, 2))
        >>> len(listener.traces), listener.traces[0].logits.shape
        (1, torch.Size([3, 2]))
    """

    def __init__(self, model: nn.Module, capture: Capture, calling: Calling | None = None) -> None:
        require_python_forward(model)
        self.traces: list[Trace] = []
        self.capture = capture
        self._model = model
        self._calling = Calling() if calling is None else calling
        self._stack = ExitStack()

    def __enter__(self) -> Listener:
        self._stack.enter_context(eager())
        _Hearing.enter(self._model, self, self._calling)
        self._stack.callback(_Hearing.leave, self._model, self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


@dataclass(frozen=True, eq=False)
class Watcher:
    """Who is told of calls of a module's forward.

    Attributes:
        begin: Is told of module and arguments when a call begins; answers whether it wants to be told of the rest.
        note: Is told of module, arguments and output when it ends.
    """

    begin: Callable[..., bool]
    note: Callable[..., None]

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Inside, calls of the module are told."""
        _Hearing.enter(module, self, Calling())
        try:
            yield
        finally:
            _Hearing.leave(module, self)


class _Hearing:
    """What stands in for a model's forward while anybody listens, and tells all listeners of each call.

    Callbacks end in the order in which they began, and threads whenever they do: contexts overlap without nesting. So
    there is one for each model, and the last listener to leave restores the forward.
    """

    _LOCK = RLock()
    _OF: ClassVar[dict[int, _Hearing]] = {}  # by identity: the hash of a metric changes with its values

    def __init__(self, model: nn.Module) -> None:
        self.model = model  # kept while anybody listens: the identity of one that is gone may become another's
        self.listeners: list[tuple[int, Listener | Watcher, Calling]] = []
        self.own = model.__dict__.get("forward")  # a model may have a forward of its own, as DDP gives it one
        model.forward = _stand_in(model, self)

    @classmethod
    def enter(cls, model: nn.Module, listener: Listener | Watcher, calling: Calling) -> None:
        """One listener more."""
        with cls._LOCK:
            hearing = cls._OF.get(id(model)) or cls._OF.setdefault(id(model), cls(model))
            hearing.listeners.append((get_ident(), listener, calling))

    @classmethod
    def leave(cls, model: nn.Module, listener: Listener | Watcher) -> None:
        """One listener less."""
        with cls._LOCK:
            hearing = cls._OF[id(model)]
            hearing.listeners = [one for one in hearing.listeners if one[1] is not listener]
            if not hearing.listeners:
                del cls._OF[id(model)]
                hearing.give_back(model)

    def give_back(self, model: nn.Module) -> None:
        """The model has the forward that it had."""
        if self.own is None:
            model.__dict__.pop("forward", None)
        else:
            model.__dict__["forward"] = self.own

    def hear(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        """One call, of which listeners in this thread are told."""
        mine = [(listener, calling) for thread, listener, calling in self.listeners if thread == get_ident()]
        watchers = [one for one, _ in mine if isinstance(one, Watcher) and not _by_a_compiler()]
        told = [one for one in watchers if one.begin(model, args, kwargs)]
        output = self._called(model, [(one, how) for one, how in mine if isinstance(one, Listener)], args, kwargs)
        for one in told:
            one.note(model, args, kwargs, output)
        return output

    def _called(self, model: nn.Module, mine: list[tuple[Listener, Calling]], args: Any, kwargs: Any) -> Any:
        forward = MethodType(type(model).forward, model) if self.own is None else self.own
        # Calls with gradients are somebody's training, and those without images or by a compiler no classification.
        elsewhere = _by_a_compiler() or torch.is_grad_enabled()
        images = None if elsewhere or not mine or in_own_pass() else images_in(args, kwargs)
        if images is None:
            return forward(*args, **kwargs)
        capture = Capture()
        for listener, _ in mine:
            capture |= listener.capture
        with alone_with(model):
            output, recording = recorded(model, forward, args, kwargs, images, capture, mine[0][1])
        if recording.logits is not None:
            trace = Trace(recording, recording.logits)
            for listener, _ in mine:
                listener.traces.append(trace)
        return output


def _by_a_compiler() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _stand_in(model: nn.Module, hearing: _Hearing) -> MethodType:
    """A bound method in place of a model's forward.

    It is a method, and is called as the forward is, so that whoever copies, pickles, scripts or exports the model finds
    what was there before: pickle looks a method up by its name and finds the class's own, deepcopy binds it to the
    copy, where it steps aside at the first call, and ``inspect`` and scripting look at the function that it wraps.
    """
    own, heard = model.forward, ref(model)
    function = getattr(own, "__func__", own)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is heard():
            return hearing.hear(self, args, kwargs)
        hearing.give_back(self)
        return self.forward(*args, **kwargs)

    # Scripting reads the wrapped function, and looks its names up in the globals of the one that it is given.
    stand_in = FunctionType(forward.__code__, getattr(function, "__globals__", {}), closure=forward.__closure__)
    return MethodType(wraps(function)(stand_in), model)
