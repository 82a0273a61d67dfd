"""The guided rule of backpropagation, applied to the nodes of an autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

MIN_RECTIFIED_SHARE = 0.5
"""Below this share of rectifiers among the nonlinearities a guided gradient is nearly the plain one and is refused."""

_RECTIFIERS: dict[str, Callable[[Any], bool]] = {
    "ReluBackward": lambda node: True,
    "HardtanhBackward": lambda node: node._saved_min_val == 0,
    "ClampBackward": lambda node: _is_zero(getattr(node, "_saved_min", None)),
    "ClampMinBackward": lambda node: _is_zero(getattr(node, "_saved_min", None)),
    "ThresholdBackward": lambda node: node._saved_threshold == 0,
}
# clamps at other bounds are arithmetic, not nonlinearities of the network, so they are in the first list only
_NONLINEARITIES = {
    f"{name}Backward"
    for name in (
        *("Relu", "Hardtanh", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Gelu", "Silu", "Mish"),
        *("Softplus", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh", "LogSigmoid", "Threshold"),
    )
}
_HIDING = {"CompiledFunctionBackward", "CheckpointFunctionBackward"}


@contextmanager
def guided(outputs: Tensor) -> Iterator[None]:
    """Backward passes from ``outputs`` follow the guided rule inside: no negative gradient enters a rectifier.

    ``du = 1[u > 0] max(dv, 0)`` (Springenberg et al., "Striving for Simplicity", 2015; "A Learning Paradigm for
    Interpretable Gradients", 2024, section 4.1), by hooks on the autograd nodes: ReLU, ReLU6, clamp and threshold at
    zero count as rectifiers however they were called, as modules, functions or in place.

    Args:
        outputs: Tensor whose graph is walked.

    Raises:
        ValueError: If the graph holds no rectifier, or too small a share of them (`MIN_RECTIFIED_SHARE`).
        RuntimeError: If it holds nodes that may hide rectifiers (compiled regions, re-entrant checkpointing).

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> y = (torch.relu(x) * torch.tensor([-1.0, 1.0])).sum()
        >>> with guided(y):
        ...     torch.autograd.grad(y, x)[0]
        tensor([0., 1.])
    """
    handles = [node.register_prehook(_clamp) for node in _rectifiers(outputs)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _clamp(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient.clamp(min=0) for gradient in gradients)


def _rectifiers(outputs: Tensor) -> list[Any]:
    rectifiers, others = [], []
    for node in _graph(outputs):
        name = node.name().rstrip("0123456789")
        if name in _HIDING:
            raise RuntimeError(
                f"The guided rule expected to see every rectifier, got {name}, which may hide some. Use the model "
                "without torch.compile, and checkpointing with use_reentrant=False."
            )
        if name in _RECTIFIERS and _RECTIFIERS[name](node):
            rectifiers.append(node)
        elif name in _NONLINEARITIES:
            others.append(name.removesuffix("Backward"))
    _require_share(len(rectifiers), others)
    return rectifiers


def _require_share(rectifiers: int, others: list[str]) -> None:
    total = rectifiers + len(others)
    if rectifiers == 0 or rectifiers / total < MIN_RECTIFIED_SHARE:
        named = f" (others: {', '.join(sorted(set(others)))})" if others else ""
        raise ValueError(
            f"The guided rule expected at least {MIN_RECTIFIED_SHARE:.0%} of the nonlinearities to be rectifiers "
            f"(ReLU, ReLU6, clamp at 0), got {rectifiers} of {total}{named}. Guided gradients are for rectifier "
            "networks such as ResNet, VGG or MobileNetV2."
        )


def _graph(outputs: Tensor) -> set[Any]:
    """All nodes above a tensor."""
    seen: set[Any] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(above for above, _ in node.next_functions)
    return seen


def _is_zero(bound: object) -> bool:
    return isinstance(bound, (int, float)) and bound == 0
