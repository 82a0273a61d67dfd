"""Robustness: whether attributions account for what perturbations do, and stay when the image hardly changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.forwards import float64_logits
from lightning_xai.metrics.sample import Sample
from lightning_xai.noise import generators, placed_like
from lightning_xai.scores import centered
from lightning_xai.types import Score

Perturbation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""What is subtracted from an image: ``(image (C,H,W), generator on the CPU) -> perturbation (C,H,W)``."""


def gaussian_perturbation(image: Tensor, generator: torch.Generator, *, std: float = 0.2) -> Tensor:
    """Gaussian noise of every value, with ``functools.partial`` for another deviation.

    Example:
        >>> gaussian_perturbation(torch.zeros(1, 1, 2), torch.Generator().manual_seed(0))
        tensor([[[ 0.3082, -0.0587]]])
    """
    return std * placed_like(torch.randn(image.shape, generator=generator), image)


def square_perturbation(
    image: Tensor, generator: torch.Generator, *, side: int = 16, baseline: float | Tensor = 0.0
) -> Tensor:
    """A square at a random place that becomes the baseline, "square removal" in Yeh et al. 2019.

    All places inside the image are equally likely; the side is cut to the image's own sides.

    Example:
        >>> square_perturbation(torch.ones(1, 1, 3), torch.Generator().manual_seed(0), side=2)
        tensor([[[0., 1., 1.]]])
    """
    mask = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    places = [int(torch.randint(max(length - side, 0) + 1, (), generator=generator)) for length in mask.shape]
    mask[places[0] : places[0] + side, places[1] : places[1] + side] = True
    return torch.where(mask, image - baseline, torch.zeros_like(image))


def infidelity(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    attributions: Tensor,
    targets: Tensor,
    *,
    perturbation: Perturbation = gaussian_perturbation,
    n_samples: int = 10,
    normalize: bool = False,
    score: Score = centered,
    seed: int = 0,
) -> Tensor:
    """Mean squared error of the attributions as a linear account of perturbations, ``E (I.A - (f(x) - f(x - I)))^2``.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (https://arxiv.org/abs/1901.09392),
    definition 2.1; ``captum.metrics.infidelity`` with the raw logit as the score. The plain value has the unit of the
    score squared and is for attributions on the scale of the score, such as the gradient; maps of any other scale need
    ``normalize``. Cost: ``n_samples + 1`` forwards of N images.

    Args:
        predict: The classifier, images (N,C,H,W) to logits (N,K). No gradient is used; call inside
            ``torch.no_grad()`` where nothing else turns gradients off.
        images: Images (N,C,H,W).
        attributions: Attributions (N,C,H,W), or maps (N,H,W), which stand for the sum over channels: they meet the
            mean of the perturbation over channels, which is exact for grey perturbations. Taken with their sign.
        targets: Class of each image, (N,), fixed from the unperturbed image.
        perturbation: What is subtracted from each image.
        n_samples: Number of perturbations for each image.
        normalize: Whether to multiply each image's attributions by the factor that makes its value least, as captum
            does, ``E[(I.A) (f(x) - f(x - I))] / E[(I.A)^2]``; 1 where attributions meet no perturbation.
        score: The score ``f`` that was explained.
        seed: Any integer. Perturbations depend on it and on the image's content, not on its batch.

    Returns:
        Infidelities (N,) >= 0, float64; 0 is best. Attributions of zeros get the mean squared change of the score;
        attributions that are not finite get NaN.

    Raises:
        ValueError: If attributions, targets or logits do not belong to the images, or ``n_samples`` is less than 1.

    Example:
        >>> from lightning_xai.scores import pre_softmax
        >>> classifier = lambda images: images.sum((1, 2, 3))[:, None] * torch.tensor([2.0, 0.0])
        >>> images, targets = torch.ones(1, 1, 2, 2), torch.tensor([0])
        >>> gradient = torch.full((1, 1, 2, 2), 2.0)
        >>> infidelity(classifier, images, gradient, targets, score=pre_softmax).round(decimals=6)
        tensor([0.], dtype=torch.float64)
    """
    _check_infidelity(images, attributions, targets, n_samples)
    sources = generators(images, seed)
    before = score(float64_logits(predict, images), targets)
    accounts, changes = [], []
    for _ in range(n_samples):
        drawn = torch.stack([perturbation(*pair) for pair in zip(images.detach(), sources, strict=True)])
        accounts.append(_account(attributions.detach().double(), drawn.double()))
        changes.append(before - score(float64_logits(predict, images.detach() - drawn), targets))
    account, change = torch.stack(accounts), torch.stack(changes)
    if normalize:
        account = account * _best_factor(account, change)
    return _finite(((account - change) ** 2).mean(0))


def max_sensitivity(
    explain: Callable[[Tensor], Tensor], images: Tensor, *, radius: float = 0.02, n_samples: int = 10, seed: int = 0
) -> Tensor:
    """Largest relative change of the maps under small noise, ``max |M(x + d) - M(x)| / |M(x)|`` over ``|d|_inf <= r``.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (https://arxiv.org/abs/1901.09392),
    definition 3.1, over samples drawn uniformly from the ball; ``captum.metrics.sensitivity_max``. Norms are Euclidean,
    over all values of an image's map. Cost: ``n_samples + 1`` explanations of N images.

    Args:
        explain: Images (N,C,H,W) to maps (N,...). Its classes must be fixed from the unperturbed images, or a changed
            prediction is taken for an unstable map.
        images: Images (N,C,H,W).
        radius: Largest change of a value, in the images' own space.
        n_samples: Number of perturbations for each image.
        seed: Any integer. Noise depends on it and on the image's content, not on its batch.

    Returns:
        Sensitivities (N,) >= 0, float64; 0 is best. NaN for a map of zeros, of which no change is relative (captum
        gives the absolute one), and for a map that is not finite, of the image or of one of its neighbours.

    Raises:
        ValueError: If the maps do not belong to the images, or a number is out of range.

    Example:
        >>> max_sensitivity(lambda images: 3 * images[:, 0], torch.ones(1, 1, 1, 1), radius=0.5, n_samples=100)
        tensor([0.4962], dtype=torch.float64)
    """
    if n_samples < 1 or not radius > 0:
        raise ValueError(
            f"`n_samples` and `radius` expected 1 or more and a positive number, got {n_samples} and {radius}."
        )
    sources = generators(images, seed)
    maps = _flat_maps(explain, images)
    changes = []
    for _ in range(n_samples):
        noise = torch.stack([torch.rand(images.shape[1:], generator=source) for source in sources])
        changed = _flat_maps(explain, images + radius * placed_like(2 * noise - 1, images))
        changes.append((changed - maps).norm(dim=1))
    return _finite(torch.stack(changes).amax(0) / maps.norm(dim=1))


class Infidelity(ImageAverage):
    """Infidelity: the average of `infidelity`; lower is better, 0 is best, no upper end.

    From Yeh et al., NeurIPS 2019. A map of zeros stays in the average with the mean squared change of the score; maps
    that are not finite have no value, are left out and counted in ``n_undefined``. It can be won by attributions that
    are small where scores change little: compare it with a random map of the same scale, or normalised.

    ``update(infidelities)`` takes the values (N,) of the function. Without images the result is NaN. Further options
    and attributes are those of `ImageAverage`.

    Args:
        perturbation: As for `infidelity`, for callbacks, and so are the next two.
        n_samples: Number of perturbations for each image.
        normalize: Whether each map is scaled so that its value is least: for maps that are not on the score's scale.

    Example:
        >>> metric = Infidelity()
        >>> metric.update(torch.tensor([0.5, 0.25, torch.nan]))
        >>> metric.compute(), metric.n_undefined
        (tensor(0.3750, dtype=torch.float64), 1)
    """

    unit = ""
    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        *,
        perturbation: Perturbation = gaussian_perturbation,
        n_samples: int = 10,
        normalize: bool = False,
        keep_values: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.perturbation = perturbation
        self.n_samples = n_samples
        self.normalize = normalize

    def measure(self, sample: Sample) -> None:
        """Update with the infidelity to the centred logit."""
        options: dict[str, Any] = {"n_samples": self.n_samples, "normalize": self.normalize}
        data = sample.predict, sample.images, sample.maps, sample.targets
        self.update(infidelity(*data, perturbation=self.perturbation, **options))

    def update(self, infidelities: Tensor) -> None:
        """Add the infidelities (N,) of one batch."""
        self.add(_one_each("infidelities", infidelities))


class MaxSensitivity(ImageAverage):
    """Max-sensitivity: the average of `max_sensitivity`; lower is better, 0 is best, no upper end.

    From Yeh et al., NeurIPS 2019. Maps of zeros and maps that are not finite have no value, are left out and counted in
    ``n_undefined``. A map that ignores the image, such as a centred Gaussian, reaches 0: it is no sign of truth.

    ``update(sensitivities)`` takes the values (N,) of the function. Without images the result is NaN. Further options
    and attributes are those of `ImageAverage`.

    Args:
        radius: As for `max_sensitivity`, for callbacks, and so is the next one.
        n_samples: Number of perturbations for each image.

    Example:
        >>> metric = MaxSensitivity()
        >>> metric.update(torch.tensor([0.5, 0.25, torch.nan]))
        >>> metric.compute(), metric.n_undefined
        (tensor(0.3750, dtype=torch.float64), 1)
    """

    title = "Max-sensitivity"
    unit = ""
    higher_is_better = False
    plot_upper_bound = None

    def __init__(self, *, radius: float = 0.02, n_samples: int = 10, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.radius = radius
        self.n_samples = n_samples

    def measure(self, sample: Sample) -> None:
        """Update; the classes stay those of the unperturbed images."""
        self.update(max_sensitivity(sample.explain, sample.images, radius=self.radius, n_samples=self.n_samples))

    def update(self, sensitivities: Tensor) -> None:
        """Add the sensitivities (N,) of one batch."""
        self.add(_one_each("sensitivities", sensitivities))


def _check_infidelity(images: Tensor, attributions: Tensor, targets: Tensor, n_samples: int) -> None:
    shape = tuple(images.shape)
    if attributions.shape not in (shape, (shape[0], *shape[2:])):
        raise ValueError(
            f"`attributions` expected the shape of the images, {shape}, or maps {(shape[0], *shape[2:])}, "
            f"got {tuple(attributions.shape)}."
        )
    if targets.shape != shape[:1]:
        raise ValueError(f"`targets` expected one class for each image, ({shape[0]},), got {tuple(targets.shape)}.")
    if n_samples < 1:
        raise ValueError(f"`n_samples` expected 1 or more, got {n_samples}.")


def _account(attributions: Tensor, perturbations: Tensor) -> Tensor:
    if attributions.ndim == 3:
        perturbations = perturbations.mean(1)
    return (attributions * perturbations).flatten(1).sum(1)


def _best_factor(account: Tensor, change: Tensor) -> Tensor:
    squares = (account**2).sum(0)
    return torch.where(squares == 0, 1.0, (account * change).sum(0) / squares)


def _flat_maps(explain: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    maps = explain(images)
    if maps.ndim < 2 or len(maps) != len(images):
        raise ValueError(f"`explain` expected to return maps ({len(images)}, ...), got {tuple(maps.shape)}.")
    return maps.detach().double().flatten(1)


def _finite(values: Tensor) -> Tensor:
    return values.where(values.isfinite(), torch.nan)


def _one_each(name: str, values: Tensor) -> Tensor:
    if values.ndim != 1:
        raise ValueError(f"`{name}` expected one value for each image, (N,), got {tuple(values.shape)}.")
    return values.double()
