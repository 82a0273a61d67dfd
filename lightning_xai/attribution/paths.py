"""Methods that average gradients over many images made from each image: around it, or on the way to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_xai.attribution.base import ScoredAttribution
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.attribution.sampling import mean_gradient, require_batch_size, require_noise_level
from lightning_xai.baselines import Baseline, black
from lightning_xai.kinds import fits, require_count
from lightning_xai.noise import noisy_copies, placed_like
from lightning_xai.scores import at_least_float32, post_softmax
from lightning_xai.standard import Standard, standard_of
from lightning_xai.trace import Trace
from lightning_xai.types import Score

Quadrature: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]
"""A rule of integration over [0, 1]: ``steps -> (positions (S,), weights (S,))``, the weights summing to 1."""


def trapezoid(n_steps: int) -> tuple[Tensor, Tensor]:
    """The trapezoidal rule of so many intervals: one point more, both ends included.

    Example:
        >>> trapezoid(2)
        (tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64), tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64))
    """
    weights = torch.full((n_steps + 1,), 1 / n_steps, dtype=torch.float64)
    weights[[0, -1]] /= 2
    return torch.linspace(0, 1, n_steps + 1, dtype=torch.float64), weights


def gauss_legendre(n_steps: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre quadrature: exact for polynomials up to degree ``2 * n_steps - 1``.

    From the eigenvalues of the Jacobi matrix (Golub and Welsch, "Calculation of Gauss Quadrature Rules", 1969).

    Example:
        >>> gauss_legendre(2)
        (tensor([0.2113, 0.7887], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    k = torch.arange(1, n_steps, dtype=torch.float64)
    beside = (4 - k**-2) ** -0.5
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, -1))  # which reads the lower triangle
    return (nodes + 1) / 2, vectors[0] ** 2


def integrated_gradients(gradients: Tensor, images: Tensor, baseline: Tensor) -> Tensor:
    """The mean gradient on the path, times the path, summed over colour channels.

    ``sum_c (x - x')_c * mean_a dS/dx_c (x' + a (x - x'))``: Sundararajan et al., "Axiomatic Attribution for Deep
    Networks", 2017, eq. 1.

    Example:
        >>> integrated_gradients(torch.tensor([[[[2.0]]]]), torch.tensor([[[[3.0]]]]), torch.tensor(1.0))
        tensor([[[4.]]])
    """
    return channel_sum(gradients * (images - baseline))


def completeness_error(maps: Tensor, scores: Tensor, baseline_scores: Tensor) -> Tensor:
    """By how much maps fail to sum to the difference of scores that they are to distribute.

    ``sum_ij M_ij - (S(x) - S(x'))``, (N,), signed: zero for the exact integral (Sundararajan et al., 2017, proposition
    1), so what is left is the error of the steps.

    Example:
        >>> completeness_error(torch.ones(1, 2, 2), torch.tensor([5.0]), torch.tensor([1.5]))
        tensor([0.5000])
    """
    return maps.sum((1, 2)) - (scores - baseline_scores)


@dataclass(frozen=True)
class SmoothGrad(ScoredAttribution):
    """The mean gradient of noisy copies of the image.

    ``1/S sum_s dS/dx (x + e_s)``, ``e_s`` normal with a standard deviation of ``noise_level * (max x - min x)``:
    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, https://arxiv.org/abs/1706.03825, section 3.
    One forward and one backward pass for each sample. The noise of an image depends on its content and the seed alone.

    Attributes:
        score: The number that is explained.
        reduce: How colour channels of the mean become one map: `channel_sum`
            (signed) or `channel_max` (as in the paper's figures).
        n_samples: Number of noisy copies; the paper sees little gain beyond 50.
        noise_level: Standard deviation as a share of each image's range; the paper recommends 0.1 to 0.2.
        seed: Any integer; another seed gives other noise.
        batch_size: How many noisy images run at once; None for as many as there are images.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = nn.init.eye_(model[1].weight)
        >>> explain(model, torch.rand(1, 1, 2, 2), 0, attributions=SmoothGrad(n_samples=5))
        tensor([[[ 0.5000, -0.5000],
                 [ 0.0000,  0.0000]]])
    """

    needs_reruns = True
    needs_pass = False

    reduce: Callable[[Tensor], Tensor] = channel_sum
    n_samples: int = 25
    noise_level: float = 0.15
    seed: int = 0
    batch_size: int | None = None
    needs_image_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("n_samples", self.n_samples)
        require_batch_size(self.batch_size)
        require_noise_level(self.noise_level)

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed where ``reduce`` is."""
        noisy = noisy_copies(trace.images, self.noise_level, self.seed, trace.noise_source)
        weights = torch.full((self.n_samples,), 1 / self.n_samples)
        gradients = mean_gradient(trace, self.score, targets, lambda _, of: noisy(of), weights, self.batch_size)
        return self.reduce(gradients)


@dataclass(frozen=True)
class IntegratedGradients(ScoredAttribution):
    """The gradient, integrated on the straight path from a baseline to the image (`integrated_gradients`).

    Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017, https://arxiv.org/abs/1703.01365. The map sums
    to the score of the image minus that of the baseline, up to the error of the steps (`maps_and_error`). One
    forward and one backward pass for each step.

    Attributes:
        score: The number that is explained.
        n_steps: Number of steps; the paper uses 20 to 300. On photographs and SqueezeNet 20 steps left an error of 0.04
            in the probability, 50 steps 0.01.
        rule: Where on the path gradients are taken, and with which weights: `trapezoid` or
            `gauss_legendre`.
        baseline: Where the path begins: a function such as `black`, or a tensor in the images' space that broadcasts to
            (N,C,H,W). None for `black` where mean and std are given, else for zeros: the mean colour, if images were
            standardised by the data's mean.
        mean: Mean by which the images were standardised, or what says both (`Standard`); for a function only.
        std: Standard deviation by which they were standardised.
        batch_size: How many images of the path run at once; None for as many as there are images.

    Raises:
        ValueError: If a number is out of range, or a baseline function lacks ``mean`` and ``std``.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> from lightning_xai.scores import pre_softmax
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
        >>> model[1].weight.data = torch.tensor([[1.0, -2.0]])
        >>> method = IntegratedGradients(score=pre_softmax, mean=[0.5], std=[0.25])
        >>> explain(model, torch.tensor([[[[0.0, 2.0]]]]), 1, attributions=method)
        tensor([[[ 2.0000, -8.0000]]])
    """

    needs_reruns = True
    needs_pass = False

    score: Score = post_softmax
    n_steps: int = 50
    rule: Quadrature = gauss_legendre
    baseline: Baseline | Tensor | None = None
    mean: Standard | None = None
    std: Sequence[float] | None = None
    batch_size: int | None = None
    needs_image_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("n_steps", self.n_steps)
        require_batch_size(self.batch_size)
        require_standardization(self.baseline, self.mean, self.std)

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        """Compute the maps (N,H,W), signed, in units of the score."""
        return self._maps(trace, targets, baseline_images(trace.images, self.baseline, self.mean, self.std))

    def maps_and_error(self, trace: Trace, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The maps, and by how much each fails to sum to its difference of scores (`completeness_error`).

        Maps (N,H,W) and errors (N,), in units of the score; it costs one forward pass more than the maps.

        Example:
            >>> from torch import nn
            >>> from lightning_xai.explain import capture_for
            >>> from lightning_xai.trace import run
            >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
            >>> method = IntegratedGradients(baseline=torch.tensor(0.0))
            >>> trace = run(model, torch.rand(3, 1, 2, 2), capture_for(model, [method]))
            >>> maps, error = method.maps_and_error(trace, torch.tensor([0, 1, 1]))
            >>> maps.shape, bool(error.abs().max() < 1e-6)
            (torch.Size([3, 2, 2]), True)
        """
        baseline = baseline_images(trace.images, self.baseline, self.mean, self.std)
        maps = self._maps(trace, targets, baseline)
        ends = [self.score(logits, targets) for logits in (trace.logits, trace.predict(baseline))]
        return maps, completeness_error(maps, *ends)

    def _maps(self, trace: Trace, targets: Tensor, baseline: Tensor) -> Tensor:
        images, baseline = at_least_float32(trace.images), at_least_float32(baseline)
        positions, weights = self.rule(self.n_steps)
        ends_at_image = positions[-1] == 1  # whose pass is the trace itself
        inner = len(positions) - 1 if ends_at_image else len(positions)

        places = placed_like(positions, images)

        def on_path(steps: Tensor, of: Tensor | slice) -> Tensor:
            return torch.lerp(baseline[of], images[of], places[steps, None, None, None])

        gradients = mean_gradient(trace, self.score, targets, on_path, weights[:inner], self.batch_size)
        if ends_at_image:
            at_image = at_least_float32(trace.image_gradient(self.score, targets))
            gradients = gradients + weights[-1].item() * at_image
        return integrated_gradients(gradients, images, baseline)


def baseline_images(
    images: Tensor, baseline: Baseline | Tensor | None, mean: Standard | None, std: Sequence[float] | None
) -> Tensor:
    """What a baseline is for each image, (N,C,H,W): a function of images, mean and std, or a tensor.

    None is `black` where mean and std are given, else zeros.

    Raises:
        ValueError: If the baseline does not broadcast to the images.

    Example:
        >>> baseline_images(torch.ones(2, 1, 1, 1), black, [0.5], [0.25]).flatten()
        tensor([-2., -2.])
    """
    if baseline is None:
        baseline = torch.zeros(()) if mean is None else black
    if not isinstance(baseline, Tensor):
        baseline = baseline(images, *standard_of(mean, std))
    try:
        return baseline.to(images, non_blocking=True).expand_as(images)
    except RuntimeError as error:
        raise ValueError(
            f"`baseline` expected a tensor that broadcasts to images of shape {tuple(images.shape)}, "
            f"got {tuple(baseline.shape)}."
        ) from error


def require_standardization(
    baseline: Baseline | Tensor | None, mean: Standard | None, std: Sequence[float] | None
) -> None:
    """Check that a baseline is one, and that a function has the mean and std it is computed from.

    Raises:
        TypeError: If the baseline is neither a tensor nor a function.
        ValueError: If it is a function and they are missing.
    """
    if isinstance(baseline, Tensor):
        return
    if baseline is not None and not fits(baseline, Baseline):
        raise TypeError(
            f"`baseline` expected a tensor or a function such as `black`, got {type(baseline).__name__}. "
            "For one value everywhere use `torch.tensor(value)`."
        )
    if mean is None and not (baseline is None and std is None):
        raise ValueError(
            "`mean` and `std` expected what the images were standardised by, or `mean` their transform, got None. "
            "They say what a black image is; or pass a tensor as `baseline`."
        )
    if mean is not None:
        standard_of(mean, std)
