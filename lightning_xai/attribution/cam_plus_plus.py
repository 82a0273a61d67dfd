"""Grad-CAM++ and its alphas.

Activations, their gradients and alphas are (N,D,h,w), weights (N,D), maps (N,h,w). ``scale`` is the positive lambda of
Lerma and Lucas 2022 eq. 12: the derivation supposes ``Y = exp(lambda S)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.attribution.base import GradientCAM, LayerMaps, ScoredAttribution
from lightning_xai.attribution.cam import weighted_sum
from lightning_xai.attribution.sampling import require_batch_size, require_noise_level
from lightning_xai.kinds import require_count, require_number
from lightning_xai.noise import noisy_copies
from lightning_xai.scores import at_least_float32
from lightning_xai.trace import Trace


def guarded_alphas(activations: Tensor, gradients: Tensor, *, scale: float = 1.0) -> Tensor:
    """The alphas of Grad-CAM++ in the form that cannot blow up, ``1 / max(1, 2 + lambda g_ij sum_ab A_ab)``.

    Numerator and denominator of Chattopadhay et al. 2018 eq. 19 divided by ``g_ij^2`` (Lerma and Lucas 2022 eq. 13):
    no power of
    a small gradient is taken. With non-negative activations alpha lies in (0, 1/2] wherever it counts, where g > 0. In
    signed layers the denominator can reach zero; where it falls below 1 alpha is held at 1: all lie in (0, 1].

    Example:
        >>> guarded_alphas(torch.ones(1, 1, 1, 2), torch.tensor([[[[3.0, -1.0]]]]))
        tensor([[[[0.1250, 1.0000]]]])
    """
    return 1 / (2 + scale * gradients * activations.sum((2, 3), keepdim=True)).clamp(min=1)


def literal_alphas(activations: Tensor, gradients: Tensor, *, scale: float = 1.0) -> Tensor:
    """The alphas of Grad-CAM++ as printed, ``g^2 / (2 g^2 + lambda sum_ab A_ab g^3)`` (Lerma and Lucas 2022 eq. 9, 12).

    For comparison: ``g^2`` underflows below 1e-19 in float32, and where the denominator crosses zero any value comes
    out (-1.4e6 in Lerma and Lucas 2022). Those have g < 0 as long as activations are non-negative, and never reach the
    map. 0 where the quotient is 0/0, as in the paper.

    Example:
        >>> literal_alphas(torch.ones(1, 1, 1, 4), torch.tensor([[[[3.0, -1.0, -0.51, 0.0]]]]))
        tensor([[[[ 0.0714, -0.5000, -25.0000,  0.0000]]]])
    """
    squares = gradients**2
    denominator = 2 * squares + scale * activations.sum((2, 3), keepdim=True) * gradients**3
    undefined = (squares == 0) & (denominator == 0)
    return (squares / denominator.masked_fill(undefined, 1.0)).masked_fill(undefined, 0.0)


def gradcam_plus_plus_weights(alphas: Tensor, gradients: Tensor) -> Tensor:
    """Channel weights of Grad-CAM++, ``sum_ij alpha_ij ReLU(g_ij)`` (Lerma and Lucas 2022 eq. 4).

    Example:
        >>> gradients = torch.tensor([[[[3.0, -1.0]]]])
        >>> gradcam_plus_plus_weights(guarded_alphas(torch.ones(1, 1, 1, 2), gradients), gradients)
        tensor([[0.3750]])
    """
    return (alphas * gradients.relu()).sum((2, 3))


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM++: channels weighted by sums of positive gradients (`gradcam_plus_plus_weights`).

    Chattopadhay et al., "Grad-CAM++", 2018, eq. 19, https://arxiv.org/abs/1710.11063, in its stable form. One
    backward pass down to the layer. The weights depend on the scale of the score, so that log- and post-softmax give
    different maps here.

    Attributes:
        layer: As for `GradCAM`.
        score: The number that is explained.
        scale: The lambda of Lerma and Lucas 2022 eq. 12, positive. Towards 0 the method becomes half of Grad-CAM+.
        alphas: `guarded_alphas`, or `literal_alphas` to see what the printed formula does.
        relu: Whether to keep the positive part only; with non-negative activations nothing else is there.

    Raises:
        ValueError: If ``scale`` is not positive, or ``layer`` is an empty sequence.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=GradCAMPlusPlus("1")).shape
        torch.Size([2, 8, 8])
    """

    scale: float = 1.0
    alphas: Callable[..., Tensor] = guarded_alphas

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self.scale)

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Maps (N,h,w), see `gradcam_plus_plus_weights`."""
        alphas = self.alphas(activations, gradients, scale=self.scale)
        return weighted_sum(activations, gradcam_plus_plus_weights(alphas, gradients))


def smooth_weights(activations: Tensor, moments: Tensor, *, scale: float = 1.0) -> Tensor:
    """Channel weights of Smooth Grad-CAM++: those of Grad-CAM++ with each derivative averaged over noisy images.

    With the moments ``Dn`` (N,3,D,h,w), the means of ``g^n``: ``alpha = D2 / (2 D2 + lambda D3 sum A)`` and
    ``w = sum_ij alpha ReLU(D1)``. As in `guarded_alphas` numerator and denominator are divided by ``D2``, and alpha is
    held at 1 or less.

    Example:
        >>> smooth_weights(torch.ones(1, 1, 1, 1), torch.tensor([2.0, 4.0, 8.0]).view(1, 3, 1, 1, 1))
        tensor([[0.5000]])
    """
    first, second, third = moments.unbind(1)
    # Where the squares vanish the ratio, which is of the size of g, is far below the 2 that it is added to.
    vanished = second == 0
    ratio = (third / second.masked_fill(vanished, 1.0)).masked_fill(vanished, 0.0)
    return gradcam_plus_plus_weights(guarded_alphas(activations, ratio, scale=scale), first)


@dataclass(frozen=True)
class SmoothGradCAMPlusPlus(ScoredAttribution, LayerMaps):
    """Smooth Grad-CAM++: Grad-CAM++ with its derivatives averaged over noisy images (`smooth_weights`).

    Omeiza et al., "Smooth Grad-CAM++", 2019, https://arxiv.org/abs/1908.01224; Torres Figueroa et al. 2024 eq. 5.
    Gradients, their
    squares and their cubes are averaged; the activations, in the weights and in the map, are those of the image
    itself. One forward pass and one backward pass down to the layer for each sample. The noise of an image depends on
    its content and the seed alone.

    Attributes:
        layer: As for `GradCAM`; one pass serves several layers.
        score: The number that is explained.
        n_samples: Number of noisy copies of each image.
        noise_level: Standard deviation of the noise as a share of each image's range, ``max x - min x``.
        scale: As for `GradCAMPlusPlus`.
        seed: Any integer; another seed gives other noise.
        batch_size: How many noisy images run at once; None for as many as there are images.
        relu: Whether to keep the positive part only; with non-negative activations nothing else is there.

    Raises:
        ValueError: If a number is out of range, or ``layer`` is an empty sequence.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=SmoothGradCAMPlusPlus("1", n_samples=3)).shape
        torch.Size([2, 8, 8])
    """

    needs_reruns = True

    n_samples: int = 25
    noise_level: float = 0.15
    scale: float = 1.0
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self.scale)
        require_count("n_samples", self.n_samples)
        require_batch_size(self.batch_size)
        require_noise_level(self.noise_level)

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        layers = self.layers()
        activations = [at_least_float32(trace.activation(layer)) for layer in layers]
        sums = [torch.zeros_like(one)[:, None].expand(-1, 3, -1, -1, -1) for one in activations]
        for of, noisy in self._noisy_images(trace):
            gradients = self._gradients(trace.rerun(noisy, rows=of), targets[of])
            for i, g in enumerate(gradients):
                sums[i] = sums[i].index_add(0, of, torch.stack([g, g**2, g**3], dim=1))
        pairs = zip(activations, sums, strict=True)
        return [
            weighted_sum(one, smooth_weights(one, total / self.n_samples, scale=self.scale)) for one, total in pairs
        ]

    def _gradients(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        return [at_least_float32(trace.gradient(self.score, targets, of=layer)) for layer in self.layers()]

    def _noisy_images(self, trace: Trace) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks: of which images (M,), and the noisy images (M,C,H,W)."""
        images = trace.images
        n, noisy = len(images), noisy_copies(images, self.noise_level, self.seed, trace.noise_source)
        for rows in torch.arange(self.n_samples * n, device=images.device).split(self.batch_size or n):
            of = rows % n
            yield of, noisy(of)


def _require_positive(scale: float) -> None:
    require_number("scale", scale)
    if not scale > 0:
        raise ValueError(f"`scale` expected a positive number, the lambda of exp(lambda S), got {scale}.")
