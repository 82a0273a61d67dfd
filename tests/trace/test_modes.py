"""Modes are changed inside a context only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_xai.trace.modes import eager


@pytest.fixture
def compiled() -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """A compiled function, and a list that grows with each call that runs compiled."""
    torch.compiler.reset()
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        return lambda *values: calls.append("compiled") or graph(*values)

    function = torch.compile(lambda value: value + 1, backend=backend)
    function(torch.ones(1))
    calls.clear()
    return function, calls


def test_compiled_code_runs_eagerly_until_the_last_of_overlapping_contexts_ends(compiled: Any) -> None:
    """Callbacks begin and end in the same order: contexts that nest are not to be had."""
    function, calls = compiled
    first, second = eager(), eager()
    first.__enter__()
    second.__enter__()
    function(torch.ones(1))
    first.__exit__(None, None, None)
    function(torch.ones(1))
    assert calls == []
    second.__exit__(None, None, None)
    function(torch.ones(1))
    assert calls == ["compiled"]


def test_compiled_code_runs_compiled_again_after_an_exception(compiled: Any) -> None:
    """Whatever ends the context."""
    function, calls = compiled
    with pytest.raises(ArithmeticError), eager():
        raise ArithmeticError
    function(torch.ones(1))
    assert calls == ["compiled"]
