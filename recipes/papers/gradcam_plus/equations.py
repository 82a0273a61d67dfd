"""The derivation of Grad-CAM++'s alphas, checked on a function small enough to differentiate outright.

Sections 3.1 and appendix A of Lerma and Lucas, "Grad-CAM++ is Equivalent to Grad-CAM With Positive Gradients" (2022,
https://arxiv.org/abs/2205.10838), are statements about equations, not about networks. Here the class score is a
function of two channels of 2 x 2 units, all in float64, and every derivative is automatic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev

CHANNELS, UNITS = 2, 4
Function = Callable[[Tensor], Tensor]
"""From activations, one after the other, (CHANNELS UNITS,), to a number."""


def equation_checks(seed: int = 0) -> dict[str, float]:
    """How far the statements are from true, as relative errors: of those that hold at most 1e-12.

    Example:
        >>> [name for name, error in equation_checks().items() if error > 1e-12]
        ['eq. 7 is the derivative of eq. 6, alphas constant', 'eq. 8 is eq. 9 for a score that is not linear',
         'eq. 6 holds with the alphas of eq. 8', 'eq. 6 still holds with a linear function added']
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    activations, weights, slopes = drawn(CHANNELS * UNITS), drawn(3, CHANNELS * UNITS) - 0.3, drawn(CHANNELS * UNITS)

    def curved(a: Tensor) -> Tensor:
        return (weights @ a).tanh().sum().exp()

    return {
        **_derivatives(curved, activations, drawn(CHANNELS * UNITS)),
        **_solutions(curved, activations, [drawn(CHANNELS * UNITS) for _ in range(2)]),
        **_exponentials(weights[0], activations, curved),
        **_linear_functions(curved, activations, slopes),
    }


def hessian(y: Function) -> Function:
    """Second derivatives, (CHANNELS UNITS, CHANNELS UNITS)."""
    return jacrev(jacrev(y))  # torch.func.hessian is forward over reverse, which warns of what it loads


def _sums(a: Tensor) -> Tensor:
    """``sum_ij A_ij`` of each unit's channel, (CHANNELS UNITS,)."""
    return a.view(CHANNELS, UNITS).sum(1).repeat_interleave(UNITS)


def _right_side(y: Function, a: Tensor, alphas: Tensor) -> Tensor:
    """The right side of eq. 6 without its ReLU."""
    return (alphas * jacrev(y)(a) * _sums(a)).sum()


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _derivatives(y: Function, a: Tensor, alphas: Tensor) -> dict[str, float]:
    """Eq. 7 and its corrections 18 and 19 against the derivative of eq. 6."""
    first, second, sums = jacrev(y)(a), hessian(y)(a), _sums(a)
    channels = (alphas * first).view(CHANNELS, UNITS).sum(1).repeat_interleave(UNITS)  # sum_ab alpha_ab dY/dA_ab
    corrected = channels + second @ (alphas * sums)
    varying = _alphas_9(y)
    terms = jacrev(varying)(a).T @ (sums * first)  # the last line of eq. 19
    channels_19 = (varying(a) * first).view(CHANNELS, UNITS).sum(1).repeat_interleave(UNITS)
    constant = jacrev(lambda x: _right_side(y, x, alphas))(a)
    return {
        "eq. 7 is the derivative of eq. 6, alphas constant": _error(channels + sums * alphas * second.diag(), constant),
        "eq. 18 is": _error(corrected, constant),
        "eq. 19 is, alphas of eq. 9 not constant": _error(
            channels_19 + second @ (varying(a) * sums) + terms, jacrev(lambda x: _right_side(y, x, varying(x)))(a)
        ),
    }


def _alphas_9(y: Function, scale: float = 1.0) -> Function:
    """Eq. 9, and eq. 12 with another scale than 1, where ``Y = exp(scale S)``."""

    def alphas(a: Tensor) -> Tensor:
        g = jacrev(lambda x: y(x).log() / scale)(a)
        return g**2 / (2 * g**2 + scale * _sums(a) * g**3)

    return alphas


def _alphas_8(y: Function, a: Tensor) -> Tensor:
    second, third = hessian(y)(a).diag(), jacrev(lambda x: hessian(y)(x).diag())(a).diag()
    return second / (2 * second + _sums(a) * third)


def _solutions(y: Function, a: Tensor, betas: list[Tensor]) -> dict[str, float]:
    """Eq. 11: whatever beta is, the alphas made from it solve eq. 10."""
    coefficients = jacrev(y)(a) * _sums(a)
    solutions = [beta * y(a) / (coefficients * beta).sum() for beta in betas]
    worst = max(_error((coefficients * alphas).sum(), y(a)) for alphas in solutions)
    return {"eq. 11 solves eq. 10 (two different betas)": worst}


def _exponentials(weights: Tensor, a: Tensor, curved: Function) -> dict[str, float]:
    """Eq. 9 and 12 from eq. 8: for ``Y = exp(lambda S)`` with S linear near the activations, as in ReLU networks."""
    errors = {}
    for scale in (1.0, 3.0):

        def y(x: Tensor, scale: float = scale) -> Tensor:
            return (scale * (weights @ x)).exp()

        name = "eq. 8 is eq. 9 for a score that is linear" if scale == 1 else f"eq. 8 is eq. 12, lambda = {scale:g}"
        errors[name] = _error(_alphas_9(y, scale)(a), _alphas_8(y, a))
    return errors | {
        "eq. 8 is eq. 9 for a score that is not linear": _error(_alphas_9(curved)(a), _alphas_8(curved, a))
    }


def _linear_functions(y: Function, a: Tensor, slopes: Tensor) -> dict[str, float]:
    """Section 3.1.4: a linear function changes the score and not the alphas, so they cannot solve eq. 6 for both."""

    def other(x: Tensor) -> Tensor:
        return y(x) + slopes @ x + 1.0

    alphas = _alphas_8(y, a)
    return {
        "a linear function leaves the alphas of eq. 8": _error(_alphas_8(other, a), alphas),
        "eq. 6 holds with the alphas of eq. 8": _error(_right_side(y, a, alphas), y(a)),
        "eq. 6 still holds with a linear function added": _error(_right_side(other, a, alphas), other(a)),
    }
