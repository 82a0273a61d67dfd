"""What modules keep of a pass in attributes of their own: features, weights made anew, caches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_REGISTRIES = set(nn.Module().__dict__)
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
    """What modules keep of the passes inside has no graph after, as if there had been none.

    Only tensors with a graph can't be copied, so that a model that keeps one could not be, either.
    """
    before = {id(value): value for holder in _holders(model) for _, value in _items(holder)}
    try:
        yield
    finally:
        for holder in _holders(model):
            for key, value in _items(holder):
                if id(value) not in before and _holds_tensors(value):
                    holder[key] = tree_map(_without_graph, value)


def _holders(model: nn.Module) -> Iterator[Any]:
    """The dictionaries and lists in which modules keep what is no parameter, submodule or hook."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):  # keeps everything elsewhere
            continue
        yield module.__dict__
        yield module._buffers
        kept = (value for name, value in module.__dict__.items() if name not in _REGISTRIES)
        yield from (value for value in kept if type(value) in (dict, OrderedDict, list))


def _items(holder: Any) -> list[tuple[Any, Any]]:
    return list(holder.items() if isinstance(holder, dict) else enumerate(holder))


def _put_back(holder: dict[str, Any], held: dict[str, Any]) -> None:
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


def _without_graph(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) and value.grad_fn is not None else value
