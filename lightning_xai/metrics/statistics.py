"""Whether a difference between two methods or two trainings is more than chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.kinds import require_count, require_kinds

_CHUNK = 2**22
"""Random numbers drawn at once: 32 MiB of indices."""


@dataclass(frozen=True)
class Comparison:
    """The mean paired difference of two sets of values, with its uncertainty.

    Attributes:
        difference: Mean of ``a - b``, in the unit of the values.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Nominal coverage of the interval, in (0, 1).
        p_value: Two-sided p-value of no difference, in (0, 1].
        n_images: Number of images.
        n_seeds: Number of trained pairs; None where the images are the unit.

    Example:
        >>> print(Comparison(1.5, 0.25, 2.75, level=0.95, p_value=0.012, n_images=500))
        +1.5 [+0.25, +2.75] (95 %), p = 0.012, 500 images
    """

    difference: float
    low: float
    high: float
    level: float
    p_value: float
    n_images: int
    n_seeds: int | None = None

    def __str__(self) -> str:
        """One line for a table or a log."""
        seeds = "" if self.n_seeds is None else f"{self.n_seeds} seeds x "
        return (
            f"{self.difference:+.4g} [{self.low:+.4g}, {self.high:+.4g}] ({100 * self.level:g} %), "
            f"p = {self.p_value:.2g}, {seeds}{self.n_images} images"
        )


def compare(a: Tensor, b: Tensor, *, level: float = 0.95, n_resamples: int = 10_000, seed: int = 0) -> Comparison:
    """The mean paired difference ``a - b`` with a bootstrap interval and a sign-flip permutation p-value.

    Values (N,) of the same images under two methods, or under two models, make images the unit: the result speaks of
    other images for these very models. A claim about *training* needs seeds as the unit: values (S,N), where row s of
    ``a`` and of ``b`` come from two trainings with seed s. Then seeds are resampled, and images, which all seeds share,
    are resampled once for all (the bootstrap of crossed factors: Owen, "The pigeonhole bootstrap", Annals of Applied
    Statistics, 2007), and the signs of whole seeds are flipped.

    The interval is the percentile interval, widened for the number n of units as in Hesterberg, "What Teachers Should
    Know about the Bootstrap", The American Statistician, 2015: the plain one is too short by ``sqrt((n-1)/n)``, and by
    the normal for Student's t. In simulations where seeds differ normally, intervals of level 95 % held the truth in 92
    to 95 % of the cases with 5 to 10 seeds, in 81 to 90 % with 3; where seeds make no difference they are too wide. The
    p-value cannot be below ``2 / 2**S``: 0.06 for 5 seeds, 0.03 for 6.

    Args:
        a: Values of the images, (N,) or (S,N), such as ``metric.values``; N and S at least 2.
        b: Values of the same images in the same order, of the same shape.
        level: Nominal coverage of the interval, in (0, 1).
        n_resamples: Number of bootstrap resamples, and of sign flips where all of them would be more.
        seed: Of the random numbers, drawn on the CPU: the global random state is neither read nor changed.

    Returns:
        The difference, its interval and p-value.

    Raises:
        ValueError: If the shapes are others, a value is NaN or infinite, or an option is out of range.

    Example:
        >>> drops = torch.tensor([40.0, 55.0, 30.0, 70.0, 25.0, 60.0, 45.0, 50.0])
        >>> print(compare(drops, drops - torch.tensor([4.0, 6.0, 5.0, 7.0, 3.0, 5.0, 6.0, 4.0])))
        +5 [+4, +6.125] (95 %), p = 0.0078, 8 images
    """
    require_kinds(compare, a=a, b=b, level=level, seed=seed)
    require_count("n_resamples", n_resamples)
    differences = _differences(a, b)
    if not 0 < level < 1:
        raise ValueError(f"`level` expected a share in (0, 1), got {level}.")
    generator = torch.Generator().manual_seed(seed)
    units = differences[0] if a.ndim == 1 else differences.mean(1)
    means = _resampled_means(differences, n_resamples, generator)
    tail = _widened_tail((1 - level) / 2, len(units))
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    p_value = _sign_flip_p_value(units, n_resamples, generator)
    n_seeds = None if a.ndim == 1 else len(units)
    return Comparison(differences.mean().item(), low, high, level, p_value, differences.shape[1], n_seeds)


def _differences(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape or a.ndim not in (1, 2) or min(a.shape) < 2:
        raise ValueError(
            "`a` and `b` expected values of the same images, (N,) and (N,), or (S,N) and (S,N) for S seeds, "
            f"N and S at least 2, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    differences = a.detach().cpu().double() - b.detach().cpu().double()
    wrong = ~differences.isfinite()
    if wrong.any():
        raise ValueError(
            f"`a` and `b` expected finite values, got NaN or infinity in {int(wrong.sum())} pairs. "
            "Leave out such images from both, and report their number."
        )
    return differences.reshape(-1, a.shape[-1])


def _resampled_means(differences: Tensor, n_resamples: int, generator: torch.Generator) -> Tensor:
    """Means (R,) of differences (S,N) whose rows and columns are drawn with replacement."""
    seeds, images = differences.shape
    chunk = max(1, _CHUNK // images)
    means = []
    for start in range(0, n_resamples, chunk):
        n = min(chunk, n_resamples - start)
        rows = _multiplicities(n, seeds, generator) if seeds > 1 else torch.ones(n, 1, dtype=torch.float64)
        columns = _multiplicities(n, images, generator)
        means.append((rows @ differences * columns).sum(1) / differences.numel())
    return torch.cat(means)


def _multiplicities(n: int, size: int, generator: torch.Generator) -> Tensor:
    """How often each of ``size`` units is drawn in n resamples, (n,size)."""
    drawn = torch.randint(size, (n, size), generator=generator)
    return torch.zeros(n, size, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(n, size, dtype=torch.float64))


def _widened_tail(tail: float, n: int) -> float:
    """The tail of the percentile interval that has Student's t and the unbiased variance in it."""
    from scipy.stats import norm, t  # here, since importing it takes half a second

    return float(norm.cdf(t.ppf(tail, n - 1) * (n / (n - 1)) ** 0.5))


def _sign_flip_p_value(units: Tensor, n_resamples: int, generator: torch.Generator) -> float:
    """Share of sign flips whose mean is at least as far from 0; all of them if they are no more than the resamples."""
    n = len(units)
    observed = units.sum().abs() - 1e-12 * units.abs().sum()  # the same sum in another order may round below itself
    if 2**n <= n_resamples:
        signs = 1.0 - 2.0 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
        return ((signs @ units).abs() >= observed).double().mean().item()
    extreme, chunk = 0, max(1, _CHUNK // n)
    for start in range(0, n_resamples, chunk):
        size = (min(chunk, n_resamples - start), n)
        signs = 1.0 - 2.0 * torch.randint(2, size, generator=generator).double()
        extreme += int(((signs @ units).abs() >= observed).sum())
    return (extreme + 1) / (n_resamples + 1)
