"""How similar two maps of an image are, for the sanity checks.

Guided methods are known to fail both: they draw edges whatever the model (Adebayo et al., "Sanity Checks for Saliency
Maps", NeurIPS 2018, https://arxiv.org/abs/1810.03292). A map that passes may still be wrong: noise passes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.sweep import featureless
from lightning_xai.ranks import rank_correlation

SIMILARITIES = ("rank_correlation", "absolute_rank_correlation", "ssim")
"""What the last dimension of similarities is, in this order."""

_SMALLEST_SIDE = 6
"""Pixels; the window of SSIM is reflected by five."""


def map_similarities(maps: Tensor, others: Tensor) -> Tensor:
    """Three similarities of maps, those of Adebayo et al. 2018 without the histogram of gradients.

    ``rank_correlation``: Spearman's, of the signed maps ("diverging" in the paper). ``absolute_rank_correlation``: of
    their magnitudes. ``ssim``: structural similarity (Gaussian window, sigma 1.5) of the magnitudes, each map divided
    by its largest. Tied pixels share their mean rank; torchmetrics' rank correlation sums the ranks of ties in 32 bits,
    too few for the zeros of a large CAM.

    Returns:
        Similarities (N,3), float64: correlations in [-1, 1], SSIM in [-1, 1]; 1 for equal maps. NaN where a map is
        `featureless`; where its magnitude alone is constant, of what is made of that.

    Raises:
        ValueError: If shapes differ or maps are too small.

    Example:
        >>> maps = torch.arange(36.0).view(1, 6, 6)
        >>> map_similarities(maps, -maps)
        tensor([[-1.,  1.,  1.]], dtype=torch.float64)
    """
    if maps.shape != others.shape or maps.ndim != 3 or min(maps.shape[1:]) < _SMALLEST_SIDE:
        raise ValueError(
            f"`maps` and `others` expected one shape (N,H,W) with sides of {_SMALLEST_SIDE} pixels or more, "
            f"got {tuple(maps.shape)} and {tuple(others.shape)}."
        )
    unknown = featureless(maps) | featureless(others)
    first, second = (values.detach().double().masked_fill(unknown[:, None, None], 1.0) for values in (maps, others))
    correlations = rank_correlation(first, second), rank_correlation(first.abs(), second.abs())
    return torch.stack([*correlations, _ssim(first.abs(), second.abs())], dim=1).masked_fill(
        unknown[:, None], torch.nan
    )


class SimilarityMetric(ImageAverage):
    """Averages of the three similarities; the value of an image is the signed rank correlation."""

    unit = ""
    higher_is_better = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    prefix: str

    similarity_sums: Tensor

    def __init__(self, *, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.add_state("similarity_sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # several numbers
        """Averages of the three similarities over images, float64."""
        super().compute()
        means = self.similarity_sums / (self.n_images - self.n_nan)
        return {f"{self.prefix}_{name}": mean for name, mean in zip(SIMILARITIES, means, strict=True)}

    def add_similarities(self, values: Tensor) -> None:
        """Add the similarities (N,3) of one batch; NaN where there is none."""
        known = ~values.isnan().any(1)
        self.similarity_sums = self.similarity_sums + values[known].sum(0)
        self.add(values[:, 0].where(known, torch.nan))


def check_similarities(name: str, values: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse similarities of another shape than (N, *expected)."""
    if values.ndim != len(expected) + 1 or values.shape[1:] != expected:
        raise ValueError(f"`{name}` expected shape (N, {', '.join(map(str, expected))}), got {tuple(values.shape)}.")


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    # One pair at a time and in float32: convolutions in float64 unfold their input, 20 GB for 80 maps of 224 pixels.
    units = [(values / values.amax((1, 2), keepdim=True))[:, None].float() for values in (first, second)]
    ssim = partial(structural_similarity_index_measure, data_range=1.0, reduction="none")
    values = [cast(Tensor, ssim(one[None], other[None])) for one, other in zip(*units, strict=True)]
    return torch.cat(values).double() if values else first.new_zeros(0).double()
