"""Error functions: how far the gradient of an image is from its guided gradient.

From Torres Figueroa, Zhang, Sicre, Avrithis and Ayache, "A Learning Paradigm for Interpretable Gradients", 2024,
https://arxiv.org/abs/2404.15024 (equations numbered as in its draft). With d the gradient of an image, d' its guided
gradient, and i over all P = C*H*W values, an error is a function ``(gradients (N,C,H,W), guided (N,C,H,W)) -> (N,)``,
lower is better. All are computed in float32 or better, under autocast too, and can be differentiated twice.

``guided`` is the teacher: it is meant to be held constant, and the caller detaches it. Nothing is detached here.

``normalize=True``, the default, makes an error scale-free in both gradients. Gradients of images are small and vary by
orders of magnitude from image to image, so the printed formulas see no more than the first order of the gradient, or
can be lowered by growing or shrinking it. A scale-free error cannot: its derivative is orthogonal to the gradient,
because the size is differentiated and not detached. Nor does it see the loss scale of mixed precision. A gradient that
is exactly zero has no direction: it is not divided, stays zero, and gets derivative zero. ``normalize=False`` gives the
printed formula.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn


def sigmoid_masking(gradients: Tensor, guided: Tensor, *, normalize: bool = True) -> Tensor:
    """Guided gradient masked by the sigmoid of the gradient (eq. 11).

    Normalised (default): ``-mean_i u'_i * sigmoid(u_i)``, ``u = d / rms(d)`` and ``u' = d' / rms(d')``, in [-1, 1],
    no unit. Literal: ``-sum_i d'_i * sigmoid(d_i)``, in the units of the guided gradient, unbounded. To first order the
    latter is ``-sum(d') / 2 - <d, d'> / 4``: a constant, and an alignment that rewards larger gradients. At unit rms
    the sigmoid is used where it bends, and only the direction of the gradient counts.

    Example:
        >>> gradients, guided = torch.tensor([[[[3.0, -3.0]]], [[[-3.0, 3.0]]]]), torch.tensor([1.0, -1.0])
        >>> sigmoid_masking(gradients, guided.expand(2, 1, 1, 2))
        tensor([-0.2311,  0.2311])
    """
    gradients, guided = _flattened(gradients, guided)
    if normalize:
        gradients, guided = _unit_rms(gradients), _unit_rms(guided) / guided.shape[1]
    return -(guided * gradients.sigmoid()).sum(1)


def centered_sigmoid_masking(gradients: Tensor, guided: Tensor, *, normalize: bool = True) -> Tensor:
    """Guided gradient masked by the sigmoid of the gradient minus its mean (eq. 12).

    Normalised (default): ``-mean_i u'_i * sigmoid(u_i - mean(u))`` where ``u = d / rms(d)`` and ``u' = d' / rms(d')``,
    in [-1, 1], no unit. Literal: ``-sum_i d'_i * sigmoid(d_i - mean(d))``, in the units of the guided gradient,
    unbounded. The mean is over all values of an image. The reasons for the default are those of
    `sigmoid_masking`.

    Example:
        >>> gradients, guided = torch.tensor([[[[7.0, 5.0]]]]), torch.tensor([[[[1.0, -1.0]]]])
        >>> centered_sigmoid_masking(gradients, guided, normalize=False)
        tensor([-0.4621])
    """
    gradients, guided = _flattened(gradients, guided)
    if normalize:
        gradients, guided = _unit_rms(gradients), _unit_rms(guided) / guided.shape[1]
    return -(guided * (gradients - gradients.mean(1, keepdim=True)).sigmoid()).sum(1)


def histogram_intersection(gradients: Tensor, guided: Tensor, *, normalize: bool = True) -> Tensor:
    """Minus the overlap of the two magnitudes (eq. 13); blind to the sign of either gradient.

    Normalised (default): ``-sum_i min(|d_i| / |d|_1, |d'_i| / |d'|_1)``, the usual histogram intersection, in [-1, 0],
    no unit. Literal: ``-sum_i min(|d_i|, |d'_i|) / (|d|_1 * |d'|_1)``, in the units of one over a gradient, in
    [-1 / max(|d|_1, |d'|_1), 0]. As it divides each minimum by both norms, every gradient that is shrunk below the
    guided one everywhere reaches the lowest value, ``-1 / |d'|_1``, whatever its pattern: hence the default.
    Both are 0 where either gradient is zero.

    Example:
        >>> gradients, guided = torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
        >>> histogram_intersection(gradients, guided)
        tensor([-0.7500])
    """
    gradients, guided = _flattened(gradients, guided)
    if normalize:
        return -_overlap(_unit(gradients, _l1), _unit(guided, _l1))
    # One quotient after the other: the product of two small norms would underflow.
    return -_overlap(gradients, guided) / _one_where_zero(_l1(gradients)[:, 0]) / _one_where_zero(_l1(guided)[:, 0])


def cosine_error(gradients: Tensor, guided: Tensor) -> Tensor:
    """Minus the cosine similarity, ``-<d, d'> / (|d|_2 * |d'|_2)`` (eq. 14).

    In [-1, 1], no unit, scale-free as printed; 0 where either gradient is zero.

    Example:
        >>> cosine_error(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 2.0]]]]))
        tensor([-0.8000])
    """
    gradients, guided = _flattened(gradients, guided)
    return -(_unit(gradients, _l2) * _unit(guided, _l2)).sum(1)


def l1_distance(gradients: Tensor, guided: Tensor, *, normalize: bool = True) -> Tensor:
    """L1 distance of the two gradients; normalised, 1 where one is zero.

    Normalised (default): ``|d / |d|_1 - d' / |d'|_1|_1``, in [0, 2], no unit. It is 2 plus twice the
    `histogram_intersection` where all signs agree and more where they do not: the same idea with eyes for the
    sign. Literal: ``|d - d'|_1``, in [0, inf), in the units of a gradient.

    The default takes out both norms and not the guided one alone, because a plain or relative distance of two poorly
    aligned gradients is lowered by shrinking the gradient to nothing.

    Example:
        >>> l1_distance(torch.tensor([[[[3.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]]]]))
        tensor([0.5000])
    """
    gradients, guided = _flattened(gradients, guided)
    if normalize:
        gradients, guided = _unit(gradients, _l1), _unit(guided, _l1)
    return _l1(gradients - guided)[:, 0]


def l2_distance(gradients: Tensor, guided: Tensor, *, normalize: bool = True) -> Tensor:
    """L2 distance of the two gradients, not squared; normalised, 1 where one is zero.

    Normalised (default): ``|d / |d|_2 - d' / |d'|_2|_2``, in [0, 2], no unit. It equals ``sqrt(2 + 2 * cosine_error)``:
    per radian of the angle t between the two it slopes by cos(t / 2), so images keep being pulled as they align, where
    the slope of `cosine_error`, sin(t), fades. Literal: ``|d - d'|_2``, in [0, inf), in the units of a gradient.
    The reason for the default is that of `l1_distance`. Where the distance is zero the derivative is zero.

    Example:
        >>> l2_distance(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 4.0]]]]), normalize=False)
        tensor([5.])
    """
    gradients, guided = _flattened(gradients, guided)
    if normalize:
        gradients, guided = _unit(gradients, _l2), _unit(guided, _l2)
    return _l2(gradients - guided)[:, 0]


class _NormalizableLoss(nn.Module):
    _error: Callable[..., Tensor]

    def __init__(self, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, gradients: Tensor, guided: Tensor) -> Tensor:
        """Errors (N,) of gradients (N,C,H,W) against guided gradients (N,C,H,W)."""
        return self._error(gradients, guided, normalize=self.normalize)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"


class SigmoidMaskingLoss(_NormalizableLoss):
    """`sigmoid_masking` as a module."""

    _error = staticmethod(sigmoid_masking)


class CenteredSigmoidMaskingLoss(_NormalizableLoss):
    """`centered_sigmoid_masking` as a module."""

    _error = staticmethod(centered_sigmoid_masking)


class HistogramIntersectionLoss(_NormalizableLoss):
    """`histogram_intersection` as a module."""

    _error = staticmethod(histogram_intersection)


class CosineLoss(nn.Module):
    """`cosine_error` as a module."""

    def forward(self, gradients: Tensor, guided: Tensor) -> Tensor:
        """Errors (N,) of gradients (N,C,H,W) against guided gradients (N,C,H,W)."""
        return cosine_error(gradients, guided)


class L1DistanceLoss(_NormalizableLoss):
    """`l1_distance` as a module."""

    _error = staticmethod(l1_distance)


class L2DistanceLoss(_NormalizableLoss):
    """`l2_distance` as a module."""

    _error = staticmethod(l2_distance)


def _flattened(gradients: Tensor, guided: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N,P), float32 or better."""
    if gradients.ndim != 4 or gradients.shape != guided.shape:
        raise ValueError(
            "`gradients` and `guided` expected the same shape (N,C,H,W), "
            f"got {tuple(gradients.shape)} and {tuple(guided.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(gradients.dtype, guided.dtype), torch.float32)
    return gradients.flatten(1).to(dtype), guided.flatten(1).to(dtype)


def _overlap(gradients: Tensor, guided: Tensor) -> Tensor:
    return torch.minimum(gradients.abs(), guided.abs()).sum(1)


def _l1(values: Tensor) -> Tensor:
    """L1 norms (N,1)."""
    return values.abs().sum(1, keepdim=True)


def _l2(values: Tensor) -> Tensor:
    """L2 norms (N,1), with derivative zero at zero."""
    # Squares of float32 gradients below 1e-19, as saturated images have, underflow; hence the largest value is taken
    # out. It may be detached: peak * norm(values / peak) is norm(values) for any positive constant.
    peak = values.detach().abs().amax(1, keepdim=True)
    values = values.masked_fill(peak == 0, 1.0) / _one_where_zero(peak)
    return peak * values.square().sum(1, keepdim=True).sqrt()


def _unit(values: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Values (N,P) over their norm; where it is zero or subnormal (its inverse may overflow), zeros."""
    size = norm(values)
    zero = size < torch.finfo(size.dtype).tiny
    return (values / size.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def _unit_rms(values: Tensor) -> Tensor:
    return _unit(values, _l2) * sqrt(values.shape[1])


def _one_where_zero(sizes: Tensor) -> Tensor:
    return sizes.masked_fill(sizes == 0, 1.0)
