"""Hearing a model's forward where somebody else calls it, as a Trainer's validation step does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

from torch import nn

from lightning_xai.trace.hooks import replaced_forward, replacement_of
from lightning_xai.trace.modes import eager, in_own_pass
from lightning_xai.trace.trace import Capture, Trace, recorded, require_python_forward
from lightning_xai.types import ForwardContext


class Listener:
    """Context in which every gradient-free call of a model leaves a trace, and callers notice nothing.

    The model's ``forward`` is shadowed on the instance. The graph starts at the captured layer (before it the pass
    is gradient-free) or at the image; the caller gets a detached copy of the logits. Calls made with gradients
    enabled, without images or with other outputs than logits (N,K) pass unheard, and so do `run` and
    `predict`. Several listeners to one model share each forward and its trace.

    Args:
        model: The classifier.
        capture: What to keep.
        context: Context in which later passes of the same trace run (`Trace.rerun`).

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

    def __init__(self, model: nn.Module, capture: Capture, context: ForwardContext = nullcontext) -> None:
        require_python_forward(model)
        self.traces: list[Trace] = []
        self.capture = capture
        self._model = model
        self._context = context
        self._hearing: _Hearing | None = None

    def __enter__(self) -> Listener:
        self._hearing = _Hearing.of(self._model, self._context)
        self._hearing.listeners.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._hearing is not None:
            self._hearing.leave(self)
        self._hearing = None


class _Hearing:
    """What stands in for a model's forward while anybody listens, and tells all listeners of each call.

    Callbacks end in the order in which they began: their contexts overlap without nesting. So the last listener to
    leave restores the forward.
    """

    def __init__(self, model: nn.Module, context: ForwardContext) -> None:
        self.listeners: list[Listener] = []
        self._model = model
        self._context = context
        self._stack = ExitStack()
        self._stack.enter_context(eager())
        self._stack.enter_context(replaced_forward(model, self))

    @classmethod
    def of(cls, model: nn.Module, context: ForwardContext) -> _Hearing:
        """The one that stands there already, or a new one."""
        current = replacement_of(model)
        return current if isinstance(current, cls) else cls(model, context)

    def leave(self, listener: Listener) -> None:
        """One listener less."""
        self.listeners.remove(listener)
        if not self.listeners:
            self._stack.close()

    def __call__(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if in_own_pass():
            return forward(*args, **kwargs)
        capture = Capture()
        for listener in self.listeners:
            capture |= listener.capture
        output, trace = recorded(self._model, forward, args, kwargs, capture, self._context)
        if trace is not None:
            for listener in self.listeners:
                listener.traces.append(trace)
        return output
