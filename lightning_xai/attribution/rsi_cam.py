"""RSI Grad-CAM: channels weighted by what they contribute to the score on the way from a baseline to the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_xai.attribution.base import LayerMaps, ScoredAttribution
from lightning_xai.attribution.cam import weighted_sum
from lightning_xai.attribution.paths import baseline_images, completeness_error, require_standardization
from lightning_xai.attribution.sampling import require_batch_size
from lightning_xai.baselines import Baseline
from lightning_xai.kinds import require_count
from lightning_xai.scores import at_least_float32, post_softmax
from lightning_xai.standard import Standard
from lightning_xai.trace import Trace
from lightning_xai.types import Score


def positive_gradients(gradients: Tensor) -> Tensor:
    """Gradients with their positive part only, as in the authors' PyTorch notebooks and in Grad-CAM+."""
    return gradients.relu()


def signed_gradients(gradients: Tensor) -> Tensor:
    """Gradients as they are, as in the authors' TensorFlow notebook: contributions then sum to the score's change."""
    return gradients


def every_unit(contributions: Tensor, activations: Tensor, changes: Tensor) -> Tensor:
    """Contributions of all units, as in the authors' PyTorch notebooks."""
    return contributions


def guided_units(contributions: Tensor, activations: Tensor, changes: Tensor) -> Tensor:
    """Positive contributions of units that are active and more so than in the baseline; 0 for the others.

    As in the authors' TensorFlow notebook: ``IG [A > 0] [IG > 0] [A - A_0 > 0]``.

    Example:
        >>> guided_units(torch.tensor([2.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, -1.0, 1.0]))
        tensor([2., 0., 0.])
    """
    return contributions.relu() * ((activations > 0) & (changes > 0))


def trapezoids(activations: Tensor, gradients: Tensor, n: int) -> Tensor:
    """Terms of the Riemann-Stieltjes sum, ``(G_{l-1} + G_l) / 2 * (A_l - A_{l-1})``.

    Args:
        activations: Activations (M,D,h,w) at points of the paths of n images, point by point: the row before that of
            the same image is n rows above.
        gradients: Gradients of the score with respect to them, (M,D,h,w).
        n: Number of images.

    Returns:
        Terms (max(M - n, 0),D,h,w): that of row i belongs to row n + i.

    Example:
        >>> activations = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)
        >>> trapezoids(activations, torch.tensor([2.0, 4.0, 6.0]).view(3, 1, 1, 1), 1).flatten()
        tensor([ 3., 10.])
    """
    return (gradients[:-n] + gradients[n:]) / 2 * (activations[n:] - activations[:-n])


@dataclass(frozen=True)
class RSIGradCAM(ScoredAttribution, LayerMaps):
    """RSI Grad-CAM: Grad-CAM with gradients integrated over the layer's activations by a Riemann-Stieltjes sum.

    On the straight path from a baseline to the image, ``IG = sum_l (G_{l-1} + G_l) / 2 (A_l - A_{l-1})`` with the
    activations ``A_l`` of the layer and the score's gradients ``G_l`` with respect to them (`trapezoids`);
    ``w_k = mean_ij IG_ij^k`` and ``ReLU(mean_k w_k A_k)`` with the activations of the image. Lucas, Lerma et al.,
    "RSI-Grad-CAM: Visual Explanations from Deep Networks via Riemann-Stieltjes Integrated Gradient-based
    Localization", 2022, https://arxiv.org/abs/2205.10900. Gradients that vanish at the image, where the softmax
    saturates, do not on the way. One forward pass and one backward pass down to the layer for each step.

    Two variants are published: ``gradients=positive_gradients, units=every_unit`` (default) and
    ``gradients=signed_gradients, units=guided_units``.

    Attributes:
        layer: As for `GradCAM`; one pass serves several layers.
        score: The number that is explained. Logits would see a shift of all of them, the probability does not.
        n_steps: Number of steps m.
        gradients: What is integrated: `positive_gradients` or `signed_gradients`.
        units: Which contributions count: `every_unit` or `guided_units`.
        baseline: Where the path begins, as for `IntegratedGradients`.
        mean: Mean by which the images were standardised, or what says both (`Standard`); for a function only.
        std: Standard deviation by which they were standardised.
        batch_size: How many images of the path run at once; None for as many as there are images.
        relu: Whether to keep the positive part only, as the paper does.

    Raises:
        ValueError: If a number is out of range, a baseline function lacks ``mean`` and ``std``, or ``layer`` is an
            empty sequence.

    Example:
        >>> from torch import nn
        >>> from lightning_xai import explain
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> method = RSIGradCAM("1", n_steps=5, mean=[0.5] * 3, std=[0.25] * 3)
        >>> explain(model, torch.rand(2, 3, 8, 8), attributions=method).shape
        torch.Size([2, 8, 8])
    """

    needs_reruns = True

    score: Score = post_softmax
    n_steps: int = 50
    gradients: Callable[[Tensor], Tensor] = positive_gradients
    units: Callable[[Tensor, Tensor, Tensor], Tensor] = every_unit
    baseline: Baseline | Tensor | None = None
    mean: Standard | None = None
    std: Sequence[float] | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("n_steps", self.n_steps)
        require_batch_size(self.batch_size)
        require_standardization(self.baseline, self.mean, self.std)

    def layer_maps(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """Maps (N,h,w) of each layer."""
        activations = [at_least_float32(trace.activation(layer)) for layer in self.layers()]
        weights = [one.mean((2, 3)) for one in self.contributions(trace, targets)]
        return [weighted_sum(one, weight) / one.shape[1] for one, weight in zip(activations, weights, strict=True)]

    def contributions(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        """What each unit of each layer contributes to the change of the score from the baseline to the image."""
        n = len(targets)
        activations = [at_least_float32(trace.activation(layer)) for layer in self.layers()]
        sums = [torch.zeros_like(one)[:, None].expand(-1, 2, -1, -1, -1) for one in activations]
        kept = [torch.stack([one, one], 1)[:0] for one in activations]  # the last N rows: A and G
        for of, points in self._path(trace, targets):
            for i, point in enumerate(points):
                rows = torch.cat([kept[i], point])
                kept[i] = rows[-n:]
                terms = torch.stack([trapezoids(rows[:, 0], rows[:, 1], n), rows[n:, 0] - rows[:-n, 0]], 1)
                sums[i] = sums[i].index_add(0, of[len(of) - len(terms) :], terms)
        return [self.units(one[:, 0], a, one[:, 1]) for a, one in zip(activations, sums, strict=True)]

    def completeness_error(self, trace: Trace, targets: Tensor) -> Tensor:
        """By how much the contributions of all units, with signed gradients, fail to sum to the score's change.

        ``sum_kij IG_ij^k - (S(x) - S(x_0))``: 0 in the limit of many steps for a layer that all paths from image to
        logits pass through. It costs the passes of a map and one forward pass more.

        Example:
            >>> from torch import nn
            >>> from lightning_xai.explain import capture_for
            >>> from lightning_xai.trace import run
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> method = RSIGradCAM("1", mean=[0.5] * 3, std=[0.25] * 3)
            >>> trace = run(model, torch.rand(2, 3, 8, 8), capture_for(model, [method]))
            >>> bool(method.completeness_error(trace, torch.tensor([0, 1])).abs().max() < 1e-4)
            True
        """
        whole = replace(self, gradients=signed_gradients, units=every_unit)
        baseline = baseline_images(trace.images, self.baseline, self.mean, self.std)
        ends = [self.score(logits, targets) for logits in (trace.logits, trace.predict(baseline))]
        return torch.stack([completeness_error(one.sum(1), *ends) for one in whole.contributions(trace, targets)])

    def _path(self, trace: Trace, targets: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Chunks of points, point by point of all images: whose they are, and A and G of each layer (M,2,D,h,w)."""
        n, images = len(targets), at_least_float32(trace.images)
        baseline = at_least_float32(baseline_images(trace.images, self.baseline, self.mean, self.std))
        for rows in torch.arange(self.n_steps * n, device=images.device).split(self.batch_size or n):
            of, shares = rows % n, (rows // n).to(images.dtype) / self.n_steps
            chunk = torch.lerp(baseline[of], images[of], shares[:, None, None, None])
            # no name for the trace, which would keep its graph while the next one is made
            yield of, self._points(trace.rerun(chunk.to(trace.images.dtype), rows=of), targets[of])
        yield torch.arange(n, device=images.device), self._points(trace, targets)

    def _points(self, trace: Trace, targets: Tensor) -> list[Tensor]:
        return [
            torch.stack(
                [
                    at_least_float32(trace.activation(layer)),
                    self.gradients(at_least_float32(trace.gradient(self.score, targets, of=layer))),
                ],
                1,
            )
            for layer in self.layers()
        ]
