"""Probabilities in the place of logits, noticed by their values and by the operation that made them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_xai.trace.capture import Capture
from lightning_xai.trace.trace import Trace, run

_SQUASHING = {"Sigmoid", "Hardsigmoid", "Softmax"}
_MOVING = {"View", "ReshapeAlias", "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Clone", "Alias"}


def sum_to_one(values: Tensor) -> bool:
    """Whether values (N,K) are such as a softmax gives; never so for K = 1.

    Example:
        >>> sum_to_one(torch.tensor([[0.25, 0.75]])), sum_to_one(torch.tensor([[-0.25, 1.25]]))
        (True, False)
    """
    if values.ndim != 2 or values.shape[1] < 2 or not len(values):
        return False
    values = values.detach().float()
    inside = (values > 0) & (values < 1)  # logits such as (1, 0, 0) are no sign
    return bool((values >= 0).all() and inside.any() and ((values.sum(1) - 1).abs() < 1e-2).all())


def are_probabilities(logits: Tensor, made_by: Any) -> bool:
    """Whether what stands for logits (N,K) are probabilities: their rows sum to one, or a sigmoid or softmax made them.

    Args:
        logits: What a classifier gave.
        made_by: The node of the graph that made it.

    Example:
        >>> values = torch.zeros(2, 1, requires_grad=True).sigmoid().view(2, 1)
        >>> are_probabilities(values, values.grad_fn)
        True
    """
    return sum_to_one(logits) or _last_operation(made_by) in _SQUASHING


def require_logits(trace: Trace) -> None:
    """Refuse a pass whose model gives probabilities.

    Where its graph does not tell, and all values are in [0, 1], the first image takes one more pass.

    Args:
        trace: The pass.

    Raises:
        ValueError: If they are.

    Example:
        >>> require_logits(run(torch.nn.Flatten(), torch.ones(2, 1, 1, 2), Capture()))
    """
    values = trace.logits
    if values.min() >= 0 and values.max() <= 1 and are_probabilities(values, _made_by(trace)):
        raise ValueError(PROBABILITIES)


def _made_by(trace: Trace) -> Any:
    # LRP has a function of its own for whatever hands relevance on unchanged.
    if _last_operation(trace.made_by) not in ("", "Unchanged"):
        return trace.made_by
    first = trace.calling(1, torch.tensor([0]))
    return run(trace.model, trace.images[:1], Capture(image_gradient=True), first).made_by


PROBABILITIES = (
    "`model` expected to give logits, got probabilities, as a sigmoid or a softmax makes them. Leave that out, or name "
    "the module before it. Else let `logits_of` turn them back, `torch.logit` after a sigmoid and `torch.log` after a "
    "softmax: an argument of callbacks, of `GuidedGradientLoss`, and of `Calling`, which functions take as `calling`."
)


def _last_operation(node: Any) -> str:
    """The name of the last operation that was more than a view or a copy."""
    name = ""
    while node is not None and (name := node.name().split("Backward")[0]) in _MOVING:
        node = node.next_functions[0][0]
    return name
