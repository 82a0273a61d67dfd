"""The layer that gives the logits: found by running the model, edited in a copy, and the edit verified."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_xai.scores import at_least_float32
from lightning_xai.trace import AffineCall, copied, find_layer, last_affine_call, name_of, predict


def centered_logits(logits: Tensor) -> Tensor:
    """Logits minus their mean over the classes.

    Example:
        >>> centered_logits(torch.tensor([[1.0, 3.0]]))
        tensor([[-1.,  1.]])
    """
    logits = at_least_float32(logits)
    return logits - logits.mean(1, keepdim=True)


def gives_logits(call: AffineCall, logits: Tensor) -> bool:
    """Whether a layer's output, averaged over positions if it has any, is the logits: nothing follows the layer.

    Example:
        >>> gives_logits(AffineCall(nn.Linear(1, 2), torch.tensor([[1.0, 2.0]])), torch.tensor([[6.0, 7.0]]))
        False
    """
    if call.output is None or call.output.shape[:2] != logits.shape or call.output.ndim not in (2, 4):
        return False
    averaged = call.output if call.output.ndim == 2 else at_least_float32(call.output).mean((2, 3))
    return bool((averaged - logits).abs().max() <= 16 * torch.finfo(logits.dtype).eps * logits.abs().max())


def same_up_to_shift(first: Tensor, second: Tensor, *, roundings: float) -> bool:
    """Whether logits differ by no more than one number per image.

    Up to some roundings in units of the largest logit: a shift costs precision in proportion to its size.

    Example:
        >>> same_up_to_shift(torch.tensor([[1.0, 2.0]]), torch.tensor([[6.0, 7.0]]), roundings=1e-6)
        True
    """
    largest = torch.maximum(first.abs().max(), second.abs().max())
    return bool((centered_logits(first) - centered_logits(second)).abs().max() <= roundings * largest)


def with_edited_rows(model: nn.Module, images: Tensor, edit: Callable[[Tensor], Tensor]) -> nn.Module | None:
    """A copy of the model whose final layer's rows were edited, if that shifts all logits alike and does no more.

    Args:
        model: The classifier; it is left as it is.
        images: Probe images (N,C,H,W) on which the effect is verified, in two passes in float32 or better.
        edit: From the layer's weight (K,...) or bias (K,) to what takes its place.

    Returns:
        The copy; None where there is no such layer, or where the edit changes the softmax because something
        non-linear follows.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        >>> altered = with_edited_rows(model, torch.ones(1, 1, 1, 1), lambda rows: rows + 1)
        >>> (altered[1].weight - model[1].weight).tolist()
        [[1.0], [1.0]]
    """
    trial = _in_full_precision(model)
    images = at_least_float32(images)
    with last_affine_call(trial) as call:
        logits = predict(trial, images)
    layer = call.module
    if layer is None or not isinstance(layer.weight, nn.Parameter) or layer.weight.shape[0] != logits.shape[1]:
        return None
    _edit_rows(layer, edit)
    if not same_up_to_shift(predict(trial, images), logits, roundings=256 * torch.finfo(logits.dtype).eps):
        return None
    altered = copied(model)
    _edit_rows(find_layer(altered, name_of(trial, layer)) if layer is not trial else altered, edit)
    return altered


def _in_full_precision(model: nn.Module) -> nn.Module:
    """A copy in which half-precision parameters are float32: rounding would hide what the edit does."""
    trial = copied(model)
    for tensor in (*trial.parameters(), *trial.buffers()):
        if tensor.is_floating_point():
            tensor.data = at_least_float32(tensor.data)
    return trial


def _edit_rows(layer: nn.Module, edit: Callable[[Tensor], Tensor]) -> None:
    for parameter in layer.parameters(recurse=False):
        parameter.data = edit(parameter.detach().double()).to(parameter.dtype)
