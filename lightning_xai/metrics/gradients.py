"""Gradient quality: how close the gradient of an image is to its guided gradient, and how noisy it is.

All see the direction of an image's gradient and not its size, which varies by orders of magnitude from image to image
and with the scale of the score. A gradient that is zero everywhere, as of a saturated softmax, has no direction: its
value is NaN, and the metrics leave it out and count it in ``n_undefined``. Gradients are (N,C,H,W); NaN, infinity and
other shapes are refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.base import Need, Scope
from lightning_xai.metrics.sample import Sample
from lightning_xai.types import Rectifiers


def gradient_alignment(gradients: Tensor, guided_gradients: Tensor) -> Tensor:
    """Cosine of each image's gradient and guided gradient over all C*H*W values, ``<d, d'> / (|d| |d'|)``.

    What `CosineLoss` trains (Torres Figueroa et al. 2024 eq. 14), where both are of the same score.

    Returns:
        Cosine of each image (N,) in [-1, 1], float64; higher is better. NaN where one of the two is zero everywhere.

    Example:
        >>> gradient_alignment(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[8.0, 6.0]]]]))
        tensor([0.9600], dtype=torch.float64)
    """
    if gradients.shape != guided_gradients.shape:
        raise ValueError(
            f"`guided_gradients` expected the shape of `gradients`, {tuple(gradients.shape)}, "
            f"got {tuple(guided_gradients.shape)}."
        )
    first = _unit_maximum(gradients, "gradients").flatten(1)
    second = _unit_maximum(guided_gradients, "guided_gradients").flatten(1)
    return ((first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))).clamp(-1.0, 1.0)


def gradient_variation(gradients: Tensor) -> Tensor:
    """Total variation for the size of the gradient, ``sum |d_a - d_b| / sum (|d_a| + |d_b|)``.

    The sums are over all pairs of neighbours a, b, vertical and horizontal, in all channels: the anisotropic total
    variation (Rudin, Osher and Fatemi, 1992) over the largest that these magnitudes allow.

    Returns:
        Variation of each image (N,) in [0, 1], float64; lower is smoother. 0 for a constant, 0.71 for Gaussian noise, 1
        for a chessboard; NaN for a gradient that is zero everywhere.

    Example:
        >>> gradient_variation(torch.tensor([[[[1.0, 1.0, 3.0]]], [[[1.0, -1.0, 1.0]]]]))
        tensor([0.3333, 1.0000], dtype=torch.float64)
    """
    first, second = _neighbours(gradients)
    return (first - second).abs().sum(1) / (first.abs() + second.abs()).sum(1)


def gradient_roughness(gradients: Tensor) -> Tensor:
    """Energy of the differences of neighbours, ``sum (d_a - d_b)^2 / sum (d_a^2 + d_b^2)``.

    The sums are over all pairs of neighbours a, b, vertical and horizontal, in all channels: one minus the correlation
    of neighbours about zero (half of von Neumann's ratio, 1941). Beside `gradient_variation` it weighs the large
    values: a few sharp edges among many small values are rough, and vary little.

    Returns:
        Roughness of each image (N,) in [0, 2], float64; lower is smoother. 0 for a constant, 1 for noise, 2 for a
        chessboard; NaN for a gradient that is zero everywhere.

    Example:
        >>> gradient_roughness(torch.tensor([[[[1.0, 1.0, 3.0]]], [[[1.0, -1.0, 1.0]]]]))
        tensor([0.3333, 2.0000], dtype=torch.float64)
    """
    first, second = _neighbours(gradients)
    return (first - second).square().sum(1) / (first.square() + second.square()).sum(1)


class GradientMetric(ImageAverage):
    """What the metrics of input gradients share: they speak of the model, and no map is read.

    Images whose gradient is zero everywhere are left out and counted. Without images the result is NaN. Options and
    attributes are those of `ImageAverage`.
    """

    unit = ""
    scope: ClassVar[Scope] = "model"
    needs: ClassVar[frozenset[Need]] = frozenset({"image_gradient"})


class GradientAlignment(GradientMetric):
    """Mean `gradient_alignment`, the cosine of gradient and guided gradient, in [-1, 1]; higher is better.

    The aim of the interpretable-gradient loss (Torres Figueroa et al. 2024, eq. 14). Guided gradients resemble edges
    and depend little on the class, so that alignment alone shows smoother gradients and not better explanations: read
    it together with the faithfulness of the maps.

    ``update(gradients, guided_gradients)`` takes both (N,C,H,W), of the same score. Other options and attributes are
    those of `GradientMetric`.

    Args:
        rectifiers: Where `Faithfulness` clamps guided gradients: ``"relu"``, or ``"all"`` for networks with GELU, SiLU
            and their like, as the training term was told.
        kwargs: Options of `GradientMetric`.

    Example:
        >>> metric = GradientAlignment()
        >>> gradients = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]])
        >>> metric.update(gradients, torch.tensor([[[[8.0, 6.0]]], [[[1.0, 0.0]]]]))
        >>> metric.compute(), metric.n_undefined
        (tensor(0.9600, dtype=torch.float64), 1)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, *, rectifiers: Rectifiers = "relu", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rectifiers = rectifiers

    def measure(self, sample: Sample) -> None:
        """Update with both gradients."""
        self.update(sample.gradients, sample.guided_gradients(self.rectifiers))

    def update(self, gradients: Tensor, guided_gradients: Tensor) -> None:
        """Add gradients and guided gradients (N,C,H,W) of one batch of images."""
        self.add(gradient_alignment(gradients, guided_gradients))


class GradientVariation(GradientMetric):
    """Mean `gradient_variation`, the total variation of input gradients, in [0, 1]; lower is smoother.

    0 for constants, 0.71 for Gaussian noise. ``update(gradients)`` takes gradients (N,C,H,W). Options and attributes
    are those of `GradientMetric`.
    """

    higher_is_better = False
    plot_upper_bound = 1.0

    def measure(self, sample: Sample) -> None:
        """Update with the gradients."""
        self.update(sample.gradients)

    def update(self, gradients: Tensor) -> None:
        """Add gradients (N,C,H,W) of one batch of images."""
        self.add(gradient_variation(gradients))


class GradientRoughness(GradientMetric):
    """Mean `gradient_roughness`, one minus the correlation of neighbours, in [0, 2]; lower is smoother.

    0 for constants, 1 for noise. ``update(gradients)`` takes gradients (N,C,H,W). Options and attributes are those of
    `GradientMetric`.
    """

    higher_is_better = False
    plot_upper_bound = 2.0

    def measure(self, sample: Sample) -> None:
        """Update with the gradients."""
        self.update(sample.gradients)

    def update(self, gradients: Tensor) -> None:
        """Add gradients (N,C,H,W) of one batch of images."""
        self.add(gradient_roughness(gradients))


def _neighbours(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of all pairs of neighbours of an image, (N,P) and (N,P)."""
    values = _unit_maximum(gradients, "gradients")
    rows = values[:, :, :-1].flatten(1), values[:, :, 1:].flatten(1)
    columns = values[:, :, :, :-1].flatten(1), values[:, :, :, 1:].flatten(1)
    return torch.cat((rows[0], columns[0]), 1), torch.cat((rows[1], columns[1]), 1)


def _unit_maximum(gradients: Tensor, name: str) -> Tensor:
    """Gradients of each image over their largest magnitude, which squares can neither underflow nor overflow."""
    if gradients.ndim != 4:
        raise ValueError(f"`{name}` expected gradients of images, (N, C, H, W), got {tuple(gradients.shape)}.")
    if not gradients.isfinite().all():
        raise ValueError(
            f"`{name}` expected finite values, got NaN or infinity. Leave out images whose logits are not finite, and "
            "compute gradients without a loss scale."
        )
    values = gradients.detach().double()
    return values / values.abs().amax((1, 2, 3), keepdim=True)
