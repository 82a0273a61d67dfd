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
_CONTAINERS = {dict, OrderedDict, list}
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
    before = _kept(model)
    apart = [(*one, one[2].detach()) for one in before if _has_graph(one[2])]
    try:
        for holder, key, _, constant in apart:
            holder[key] = constant
        yield
    finally:
        known = {id(value) for _, _, value in before}
        for holder, key, value in _kept(model):
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
    for module in _in_python(model):
        own = module.__dict__
        yield own
        yield own["_buffers"]
        yield from [own[key] for key in own.keys() - _REGISTRIES if type(own[key]) in _CONTAINERS]


def _kept(model: nn.Module) -> list[tuple[Any, Any, Any]]:
    """What is in the holders, one by one with its holder and its key, but for numbers and texts: most of what is.

    Each pass asks for it twice, so it is written to be quick.
    """
    kept: list[tuple[Any, Any, Any]] = []
    for module in _in_python(model):
        own, buffers = module.__dict__, module.__dict__["_buffers"]
        kept += [(own, key, own[key]) for key in own.keys() - _REGISTRIES if type(own[key]) not in _PLAIN]
        kept += [(buffers, key, value) for key, value in buffers.items() if value is not None]
    inside = [value for _, _, value in kept if type(value) in _CONTAINERS]
    return kept + [(one, key, value) for one in inside for key, value in _items(one) if type(value) not in _PLAIN]


def _in_python(model: nn.Module) -> Iterator[nn.Module]:
    return (one for one in model.modules() if not isinstance(one, torch.jit.ScriptModule))  # which keep all elsewhere


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
