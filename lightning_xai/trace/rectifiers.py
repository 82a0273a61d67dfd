"""Rectifiers among the nodes of an autograd graph: those of the papers, and those with a soft corner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from lightning_xai.types import Rectifiers

MIN_RECTIFIED_SHARE = 0.5
"""Below this share of rectifiers among the nonlinearities a guided gradient is nearly the plain one and is refused."""

_RELU: dict[str, Callable[[Any], bool]] = {
    "Relu": lambda node: True,
    "Hardtanh": lambda node: node._saved_min_val == 0,
    "Clamp": lambda node: _is_zero(getattr(node, "_saved_min", None)),
    "ClampMin": lambda node: _is_zero(getattr(node, "_saved_min", None)),
    "Threshold": lambda node: node._saved_threshold == 0,
}
_SMOOTH = {
    *("LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Gelu", "Silu", "Mish", "Softplus", "Hardswish"),
}
_BOUNDED = {"Sigmoid", "Hardsigmoid", "Tanh", "Hardtanh", "Erf"}
# clamps at other bounds are arithmetic, not nonlinearities of the network, so they are in the first list only
_NONLINEARITIES = {"Relu", "Hardtanh", "Threshold", "LogSigmoid", *_SMOOTH, *_BOUNDED}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Softplus", "ToCopy"}
_HIDING = {"CompiledFunction", "CheckpointFunction"}


def rectifiers_of(outputs: Tensor, rectifiers: Rectifiers) -> list[Any]:
    """The nodes of rectifiers above a tensor.

    Raises:
        ValueError: If there are none, or too small a share of the nonlinearities.
        RuntimeError: If there are nodes that may hide rectifiers (compiled regions, re-entrant checkpointing).

    Example:
        >>> import torch
        >>> y = torch.nn.functional.silu(torch.relu(torch.ones(1, requires_grad=True)))
        >>> [node.name() for node in rectifiers_of(y, "relu")]
        ['ReluBackward0']
    """
    nodes = graph_of(outputs)
    _require_visible(nodes)
    products, gates = _self_gated(nodes)
    relu, smooth, others = [], list(products), []
    for node in nodes - gates:
        kind = kind_of(node)
        if kind in _RELU and _RELU[kind](node):
            relu.append(node)
        elif kind in _SMOOTH:
            smooth.append(node)
        elif kind in _NONLINEARITIES:
            others.append(node)
    counted = [*relu, *smooth] if rectifiers == "all" else relu
    _require_share(counted, relu, smooth, others)
    return counted


def graph_of(outputs: Tensor) -> set[Any]:
    """All nodes above a tensor.

    Example:
        >>> import torch
        >>> sorted(node.name() for node in graph_of(torch.ones(1, requires_grad=True).relu()))
        ['ReluBackward0', 'torch::autograd::AccumulateGrad']
    """
    seen: set[Any] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(above for above, _ in node.next_functions)
    return seen


def kind_of(node: Any) -> str:
    """What a node differentiates: its name without ``Backward`` and number."""
    return node.name().rstrip("0123456789").removesuffix("Backward")


def _self_gated(nodes: Iterable[Any]) -> tuple[list[Any], set[Any]]:
    """Activations that are written out, ``x * gate(x)``: their products, and the nodes of their gates.

    GELU, SiLU, quick-GELU, Hardswish and Mish are such products. A gate of something else (an attention of channels, a
    second branch) makes no rectifier: only elementwise operations on x itself may lie between x and the product.
    """
    products, gates = [], set()
    for node in nodes:
        if kind_of(node) != "Mul" or len(node.next_functions) != 2:
            continue
        one, other = node.next_functions
        for source, gate in ((one, other), (other, one)):
            inside = _function_of(_unscaled(source), gate)
            if any(kind_of(one) in _BOUNDED for one in inside):
                products.append(node)
                gates |= inside
                break
    return products, gates


def _function_of(source: tuple[Any, int], output: tuple[Any, int]) -> set[Any]:
    """The nodes between the two edges where they are elementwise and nothing else flows in; empty otherwise."""
    inside: set[Any] = set()
    waiting = [output]
    while waiting:
        edge = waiting.pop()
        if edge == source or edge[0] is None or edge[0] in inside:
            continue
        if kind_of(edge[0]) not in _ARITHMETIC | _BOUNDED or len(inside) == 16:
            return set()
        inside.add(edge[0])
        waiting.extend(edge[0].next_functions)
    return inside


def _unscaled(edge: tuple[Any, int]) -> tuple[Any, int]:
    """The edge above multiplications by numbers."""
    while edge[0] is not None and kind_of(edge[0]) in ("Mul", "Div"):
        above = [one for one in edge[0].next_functions if one[0] is not None]
        if len(above) != 1:
            break
        edge = above[0]
    return edge


def _require_visible(nodes: Iterable[Any]) -> None:
    for node in nodes:
        if kind_of(node) in _HIDING:
            raise RuntimeError(
                f"The guided rule expected to see every rectifier, got {node.name()}, which may hide some. Use the "
                "model and the step without torch.compile, and checkpointing with use_reentrant=False."
            )


def _require_share(counted: list[Any], relu: list[Any], smooth: list[Any], others: list[Any]) -> None:
    total = len(relu) + len(smooth) + len(others)
    if total == 0:
        raise ValueError(
            "The guided rule expected rectifiers between the image and the logits, found no nonlinearity at all: the "
            "model is linear, or runs its nonlinearities under torch.no_grad(), or detaches what they give. Freeze a "
            "backbone by requires_grad_(False) instead."
        )
    if not counted or len(counted) / total < MIN_RECTIFIED_SHARE:
        missed = sorted({kind_of(node) for node in {*smooth, *others} - set(counted)})
        enough = len(relu) + len(smooth) >= MIN_RECTIFIED_SHARE * total
        raise ValueError(
            f"The guided rule expected at least {MIN_RECTIFIED_SHARE:.0%} of the nonlinearities to be rectifiers, got "
            f"{len(counted)} of {total} (others: {', '.join(missed)}). "
            + (
                'With `rectifiers="all"` GELU, SiLU and the like count as well as ReLU.'
                if enough
                else "Guided gradients are for rectifier networks such as ResNet, ConvNeXt or ViT."
            )
        )


def _is_zero(bound: object) -> bool:
    return isinstance(bound, (int, float)) and bound == 0
