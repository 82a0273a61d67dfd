"""What modules keep of a pass in attributes of their own: features, weights made anew, caches."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_REGISTRIES = set(nn.Module().__dict__)
_PLAIN = {bool, int, float, str, type(None)}
_MISSING = object()


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """Whatever tensors modules keep of the passes inside, they hold after what they held before.

    Example:
        >>> import torch
        >>> class Keeping(nn.Module):
        ...     def forward(self, images):
        ...         self.last = 2 * images
        ...         return self.last
        >>> model = Keeping()
        >>> with attributes_restored(model):
        ...     _ = model(torch.ones(1))
        >>> hasattr(model, "last")
        False
    """
    before = [(one, one.copy()) for one in _holders(model)]
    try:
        yield
    finally:
        for holder, held in before:
            if isinstance(holder, list):
                holder[:] = held
            else:
                _put_back(holder, held)


@contextmanager
def attributes_detached(model: nn.Module) -> Iterator[None]:
    """What modules keep of passes before is a constant in those inside; what they keep of these has no graph after.

    Only tensors without a graph can be copied, so that a model that keeps others could not be, either.
    """
    before = list(_kept(model))
    apart = [(*one, one[2].detach()) for one in before if _has_graph(one[2])]
    try:
        for holder, key, _, constant in apart:
            holder[key] = constant
        yield
    finally:
        known = {id(value) for _, _, value in before}
        for holder, key, value in list(_kept(model)):
            if id(value) not in known and _holds_tensors(value):
                holder[key] = tree_map(_without_graph, value)
        for holder, key, value, constant in apart:
            if dict(_items(holder)).get(key) is constant:
                holder[key] = value


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, in which what modules keep of a pass has no graph: torch copies no tensor that has one.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1)
        >>> model.kept = {"cpu": 2 * model.weight}
        >>> copied(model).kept["cpu"].requires_grad
        False
    """
    kept = [value for _, _, value in _kept(model) if _has_graph(value)]
    return copy.deepcopy(model, {id(one): one.detach().clone() for one in kept})


def _holders(model: nn.Module) -> Iterator[Any]:
    """The dictionaries and lists in which modules keep what is no parameter, submodule or hook."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):  # keeps everything elsewhere
            continue
        yield module.__dict__
        yield module._buffers
        kept = (value for name, value in module.__dict__.items() if name not in _REGISTRIES)
        yield from (value for value in kept if type(value) in (dict, OrderedDict, list))


def _kept(model: nn.Module) -> Iterator[tuple[Any, Any, Any]]:
    """What is in the holders, one by one with its holder and its key, but for numbers and texts: most of what is."""
    for holder in _holders(model):
        for key, value in _items(holder):
            if type(value) not in _PLAIN and key not in _REGISTRIES:
                yield holder, key, value


def _items(holder: Any) -> Any:
    return holder.items() if isinstance(holder, dict) else enumerate(holder)


def _put_back(holder: dict[str, Any], held: dict[str, Any]) -> None:
    if len(holder) == len(held) and all(map(is_, holder.values(), held.values())):
        return
    for key in {**held, **holder}:
        before, after = held.get(key, _MISSING), holder.get(key, _MISSING)
        if before is after or not (_holds_tensors(before) or _holds_tensors(after)):
            continue
        if before is _MISSING:
            del holder[key]
        else:
            holder[key] = before


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(one, Tensor) for one in tree_leaves(value))


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _without_graph(value: Any) -> Any:
    return value.detach() if _has_graph(value) else value
