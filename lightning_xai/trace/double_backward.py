"""Convolution and batch normalisation whose double backward costs no more than it must, and two that PyTorch lacks.

PyTorch differentiates the backward pass of batch normalisation through a chain of small operations, and that of a
convolution with respect to its weight through a convolution of transposed tensors. Both have closed forms made of the
kernels that the plain backward pass uses. A training step with the guided-gradient term, in plain steps, with PyTorch's
forms and with these (CPU, medians of 6 rounds, ``recipes/results/training_steps.json``): ResNet-20 at 32 px 3.66 and
2.92, ResNet-50 at 64 px 3.02 and 2.55, ResNet-18 at 64 px 3.13 and 2.72, at 32 px alike (2.81 and 2.85); in
channels_last, where PyTorch's are slowest, 5.62 and 3.22, 3.74 and 2.62, and ResNet-18 at 32 px 3.23 and 2.85.

The hard sigmoid has no double backward in PyTorch, and the length of a vector of zeros one that is nan: Swin v2 divides
padded tokens by their length. Here both have one; that of the length at zero is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from lightning_xai.trace.rectifiers import graph_of


class DoubleBackward(TorchFunctionMode):
    """Context in which a model's convolutions and batch normalisations are recorded with the cheap double backward.

    Values and gradients are PyTorch's, up to rounding. Third derivatives are refused. Calls in gradient-free mode,
    strings as padding, and calls whose saved tensors somebody hooks (activation checkpointing, offloading) are left
    alone.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
        >>> w = torch.tensor([[[[3.0, 4.0]]]], requires_grad=True)
        >>> with DoubleBackward():
        ...     y = torch.conv2d(x, w)
        >>> (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        >>> torch.autograd.grad(gradient.square().sum(), w)[0]
        tensor([[[[6., 8.]]]])
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand the functions to the forms below."""
        kwargs = kwargs or {}
        # A compiler would trace the forms' backward pass; what it makes of the graph is refused by the term.
        traced = torch.compiler.is_compiling()
        if function in _FORMS and torch.is_grad_enabled() and not traced and not _saved_tensors_are_hooked():
            function = _FORMS[function]
        return function(*args, **kwargs)


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Running averages of normalisations in training mode are as before after it; they normalise as ever inside.

    For a second pass in the same step, be it one that activation checkpointing makes in a backward pass.

    Args:
        model: The model.

    Yields:
        Whether they have moved so far, to be called.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> with running_statistics_kept(norm) as moved:
        ...     norm(torch.tensor([[1.0], [3.0]])).tolist(), moved()
        ([[-0.999...], [0.999...]], True)
        >>> norm.running_mean
        tensor([0.])
    """
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._NormBase) and one.training]
    kept = [(one, one.clone(), one._version) for norm in norms for one in norm.buffers(recurse=False)]
    try:
        yield lambda: any(buffer._version != version for buffer, _, version in kept)
    finally:
        for buffer, before, _ in kept:
            buffer.data.copy_(before)  # by `data`: graphs that have saved the buffer do not count it as changed


def require_differentiable_backward(outputs: Tensor) -> None:
    """Refuse graphs whose backward pass would silently count as a constant when it is differentiated.

    Args:
        outputs: Tensor whose graph is walked.

    Raises:
        RuntimeError: For attention by the packages flash-attn and xformers, with what to do instead.

    Example:
        >>> require_differentiable_backward(torch.ones(1, requires_grad=True).relu())
    """
    for node in graph_of(outputs):
        if node.name().startswith(("FlashAttn", "_fMHA")):
            raise RuntimeError(
                f"The double backward expected attention that can be differentiated twice, got {node.name()}. Use "
                "torch.nn.functional.scaled_dot_product_attention."
            )


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    device = input.device.type
    tensors: list[Any] = [input, weight, bias]
    if torch.is_autocast_enabled(device):  # which a Function does not take part in, and which leaves float64 alone
        dtype = torch.get_autocast_dtype(device)
        tensors = [one if one is None or one.dtype == torch.float64 else one.to(dtype) for one in tensors]
    with torch.autocast(device, enabled=False):
        return _Convolution.apply(*tensors, geometry)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        asked = [_is_asked_for(node) for node, _ in ctx.next_functions]  # of x, weight and bias, where there is one
        mask = [*asked, False][:3]
        return *_ConvolutionBackward.apply(gradient, x, weight, ctx.geometry, mask), None


def _is_asked_for(node: Any) -> bool:
    """Whether the backward pass that runs goes on to a node: to parameters it does not where the image alone is asked.

    A Function is told what may need a gradient, not what is asked for, as built-in operations are.
    """
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that `torch.autograd.grad` was asked for
        return True


class _ConvolutionBackward(Function):
    """The backward pass of a convolution, to be differentiated in its turn with respect to gradient and weight."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, geometry: Any, mask: list[bool]) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry
        return torch.ops.aten.convolution_backward(gradient, x, weight, [len(weight)], *geometry, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None) -> Any:
        _require_image_only(of_weight, of_bias)
        if of_x is None:
            return None, None, None, None, None
        gradient, weight = ctx.saved_tensors
        # dx is linear in the gradient and in the weight: as a function of each it is a convolution's transpose.
        of_gradient = torch.convolution(of_x, weight, None, *ctx.geometry)
        _, of_the_weight, _ = torch.ops.aten.convolution_backward(
            gradient, of_x, weight, None, *ctx.geometry, [False, True, False]
        )
        return of_gradient, None, of_the_weight, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or not input.requires_grad:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    _require_several_values(input)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class _BatchNorm(Function):
    """Batch normalisation by the batch's statistics, ``y = gamma (x - mean) / std + beta``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, inverse_std = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        of_x, of_weight, of_bias = _BatchNormBackward.apply(gradient, *ctx.saved_tensors, ctx.eps)
        return of_x, of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None, None, None


class _BatchNormBackward(Function):
    """The backward pass ``dx = gamma r P(g)``, ``r = 1/std``, ``P(u) = u - mean(u) - xhat mean(u xhat)``.

    With v the cotangent of dx, M values a channel, ``a = mean(v xhat)``, ``b = mean(g xhat)`` and
    ``S = <v, g> - M mean(v) mean(g) - M a b`` its own backward pass is

        of g:      gamma r P(v)                                      (the plain backward kernel, applied to v)
        of x:      gamma r^2 (-(S / M) xhat - b P(v) - a P(g))       (one affine combination of x, of_g and g)
        of gamma:  S r
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
    ) -> Any:
        ctx.set_materialize_grads(False)
        of_x, of_weight, of_bias = _plain_backward(gradient, x, weight, mean, inverse_std, eps)
        ctx.save_for_backward(gradient, x, weight, mean, inverse_std, of_weight, of_bias)
        ctx.eps = eps
        return of_x, of_weight, of_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None) -> Any:
        _require_image_only(of_weight, of_bias)
        if v is None:
            return None, None, None, None, None, None
        g, x, gamma, mean, r, sum_g_xhat, sum_g = ctx.saved_tensors
        of_g, sum_v_xhat, sum_v = _plain_backward(v, x, gamma, mean, r, ctx.eps)
        m = x.numel() // x.shape[1]
        a, b = sum_v_xhat / m, sum_g_xhat / m
        s = (v.to(r.dtype) * g).sum([0, *range(2, x.ndim)]) - sum_v * sum_g / m - m * a * b
        # xhat = (x - mean) r and P(g) = g - mean(g) - xhat b, P(v) = of_g / (gamma r), sorted by what is multiplied
        by_x, by_g = gamma * r**3 * (a * b - s / m), -gamma * r**2 * a
        constant = -by_x * mean - by_g * sum_g / m
        by_x, by_g, by_of_g, constant = (_by_channel(one, x) for one in (by_x, by_g, -r * b, constant))
        of_x = torch.addcmul(constant, x, by_x).addcmul_(of_g, by_of_g).addcmul_(g, by_g)
        return of_g, of_x.to(x.dtype), (s * r).to(gamma.dtype), None, None, None


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """PyTorch has no second derivative of it; written so that the guided rule takes its bounds for no rectifier's."""
    return F.hardtanh(input, -3.0, 3.0) / 6 + 0.5


class _NoSecondDerivativeAtZero(Function):
    """The identity, before the length of vectors: what PyTorch has for its second derivative at zeros is 0 / 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradient.masked_fill(gradient.isnan() & (x == 0), 0.0)


def _finite_at_zero(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def form(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, _NoSecondDerivativeAtZero.apply, (args, kwargs))
        return function(*args, **kwargs)

    return form


_LENGTHS = (F.normalize, F.cosine_similarity, Tensor.norm, torch.norm, torch.linalg.norm, torch.linalg.vector_norm)
_FORMS: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _convolution,
    F.batch_norm: _batch_norm,
    F.hardsigmoid: _hardsigmoid,
    **{function: _finite_at_zero(function) for function in _LENGTHS},
}


def _plain_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.native_batch_norm_backward(
        gradient, x, weight, None, None, mean, inverse_std, True, eps, [True, True, True]
    )


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _saved_tensors_are_hooked() -> bool:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _require_image_only(of_weight: Tensor | None, of_bias: Tensor | None) -> None:
    if of_weight is not None or of_bias is not None:
        raise RuntimeError(
            "The double backward expected a first gradient at the image or at activations, got one at a parameter of a "
            "convolution or batch normalisation. Compute that one outside of `DoubleBackward`."
        )


def _require_several_values(x: Tensor) -> None:
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"Batch normalisation expected more than one value per channel when training, got {tuple(x.shape)}."
        )
