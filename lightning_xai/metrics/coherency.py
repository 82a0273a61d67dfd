"""Coherency, complexity, and their harmonic mean with the drop (ADCC): what a drop alone does not punish.

From Poppi, Cornia, Baraldi and Cucchiara, "Revisiting The Evaluation of Class Activation Mapping for Explainability",
CVPR Workshops 2021, https://arxiv.org/abs/2104.10252; checked against the authors' code, github.com/aimagelab/ADCC. In
percent here, as their tables and Average Drop are. All take maps as masks (ReLU, then min-max for each image).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.base import Need
from lightning_xai.metrics.confidence import average_drop
from lightning_xai.metrics.masking import degenerate, normalized_masks
from lightning_xai.metrics.sample import Sample


def coherency(maps: Tensor, masked_maps: Tensor) -> Tensor:
    """Whether a map stays when only what it shows is left: ``100 (1 + r) / 2`` with Pearson's r of the two masks.

    Args:
        maps: Maps of the images, (N,H,W).
        masked_maps: Maps of the images masked by ``maps``, for the same classes and by the same method, (N,H,W).

    Returns:
        Coherency of each image (N,) in [0, 100] percent, float64; higher is better, unrelated maps have 50. Where one
        of the two maps shows nothing (`degenerate`) r is 0/0, and the coherency 0.

    Raises:
        ValueError: If the maps are of another shape, or of two shapes.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[0.0, 1.0, 2.0, 1.0]]]).expand(2, 1, 4)
        >>> coherency(maps, torch.tensor([[[1.0, 2.0, 3.0, 2.0]], [[1.0, 2.0, 1.0, 2.0]]]))
        tensor([100.0000,  50.0000], dtype=torch.float64)
    """
    if maps.shape != masked_maps.shape:
        raise ValueError(
            "`masked_maps` expected one map for each map of the images, of its shape "
            f"{tuple(maps.shape)}, got {tuple(masked_maps.shape)}."
        )
    first, second = _centered(maps), _centered(masked_maps)
    correlation = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    nothing = degenerate(maps) | degenerate(masked_maps)
    return (50.0 * (1.0 + correlation)).clamp(0.0, 100.0).masked_fill(nothing, 0.0)


def complexity(maps: Tensor) -> Tensor:
    """How much of the image a map shows: the L1 norm of its mask over the number of pixels, ``100/(HW) sum m``.

    Args:
        maps: Maps (N,H,W).

    Returns:
        Complexity of each image (N,) in (0, 100) percent, float64; lower is better. NaN for a map that shows nothing
        (`degenerate`): the least complex explanation is not none.

    Raises:
        ValueError: If the maps are of another shape.

    Example:
        >>> import torch
        >>> complexity(torch.tensor([[[-3.0, 0.0, 1.0, 2.0]], [[7.0, 7.0, 7.0, 7.0]]]))
        tensor([37.5000,     nan], dtype=torch.float64)
    """
    masks = normalized_masks(maps).double()
    return (100.0 * masks.mean((1, 2))).masked_fill(degenerate(maps), float("nan"))


def adcc(scores: Tensor, masked_scores: Tensor, maps: Tensor, masked_maps: Tensor) -> Tensor:
    """Harmonic mean of coherency, 100 - complexity and 100 - drop: ``3 / (1/coherency + ...)``.

    Args:
        scores: Log-probabilities of the class on the images, (N,).
        masked_scores: Log-probabilities of the same class on the masked images, (N,), of the same dtype.
        maps: Maps of the images, (N,H,W).
        masked_maps: Maps of the masked images, (N,H,W).

    Returns:
        ADCC of each image (N,) in [0, 100] percent, float64; higher is better. 0 for a map that shows nothing, and
        where one of the three is 0.

    Raises:
        ValueError: If the scores are no log-probabilities, or anything has another shape.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])  # coherency 100, complexity 25, drop 50
        >>> adcc(torch.tensor([0.8]).log(), torch.tensor([0.4]).log(), maps, maps)
        tensor([69.2308], dtype=torch.float64)
    """
    if scores.shape != maps.shape[:1]:
        raise ValueError(f"`maps` expected one map for each of the {len(scores)} scores, got {tuple(maps.shape)}.")
    kept, simple = 100.0 - average_drop(scores, masked_scores), 100.0 - complexity(maps)
    mean = 3.0 / (1.0 / coherency(maps, masked_maps) + 1.0 / simple + 1.0 / kept)
    return mean.masked_fill(degenerate(maps), 0.0)


class Coherency(ImageAverage):
    """Mean `coherency`, whether a map stays when only what it shows is left, in percent; higher is better.

    From Poppi et al., "Revisiting The Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021,
    https://arxiv.org/abs/2104.10252. Range [0, 100]; maps that have nothing to do with one another have 50. Maps that
    do not depend on the image, a centred Gaussian or a Fake-CAM, have 100. A map that shows nothing (constant,
    all-zero or not finite) counts with 0. Signed maps are taken after ReLU.

    ``update(maps, masked_maps)`` takes the maps (N,H,W) of the images and those of the images masked by them, by the
    same method for the same classes. Without images the result is NaN. Options and attributes are those of
    `ImageAverage`.

    Example:
        >>> import torch
        >>> metric = Coherency()
        >>> metric.update(torch.tensor([[[0.0, 1.0, 2.0, 1.0]]]), torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def measure(self, sample: Sample) -> None:
        """Update with the maps of the images and of the masked images."""
        self.update(sample.maps, sample.masked_maps)

    def update(self, maps: Tensor, masked_maps: Tensor) -> None:
        """Add maps (N,H,W) of one batch of images and of the masked images."""
        self.add(coherency(maps, masked_maps))


class Complexity(ImageAverage):
    """Mean `complexity`, how much of the image a map shows, in percent of the pixels; lower is better.

    From Poppi et al., "Revisiting The Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021,
    https://arxiv.org/abs/2104.10252. Range (0, 100). A map that shows nothing (constant, all-zero or not finite) has
    none: it is left out and counted in ``n_undefined``. Signed maps are taken after ReLU. Alone it rewards showing one
    pixel.

    ``update(maps)`` takes maps (N,H,W). Without images the result is NaN. Options and attributes are those of
    `ImageAverage`.

    Example:
        >>> import torch
        >>> metric = Complexity()
        >>> metric.update(torch.tensor([[[0.0, 0.0, 1.0, 2.0]], [[7.0, 7.0, 7.0, 7.0]]]))
        >>> metric.compute(), metric.n_undefined
        (tensor(37.5000, dtype=torch.float64), 1)
    """

    higher_is_better = False

    def measure(self, sample: Sample) -> None:
        """Update with the maps."""
        self.update(sample.maps)

    def update(self, maps: Tensor) -> None:
        """Add maps (N,H,W) of one batch of images."""
        self.add(complexity(maps))


class ADCC(ImageAverage):
    """Mean `adcc`, the harmonic mean of coherency, 100 - complexity and 100 - drop, in percent; higher is better.

    From Poppi et al., "Revisiting The Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021,
    https://arxiv.org/abs/2104.10252. The mean is over the images' harmonic means, as in the authors' code, which is not
    the harmonic mean of the three averages. Range [0, 100]. A map that shows nothing (constant, all-zero or not
    finite) counts with 0. Signed maps are taken after ReLU. A Fake-CAM, which the drop alone rewards, has next to 0
    by its complexity; a small blob that does not depend on the image can still score well.

    ``update(scores, masked_scores, maps, masked_maps)`` takes log-probabilities (N,) as
    `masked_scores` returns them, and the maps (N,H,W) of the images and of the images
    masked by them: the second map costs the method once more. Without images the result is NaN. Options and attributes
    are those of `ImageAverage`.

    Example:
        >>> import torch
        >>> metric, maps = ADCC(), torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])
        >>> metric.update(torch.tensor([0.8]).log(), torch.tensor([0.4]).log(), maps, maps)
        >>> metric.compute()
        tensor(69.2308, dtype=torch.float64)
    """

    title = "ADCC"
    higher_is_better = True
    needs: ClassVar[frozenset[Need]] = frozenset({"masked_scores"})

    def measure(self, sample: Sample) -> None:
        """Update with scores and maps of the images and of the masked images."""
        self.update(sample.scores, sample.masked_scores, sample.maps, sample.masked_maps)

    def update(self, scores: Tensor, masked_scores: Tensor, maps: Tensor, masked_maps: Tensor) -> None:
        """Add one batch: log-probabilities (N,) and maps (N,H,W) of the images and of the masked images."""
        self.add(adcc(scores, masked_scores, maps, masked_maps))


def _centered(maps: Tensor) -> Tensor:
    masks = normalized_masks(maps).double().flatten(1)
    return masks - masks.mean(1, keepdim=True)
