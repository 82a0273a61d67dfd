"""Where these tests run: on a GPU, or for rehearsal, as far as they can, on the device LIGHTNING_XAI_GPU_TESTS names.

pytest -m gpu tests/gpu
LIGHTNING_XAI_GPU_TESTS=cpu pytest -m gpu tests/gpu
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it deterministic mode refuses every product

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device(os.environ.get("LIGHTNING_XAI_GPU_TESTS", "cuda"))
CUDA = DEVICE.type == "cuda"

there = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("exact"),
]
"""Marks of every test of this folder."""
cuda_alone = pytest.mark.skipif(not CUDA, reason="is about CUDA itself")


class _Looks(TorchDispatchMode):
    """Notes operations that would wait for a GPU because the program goes on with what they find."""

    names = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        masks = tree_leaves(args[1]) if name.startswith("index") and len(args) > 1 else []
        if name in self.names or any(isinstance(one, Tensor) and one.dtype == torch.bool for one in masks):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """What the CPU waited for inside: on a GPU as CUDA tells it; else the looks at values that are known to wait."""
    if not CUDA:
        with _Looks() as looks:
            yield looks.found
        return
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    found += [f"{one.filename}:{one.lineno}" for one in told if "synchronizing CUDA operation" in str(one.message)]


def held() -> int:
    """Bytes that tensors hold on the GPU; 0 elsewhere."""
    return torch.cuda.memory_allocated(DEVICE) if CUDA else 0
