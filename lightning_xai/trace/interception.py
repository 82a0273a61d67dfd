"""Standing in for the torch functions that a model calls, whichever way it calls them.

Modules, functions, operators and in-place methods all end in a torch function, and a function mode sees each of them:
no module is replaced or hooked, so that re-used modules and functional calls need no care, and nothing can stay
behind. What stands in for which function is the caller's: this file knows no rule.
"""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_xai.trace.layers import name_of
from lightning_xai.trace.modes import is_bystander


class Interception(ABC):
    """What stands in for a model's operations, for methods that propagate by rules of their own.

    Subclasses are frozen dataclasses: equal ones do the same, and share one pass.
    """

    @abstractmethod
    def __call__(self, model: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        """The context in which a pass of the model runs.

        Its autograd graph is what seeds at the logits are propagated through; its outputs are the model's, unchanged.

        Args:
            model: The model.
            images: What it will be given, (N,C,H,W), with gradients required.
        """


@dataclass
class Call:
    """A torch function that is called with tensors that descend from the images.

    Attributes:
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        on_path: The tensors among the arguments that descend from the images, in order.
        marks: What is known of each tensor that descends from the images.
        model: The model that is running.
        watch: What makes functions that a handler calls come to handlers, too.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    on_path: list[Tensor]
    marks: WeakTensorKeyDictionary
    model: nn.Module
    watch: AbstractContextManager[Any]

    @property
    def inplace(self) -> bool:
        """Whether the first argument is overwritten."""
        name = getattr(self.function, "__name__", "")
        marked = name.endswith("_") and not name.endswith("__")
        return marked or name == "__setitem__" or bool(self.kwargs.get("inplace"))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def run(self) -> Any:
        """What the function itself gives."""
        return self.function(*self.args, **self.kwargs)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same call with each tensor that descends from the images changed."""
        changed = {id(one): change(one) for one in self.on_path}
        args, kwargs = tree_map(lambda one: changed.get(id(one), one), (self.args, self.kwargs))
        on_path = [changed[id(one)] for one in self.on_path]
        return dataclasses.replace(self, args=args, kwargs=kwargs, on_path=on_path)

    def watched(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function gives that is made of others, each of which goes to its handler.

        Args:
            function: A function in terms of torch functions.
            args: Its arguments.
        """
        with self.watch:
            return function(*args)

    def giving(self, result: Any) -> Call:
        """A call that gives what is known already."""
        return dataclasses.replace(self, function=lambda: result, args=(), kwargs={})

    def refusal(self, reason: str) -> NotImplementedError:
        """An error that names the function and the module that called it.

        Args:
            reason: What was expected and what came.
        """
        function = getattr(self.function, "__name__", repr(self.function))
        if function == "__get__":  # of a property
            function = getattr(self.function, "__self__", self.function).__name__
        return NotImplementedError(f"`{function}` in {_running(self.model)} {reason}")


Handler: TypeAlias = Callable[[Call], tuple[Any, Any]]
"""Stands in for a function: gives what the model is to receive, and the mark of the tensors in it."""


@contextmanager
def intercepted(
    model: nn.Module, images: Tensor, handlers: Mapping[Callable[..., Any], Handler], mark: Any
) -> Iterator[None]:
    """Inside, handlers stand in for the functions that are called with whatever descends from the images.

    Functions of other tensors (parameters, buffers) run as ever, without gradients. Autocast is off.

    Args:
        model: The model that runs, for the names of its modules.
        images: Images (N,C,H,W) that require gradients.
        handlers: What stands in for each function.
        mark: The mark of the images.

    Raises:
        NotImplementedError: If a function without a handler is called, or one that torch does not show (custom
            autograd functions, scripted functions): relevance would pass it by no rule.
        RuntimeError: If the model uses checkpointing, whose functions run once more where nobody stands in.
    """
    mode = _Mode(model, handlers)
    mode.marks[images] = mark
    message = "An intercepted pass expected a model without checkpointing: switch it off to explain the model."
    no_hooks = torch.autograd.graph.disable_saved_tensors_hooks(message)
    with no_hooks, torch.autocast(images.device.type, enabled=False), mode:
        yield


def spellings(*names: str) -> list[Callable[..., Any]]:
    """The functions of these names in torch, torch.nn.functional and as methods, in-place forms included.

    Args:
        names: Names such as ``"relu"``.

    Returns:
        The functions that exist.

    Example:
        >>> torch.Tensor.relu_ in spellings("relu"), F.relu in spellings("relu")
        (True, True)
    """
    homes = (torch, F, Tensor, torch._C._nn)
    forms = ("{}", "{}_", "__{}__", "__i{}__", "__r{}__")
    found = [getattr(home, form.format(name), None) for name in names for home in homes for form in forms]
    return [one for one in found if one is not None]


class _Mode(TorchFunctionMode):
    """Sends each call to its handler, and keeps track of what descends from the images."""

    def __init__(self, model: nn.Module, handlers: Mapping[Callable[..., Any], Handler]) -> None:
        super().__init__()
        self.marks = WeakTensorKeyDictionary()
        self._origins = WeakTensorKeyDictionary()
        self._model = model
        self._handlers = handlers

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_bystander():
            return function(*args, **kwargs)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        call = Call(function, args, kwargs, [one for one in given if one in self.marks], self.marks, self._model, self)
        if any(self._is_foreign(one) for one in given):
            raise call.refusal(
                "expected tensors made by torch functions, got one made by a custom autograd function or by scripted "
                "code, which hand relevance on by no known rule: use their plain forms."
            )
        if not call.on_path:
            with torch.no_grad():
                return call.run()
        with torch.enable_grad():  # parts of a model that run without gradients hand relevance on, too
            result, mark = self._handlers.get(function, _unhandled)(call)
        for tensor in tree_leaves(result):
            new = isinstance(tensor, Tensor) and not any(tensor is one for one in call.on_path)
            if (new and tensor.requires_grad) or call.inplace:  # zeros in somebody's shape descend from nobody
                self.marks[tensor], self._origins[tensor] = mark, tensor.grad_fn
        return result

    def _is_foreign(self, tensor: Tensor) -> bool:
        """Whether it comes out of a function that was not seen: with gradients, and no mark or another origin."""
        if not tensor.requires_grad or tensor.is_leaf:
            return False
        if tensor not in self._origins:
            return tensor not in self.marks  # the images may have a history
        # a custom function puts its own name on what the functions inside of it made
        return isinstance(tensor.grad_fn, BackwardCFunction) and tensor.grad_fn is not self._origins[tensor]


def _unhandled(call: Call) -> tuple[Any, None]:
    """Shapes, dtypes and the like are none of our business; anything else has no rule."""
    result = call.run()
    if result is None or any(isinstance(one, Tensor) for one in tree_leaves(result)):
        raise call.refusal("has no relevance rule.")
    return result, None


def _running(model: nn.Module) -> str:
    """The innermost module of a model that is running, found by looking up the stack."""
    inside = set(model.modules())
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in inside:
            name = "the model" if owner is model else repr(name_of(model, owner))
            return f"{name} ({type(owner).__name__})"
        frame = frame.f_back
    return "the model"
