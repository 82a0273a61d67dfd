"""Sanity checks: maps that explain a model must change when its parameters do, or when another class is explained.

Guided methods are known to fail both: they draw edges whatever the model (Adebayo et al., "Sanity Checks for Saliency
Maps", NeurIPS 2018, https://arxiv.org/abs/1810.03292). A map that passes may still be wrong: noise passes.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_xai.metrics.averages import ImageAverage
from lightning_xai.metrics.curves import featureless
from lightning_xai.metrics.sample import Sample
from lightning_xai.noise import generators
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import predicted, second_best

SIMILARITIES = ("rank_correlation", "absolute_rank_correlation", "ssim")
"""What the last dimension of similarities is, in this order."""

_SMALLEST_SIDE = 6
"""Pixels; the window of SSIM is reflected by five."""


class Randomization(NamedTuple):
    """How similar maps stay while layers are randomised.

    Attributes:
        layers: Names of the L layers, in the order in which they were randomised.
        randomization_similarities: Similarities (N,L,3) of each image's maps, as `map_similarities` orders them.

    Example:
        >>> Randomization(["head"], torch.ones(2, 1, 3)).layers
        ['head']
    """

    layers: list[str]
    randomization_similarities: Tensor


def map_similarities(maps: Tensor, others: Tensor) -> Tensor:
    """Three similarities of maps, those of Adebayo et al. 2018 without the histogram of gradients.

    ``rank_correlation``: Spearman's, of the signed maps ("diverging" in the paper). ``absolute_rank_correlation``: of
    their magnitudes. ``ssim``: structural similarity (Gaussian window, sigma 1.5) of the magnitudes, each map divided
    by its largest. Tied pixels share their mean rank; torchmetrics' rank correlation sums the ranks of ties in 32 bits,
    too few for the zeros of a large CAM.

    Args:
        maps: Maps (N,H,W), H and W at least 6.
        others: Maps (N,H,W) to compare each with.

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


def parameter_randomization(
    model: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    layers: Sequence[str] | None = None,
    independent: bool = False,
    seed: int = 0,
) -> Randomization:
    """Similarity of a model's maps with those of copies whose layers were randomised.

    Adebayo et al., NeurIPS 2018: cascading from the top, each layer beside all before it, or each layer alone. A layer
    is initialised anew by its ``reset_parameters``, which for batch normalisation forgets the statistics too; where a
    module has none, its parameters are drawn from a normal distribution with their own mean and deviation (constant
    ones stay). The seed of a layer is made of ``seed`` and its name, so that order does not matter. Only copies are
    touched, and the global random state is as before. Cost: one explanation for each layer and one more; memory for
    one copy of the model.

    Args:
        model: The model. A LightningModule that is in a Trainer cannot be copied: pass its network.
        explain: A model to maps (N,H,W). Classes must be fixed from the model as it is, or what changes is the class.
        layers: Dotted names in the order of randomisation, each for all that is inside; None for every module with
            parameters of its own, last registered first.
        independent: Whether to randomise each layer alone instead of cascading.
        seed: Any integer.

    Returns:
        Names of the layers, and similarities (N,L,3).

    Raises:
        ValueError: If a layer is unknown or has no parameters, or maps are not (N,H,W).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3))
        >>> images = torch.rand(1, 1, 12, 12)
        >>> def explain(model):  # a map that knows nothing of the model
        ...     return images[:, 0]
        >>> result = parameter_randomization(model, explain)
        >>> result.layers, result.randomization_similarities.mean(0)
        (['2', '0'], tensor([[1., 1., 1.], [1., 1., 1.]], dtype=torch.float64))
    """
    groups = _groups(model, layers)
    copied = copy.deepcopy(model)
    maps, similarities = explain(copied), []
    for names in groups.values():
        if independent:
            copied = copy.deepcopy(model)
        _randomize(copied, names, seed)
        similarities.append(map_similarities(maps, explain(copied)))
    return Randomization(list(groups), torch.stack(similarities, dim=1))


def randomizable_layers(model: nn.Module) -> list[str]:
    """Modules with parameters of their own, last registered first: what is randomised by default.

    Args:
        model: The model.

    Returns:
        Dotted names; the empty one is the model itself.

    Example:
        >>> randomizable_layers(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.BatchNorm1d(1)))
        ['2', '0']
    """
    return [name for name, module in model.named_modules() if _own_parameters(module)][::-1]


def class_sensitivity(explain: Callable[[Tensor], Tensor], targets: Tensor, other_targets: Tensor) -> Tensor:
    """Similarity of the maps that explain one class and another one of the same images.

    Args:
        explain: Targets (N,) to maps (N,H,W) of the same images.
        targets: Class of each image, (N,), such as the predicted one.
        other_targets: Another class of each image, (N,): `second_best`, the hardest to tell
            from the first, or `random_other_targets`.

    Returns:
        Similarities (N,3) as `map_similarities` orders them.

    Raises:
        ValueError: If the classes of an image are the same, or maps are not (N,H,W).

    Example:
        >>> rows = torch.arange(6.0).view(1, 6, 1)
        >>> explain = lambda targets: (1 - 2 * targets[:, None, None]) * rows.expand(1, 6, 6)
        >>> class_sensitivity(explain, torch.tensor([0]), torch.tensor([1]))
        tensor([[-1.,  1.,  1.]], dtype=torch.float64)
    """
    if targets.shape != other_targets.shape or (targets == other_targets).any():
        raise ValueError(
            f"`other_targets` expected another class for each image, got {other_targets.tolist()} beside "
            f"{targets.tolist()}."
        )
    return map_similarities(explain(targets), explain(other_targets))


def random_other_targets(images: Tensor, targets: Tensor, n_classes: int, *, seed: int = 0) -> Tensor:
    """A class drawn for each image from all but its own.

    Args:
        images: Images (N,C,H,W), whose content seeds the draw, so that batch and order do not matter.
        targets: Class of each image, (N,).
        n_classes: Number of classes K, at least 2.
        seed: Any integer.

    Returns:
        Targets (N,), int64, never the image's own.

    Raises:
        ValueError: If there are fewer than two classes.

    Example:
        >>> random_other_targets(torch.zeros(1, 1, 1, 1), torch.tensor([0]), 2)
        tensor([1])
    """
    if n_classes < 2:
        raise ValueError(f"`n_classes` expected 2 or more, got {n_classes}.")
    shifts = [torch.randint(1, n_classes, (), generator=generator) for generator in generators(images, seed)]
    return (targets + torch.stack(shifts).to(targets.device)) % n_classes


class _SimilarityMetric(ImageAverage):
    """Averages of the three similarities; the value of an image is the signed rank correlation."""

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

    def _add_similarities(self, values: Tensor) -> None:
        known = ~values.isnan().any(1)
        self.similarity_sums = self.similarity_sums + values[known].sum(0)
        self._add(values[:, 0].where(known, torch.nan))


class ClassSensitivity(_SimilarityMetric):
    """Class sensitivity: average similarity of the maps for two classes of an image; lower is better.

    Maps that are alike whatever class they explain, as those of guided backpropagation are, say nothing about the
    decision. Range [-1, 1]; 1 fails entirely, and near 0 is as good as below: classes may share evidence.

    ``update(class_similarities)`` takes what `class_sensitivity` returns. ``compute()`` gives a dict of three
    numbers, float64, NaN without images. Images one of whose maps is `featureless` have no
    similarity, are left out and counted in ``n_undefined``.

    Args:
        keep_values: Whether to keep the rank correlation of each image, over all processes, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        values: After ``compute()``, the rank correlation of each image, (N,), float64; None unless kept.
        n_undefined: After ``compute()``, the number of images that were left out.

    Example:
        >>> metric = ClassSensitivity()
        >>> metric.update(torch.tensor([[-0.5, 0.25, 0.75]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'class_rank_correlation': -0.5, 'class_absolute_rank_correlation': 0.25, 'class_ssim': 0.75}
    """

    prefix = "class"

    def update(self, class_similarities: Tensor) -> None:
        """Add similarities (N,3) of one batch."""
        _check_similarities("class_similarities", class_similarities, (3,))
        self._add_similarities(class_similarities.detach().double())

    def measure(self, sample: Sample) -> dict[str, Tensor]:
        """Arguments of ``update``: the other class is the second best, or the best where that one was explained."""
        others = second_best(sample.logits)
        others = torch.where(others == sample.targets, predicted(sample.logits), others)
        explain = partial(sample.explain, sample.images)
        return {"class_similarities": class_sensitivity(explain, sample.targets, others)}


class ParameterRandomization(_SimilarityMetric):
    """Parameter randomisation: average similarity of maps before and after layers are randomised; lower is better.

    From Adebayo et al., NeurIPS 2018. Maps that stay while the model is destroyed do not explain it. Range [-1, 1]; 1
    fails entirely, and near 0 is as good as below. ``compute()`` gives a dict of three numbers, float64, averages over
    images of the means over layers, NaN without images; ``by_layer`` tells the layers apart, as the figures of the
    paper do.

    ``update(randomization_similarities)`` takes what `parameter_randomization` returns. Where a map is
    `featureless` there is no similarity: such layers are left out of an image's mean and
    counted in ``n_undefined_by_layer``, images without any in ``n_undefined``.

    Args:
        layers: Names of the layers, in the order of the similarities; `randomizable_layers` gives the default.
        keep_values: Whether to keep the rank correlation of each image, over all processes, for ``values``.
        kwargs: Options of `torchmetrics.Metric`.

    Attributes:
        by_layer: After ``compute()``, each similarity's average over images by layer, (L,) each, float64.
        n_undefined_by_layer: After ``compute()``, the number of images without a similarity by layer, (L,).
        values: After ``compute()``, the rank correlation of each image, (N,), float64; None unless kept.
        n_undefined: After ``compute()``, the number of images that were left out.

    Example:
        >>> metric = ParameterRandomization(["head", "conv"])
        >>> metric.update(torch.tensor([[[0.5, 0.5, 1.0], [0.0, 0.25, 0.5]]]))
        >>> metric.compute()["randomization_ssim"]
        tensor(0.7500, dtype=torch.float64)
        >>> metric.by_layer["ssim"]
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    prefix = "randomization"

    layer_sums: Tensor
    layer_counts: Tensor

    def __init__(self, layers: Sequence[str], *, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.layers = tuple(layers)
        self.by_layer: dict[str, Tensor] = {}
        self.n_undefined_by_layer = torch.zeros(len(layers), dtype=torch.long)
        self.add_state("layer_sums", torch.zeros(len(layers), 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("layer_counts", torch.zeros(len(layers), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, randomization_similarities: Tensor) -> None:
        """Add similarities (N,L,3) of one batch."""
        _check_similarities("randomization_similarities", randomization_similarities, (len(self.layers), 3))
        values = randomization_similarities.detach().double()
        known = ~values.isnan().any(2)
        values = values.where(known[..., None], torch.nan)
        self.layer_sums = self.layer_sums + values.nansum(0)
        self.layer_counts = self.layer_counts + known.sum(0)
        self._add_similarities(values.nanmean(1))

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # several numbers
        """Averages over images of the means over layers, float64."""
        means = self.layer_sums / self.layer_counts[:, None]
        self.by_layer = dict(zip(SIMILARITIES, means.T, strict=True))
        self.n_undefined_by_layer = self.n_images - self.layer_counts
        return super().compute()

    def plot(self, val: Any = None, ax: Axes | None = None, *, label: str = "") -> tuple[Figure | SubFigure, Axes]:
        """Draw the similarities over the layers, in the order of randomisation.

        Args:
            val: Results of ``compute()`` or ``forward()`` to be drawn as numbers instead, as torchmetrics does.
            ax: Where to draw; None for a new figure, of which pyplot knows nothing.
            label: Name of the curves, such as that of the method.

        Returns:
            The figure and its axes.
        """
        if val is not None:
            return super().plot(val, ax)
        self.compute()
        ax = Figure(layout="constrained").subplots() if ax is None else ax
        color = f"C{len(ax.lines) // len(SIMILARITIES)}"
        for (name, curve), style in zip(self.by_layer.items(), ("-", "--", ":"), strict=True):
            words = f"{label} {'SSIM' if name == 'ssim' else name.replace('_', ' ')}".strip()
            ax.plot(range(len(self.layers)), curve.tolist(), style, marker=".", color=color, label=words)
        ax.set_xticks(range(len(self.layers)), self.layers, rotation=90)
        ax.set(ylim=(-1.05, 1.05), xlabel="randomised layer", ylabel="similarity with the model's own map")
        ax.legend()
        return ax.figure, ax


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    # One pair at a time and in float32: convolutions in float64 unfold their input, 20 GB for 80 maps of 224 pixels.
    units = [(values / values.amax((1, 2), keepdim=True))[:, None].float() for values in (first, second)]
    ssim = partial(structural_similarity_index_measure, data_range=1.0, reduction="none")
    values = [cast(Tensor, ssim(one[None], other[None])) for one, other in zip(*units, strict=True)]
    return torch.cat(values).double() if values else first.new_zeros(0).double()


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _groups(model: nn.Module, layers: Sequence[str] | None) -> dict[str, list[str]]:
    owners = randomizable_layers(model)
    if layers is None:
        return {name: [name] for name in owners}
    groups = {layer: [name for name in owners if f"{name}.".startswith(f"{layer}.")] for layer in layers}
    for layer, names in groups.items():
        if not names:
            raise ValueError(f"`layers` expected names of modules with parameters, got {layer!r}. There are {owners}.")
    return groups


def _randomize(model: nn.Module, names: Iterable[str], seed: int) -> None:
    # Seeding reaches every device, so that all of them are put back.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for name in names:
            torch.manual_seed(zlib.crc32(name.encode(), seed))
            _reset(model.get_submodule(name))


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in _own_parameters(module):
        values = parameter.detach()
        nn.init.normal_(parameter, values.mean().item(), values.std(correction=0).item())


def _check_similarities(name: str, values: Tensor, expected: tuple[int, ...]) -> None:
    if values.ndim != len(expected) + 1 or values.shape[1:] != expected:
        raise ValueError(f"`{name}` expected shape (N, {', '.join(map(str, expected))}), got {tuple(values.shape)}.")
