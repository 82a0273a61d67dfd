"""Models whose parameters are spread over processes: every pass of one is a pass of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_UNIT = "_get_fsdp_state"  # what torch.distributed.fsdp.FSDPModule adds; importing it takes half a second


def is_sharded(model: nn.Module) -> bool:
    """Whether parts of a model are sharded by ``fully_shard`` (FSDP2).

    Args:
        model: The model.

    Returns:
        True if so.

    Example:
        >>> is_sharded(nn.Linear(1, 1))
        False
    """
    return bool(_units(model))


def has_tensor_parallelism(model: nn.Module) -> bool:
    """Whether parameters of a model are spread over processes by other means than ``fully_shard``.

    Args:
        model: The model.

    Returns:
        True if so: each pass then waits for the other processes.

    Example:
        >>> has_tensor_parallelism(nn.Linear(1, 1))
        False
    """
    covered = {one for unit in _units(model) for one in unit.parameters()}
    spread = [one for one in model.parameters() if hasattr(one, "device_mesh")]
    return any(one not in covered or one.device_mesh.ndim > 1 for one in spread)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, each process holds all parameters of a model, and its passes wait for no other process.

    So each may make as many passes as it likes: one draws, one has an image more, one has none. Enter and leave it on
    all processes; there it takes the memory of the whole model. Without sharded parts nothing happens.

    Args:
        model: The model, sharded by ``fully_shard``.
    """
    units = _units(model)
    # Of flags that are set in public there is no public way to read them, and so none to restore them.
    states = [unit._get_fsdp_state() for unit in units]
    groups = [group for state in states for group in _groups(state)]
    held = [(one, name, getattr(one, name)) for one, name in _flags(states, groups)]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.set_reshard_after_backward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for one, name, value in held:
            setattr(one, name, value)
        with torch.no_grad():
            for unit in units:
                unit.reshard()


def _units(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, _UNIT)]


def _groups(state: Any) -> list[Any]:
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # torch 2.11 has one for each unit
        groups = [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def _flags(states: list[Any], groups: list[Any]) -> Iterator[tuple[Any, str]]:
    yield from ((state, "_auto_reshard_after_forward") for state in states)
    for group in groups:
        yield from ((group, name) for name in ("post_forward_mesh_info", "reshard_after_backward"))
