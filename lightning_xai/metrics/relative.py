"""Relative performance: which of several methods leaves more of the confidence, as a ratio and not as a percentage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from lightning_xai.metrics.averages import KeepsValues
from lightning_xai.metrics.base import Need, Number, Scope
from lightning_xai.metrics.confidence import log_probabilities
from lightning_xai.metrics.sample import Sample


def log_relative_performance(masked_scores: Tensor) -> Tensor:
    """Log relative performance of each method against each other, ``log(o' / o)`` for each image.

    From Lerma and Lucas, "Grad-CAM++ is equivalent to Grad-CAM with positive gradients", 2022,
    https://arxiv.org/abs/2205.10838, section 4. Log-probabilities (N,k) become ratios (N,k,k), positive where the
    method of the row leaves more than that of the column. Where both o are 0 the result is NaN, where one is, infinite.

    Example:
        >>> log_relative_performance(torch.tensor([[0.25, 0.5]]).log())
        tensor([[[ 0.0000, -0.6931],
                 [ 0.6931,  0.0000]]], dtype=torch.float64)
    """
    logs = masked_scores.double()
    return logs[:, :, None] - logs[:, None, :]


class RelativePerformance(KeepsValues):
    """Relative performance of methods, the geometric mean of ``o'/o`` between each two; above 1 the first is better.

    From Lerma and Lucas, "Grad-CAM++ is equivalent to Grad-CAM with positive gradients", 2022,
    https://arxiv.org/abs/2205.10838, eq. 16-17: ``exp(1/n sum_i log(o'_i / o_i))``, where o_i and o'_i are the
    probabilities of the class on the image masked by the one and by the other method. Ratios are averaged as ratios;
    percentages as in Average Drop favour images that had little confidence to lose. Range (0, inf), no unit. Showing
    nearly everything wins: a Fake-CAM had 2.6 against Grad-CAM on SqueezeNet, so such a control belongs in the table.

    Only images whose class has a probability above ``threshold`` count, as in the paper, which takes the class from the
    label, to separate the methods' performance from the network's. Images where a method leaves a probability of
    exactly 0 have no logarithm: they are left out of all pairs and counted. A map that shows nothing (constant,
    all-zero or not finite) counts with the baseline alone.

    ``update(scores, masked_scores_by_method)`` takes the log-probabilities (N,) of the images, and by method those of
    the masked images, (N,) each, as `masked_scores` returns them. So one plain and m
    masked forward passes give this and the metrics of `confidence` for m methods.

    Args:
        methods: Names of the methods, two or more.
        threshold: Images count whose class has a probability above this, in [0, 1).
        keep_values: Whether to keep the log ratios of each image, over all processes, for ``values`` and ``plot()``.

    Attributes:
        performance: After ``compute()``, the geometric mean of the row's o over the column's, (k,k), float64.
        log_mean: After ``compute()``, the mean of the log ratio, (k,k), float64.
        log_std: After ``compute()``, its sample standard deviation, (k,k), float64; NaN for fewer than two images.
        values: After ``compute()``, the log ratios of each image that counts, (n,k,k), float64; None unless kept.

    Raises:
        ValueError: If there are not two different methods, or the threshold is not in [0, 1).

    Example:
        >>> metric = RelativePerformance(("gradcam", "gradcam++"))
        >>> metric.update(
        ...     torch.tensor([0.9, 0.8, 0.3]).log(),
        ...     {"gradcam": torch.tensor([0.2, 0.4, 0.1]).log(), "gradcam++": torch.tensor([0.4, 0.8, 0.3]).log()},
        ... )
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'gradcam++_vs_gradcam': 2.0, 'gradcam++_vs_gradcam_log_mean': 0.6931, 'gradcam++_vs_gradcam_log_std': 0.0,
         'n_used': 2.0, 'n_below_threshold': 1.0, 'n_zero': 0.0}
        >>> metric.performance
        tensor([[1.0000, 0.5000],
                [2.0000, 1.0000]], dtype=torch.float64)
    """

    higher_is_better = None
    scope: ClassVar[Scope] = "methods"
    needs: ClassVar[frozenset[Need]] = frozenset({"masked_scores"})
    numbers: ClassVar[Mapping[str, Number]] = {
        "n_used": Number("Images that count", "images"),
        "n_below_threshold": Number("Images below the threshold", "images"),
        "n_zero": Number("Images whose probability is 0 under a method", "images"),
    }

    log_sum: Tensor
    square_sum: Tensor

    def __init__(
        self, methods: Sequence[str], *, threshold: float = 0.5, keep_values: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.methods = tuple(methods)
        if isinstance(methods, str) or len(set(self.methods)) < max(2, len(self.methods)):
            raise ValueError(f"`methods` expected two or more different names, got {methods!r}.")
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` expected a probability in [0, 1), got {threshold}.")
        self.threshold = threshold
        self.performance: Tensor | None = None
        self.log_mean: Tensor | None = None
        self.log_std: Tensor | None = None
        pairs = torch.zeros(len(self.methods), len(self.methods), dtype=torch.float64)
        self.add_state("log_sum", pairs, dist_reduce_fx="sum")
        self.add_state("square_sum", pairs.clone(), dist_reduce_fx="sum")
        # Named by the options: a MetricCollection would let two of these metrics share states that have equal names and
        # happen to be equal after the first batch.
        self._counts = f"counts of {self.methods} above {threshold}"
        self.add_state(self._counts, torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, masked_scores_by_method: Mapping[str, Tensor]) -> None:
        """Add one batch of log-probabilities (N,) of the images and, by method, of the masked images."""
        if set(masked_scores_by_method) != set(self.methods):
            raise ValueError(
                f"`masked_scores_by_method` expected the methods {sorted(self.methods)}, "
                f"got {sorted(masked_scores_by_method)}."
            )
        pairs = [
            log_probabilities(scores, masked_scores_by_method[name], f"masked_scores_by_method[{name!r}]")
            for name in self.methods
        ]
        masked = torch.stack([after for _, after in pairs], dim=1).detach()
        confident = pairs[0][0].exp() > self.threshold
        used = confident & (masked > -torch.inf).all(1)
        ratios = log_relative_performance(masked[used])
        # Not in place: a module's `.to(torch.bfloat16)` casts states too, and this brings them back to float64.
        self.log_sum = self.log_sum + ratios.sum(0)
        self.square_sum = self.square_sum + ratios.square().sum(0)
        counts = torch.stack([used.sum(), (~confident).sum(), (confident & ~used).sum()])
        setattr(self, self._counts, getattr(self, self._counts) + counts)
        self.keep(masked[used])

    def measure(self, sample: Sample) -> None:
        """Update, from the samples of all methods."""
        names = sample.batch.classifier.names
        missing = sorted(set(self.methods) - set(names))
        if missing:
            raise ValueError(f"`methods` expected names of attributions, {sorted(names)}, got {missing}.")
        if not set(self.methods) <= set(sample.methods):
            return  # images that controls do not have
        self.update(sample.scores, {name: sample.methods[name].masked_scores for name in self.methods})

    def compute(self) -> dict[str, Tensor]:
        """Each later method against each earlier one, and how many images that is, as in tables 1 and 2 of the paper.

        Returns:
            ``<later>_vs_<earlier>``, the geometric mean of the ratio, its log's mean and standard deviation under
            ``..._log_mean`` and ``..._log_std``; the number of images that count (``n_used``) and those that do not:
            ``n_below_threshold`` and ``n_zero``. All float64; NaN where no image counts.
        """
        counts: Tensor = getattr(self, self._counts)
        n = counts[0]
        self.log_mean = self.log_sum / n
        # The square of a mean may round to a trifle more than the mean of squares.
        spread = (self.square_sum - self.log_sum.square() / n).clamp(min=0)
        self.log_std = (spread / (n - 1).clamp(min=0)).sqrt()
        self.performance = self.log_mean.exp()
        kept = self.all_kept(len(self.methods))
        self.values = None if kept is None else log_relative_performance(kept)
        tables = {"": self.performance, "_log_mean": self.log_mean, "_log_std": self.log_std}
        found = {
            f"{self.methods[row]}_vs_{self.methods[column]}{kind}": table[row, column]
            for column, row in combinations(range(len(self.methods)), 2)
            for kind, table in tables.items()
        }
        return found | dict(zip(("n_used", "n_below_threshold", "n_zero"), counts.double(), strict=True))

    def draw(self, ax: Axes, label: str) -> None:
        """Box plots of the log relative performance of each later method against each earlier one (figure 6).

        Boxes reach from quartile to quartile, whiskers to the furthest value within 1.5 times that; outliers, which
        would squeeze the boxes, are not drawn.

        Raises:
            RuntimeError: If the values were not kept.
        """
        self.compute()
        if self.values is None:
            raise RuntimeError("`plot` expected the values of the images. Use `keep_values=True`.")
        pairs = [(row, column) for column, row in combinations(range(len(self.methods)), 2)]
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.boxplot([self.values[:, row, column].tolist() for row, column in pairs], showfliers=False)
        names = [f"{self.methods[row]} vs {self.methods[column]}" for row, column in pairs]
        ax.set_xticks(range(1, len(pairs) + 1), names, rotation=30, ha="right")
        ax.set(ylabel="log relative performance", title=f"{len(self.values)} images")
