"""Sanity check by randomisation: maps that explain a model must change when its parameters do."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from lightning_xai.metrics.base import Number
from lightning_xai.metrics.sample import Batch, Sample
from lightning_xai.metrics.similarity import SIMILARITIES, SimilarityMetric, check_similarities, map_similarities
from lightning_xai.trace import copied


class Randomization(NamedTuple):
    """How similar maps stay while layers are randomised.

    Attributes:
        layers: Names of the L layers, in the order in which they were randomised.
        randomization_similarities: Similarities (N,L,3) of each image's maps, as `map_similarities` orders them.
    """

    layers: list[str]
    randomization_similarities: Tensor


def parameter_randomization(
    model: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    layers: Sequence[str] | None = None,
    independent: bool = False,
    seed: int = 0,
) -> Randomization:
    """Similarity of a model's maps with those of copies whose layers were randomised.

    Adebayo et al., NeurIPS 2018: cascading from the top, each layer with all before it, or each layer alone. A layer
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
    other = copied(model)
    maps, similarities = explain(other), []
    for names in groups.values():
        if independent:
            other = copied(model)
        _randomize(other, names, seed)
        similarities.append(map_similarities(maps, explain(other)))
    return Randomization(list(groups), torch.stack(similarities, dim=1))


def randomizable_layers(model: nn.Module) -> list[str]:
    """Modules with parameters of their own, last registered first: what is randomised by default.

    Example:
        >>> randomizable_layers(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.BatchNorm1d(1)))
        ['2', '0']
    """
    return [name for name, module in model.named_modules() if _own_parameters(module)][::-1]


class ParameterRandomization(SimilarityMetric):
    """Parameter randomisation: average similarity of maps before and after layers are randomised; lower is better.

    From Adebayo et al., NeurIPS 2018. Maps that stay while the model is destroyed do not explain it. Range [-1, 1]; 1
    fails entirely, and near 0 is as good as below. ``compute()`` gives a dict of three numbers, float64, averages over
    images of the means over layers, NaN without images; ``by_layer`` tells the layers apart, as the figures of the
    paper do.

    ``update(randomization_similarities)`` takes what `parameter_randomization` returns. Where a map is
    `featureless` there is no similarity: such layers are left out of an image's mean and
    counted in ``n_undefined_by_layer``, images without any in ``n_undefined``. Further options and attributes are
    those of `ImageAverage`, of rank correlations.

    Args:
        layers: Names of the layers, in the order of the similarities; `randomizable_layers` gives the default.

    Attributes:
        by_layer: After ``compute()``, each similarity's average over images by layer, (L,) each, float64.
        n_undefined_by_layer: After ``compute()``, the number of images without a similarity by layer, (L,).

    Example:
        >>> metric = ParameterRandomization(["head", "conv"])
        >>> metric.update(torch.tensor([[[0.5, 0.5, 1.0], [0.0, 0.25, 0.5]]]))
        >>> metric.compute()["randomization_ssim"]
        tensor(0.7500, dtype=torch.float64)
        >>> metric.by_layer["ssim"]
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    prefix = "randomization"
    numbers: ClassVar[Mapping[str, Number]] = {
        "randomization_rank_correlation": Number("Parameter randomisation: rank correlation", "", False),
        "randomization_absolute_rank_correlation": Number(
            "Parameter randomisation: rank correlation of magnitudes", "", False
        ),
        "randomization_ssim": Number("Parameter randomisation: SSIM", "", False),
    }

    layer_sums: Tensor
    layer_counts: Tensor

    def __init__(self, layers: Sequence[str], *, keep_values: bool = False, **kwargs: Any) -> None:
        super().__init__(keep_values=keep_values, **kwargs)
        self.layers = tuple(layers)
        self.by_layer: dict[str, Tensor] = {}
        self.n_undefined_by_layer = torch.zeros(len(layers), dtype=torch.long)
        self.add_state("layer_sums", torch.zeros(len(layers), 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("layer_counts", torch.zeros(len(layers), dtype=torch.long), dist_reduce_fx="sum")

    def measure(self, sample: Sample) -> None:
        """Update; the methods share the copies of the classifier and their passes."""
        self.update(sample.batch.once(_by_method, self.layers)[sample.name])

    def update(self, randomization_similarities: Tensor) -> None:
        """Add similarities (N,L,3) of one batch."""
        check_similarities("randomization_similarities", randomization_similarities, (len(self.layers), 3))
        values = randomization_similarities.detach().double()
        known = ~values.isnan().any(2)
        values = values.where(known[..., None], torch.nan)
        self.layer_sums = self.layer_sums + values.nansum(0)
        self.layer_counts = self.layer_counts + known.sum(0)
        self.add_similarities(values.nanmean(1))

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # several numbers
        """Averages over images of the means over layers, float64."""
        means = self.layer_sums / self.layer_counts[:, None]
        self.by_layer = dict(zip(SIMILARITIES, means.T, strict=True))
        self.n_undefined_by_layer = self.n_images - self.layer_counts
        return super().compute()

    def draw(self, ax: Axes, label: str) -> None:
        """The similarities over the layers, in the order of randomisation."""
        self.compute()
        color = f"C{len(ax.lines) // len(SIMILARITIES)}"
        for (name, curve), style in zip(self.by_layer.items(), ("-", "--", ":"), strict=True):
            words = f"{label} {'SSIM' if name == 'ssim' else name.replace('_', ' ')}".strip()
            ax.plot(range(len(self.layers)), curve.tolist(), style, marker=".", color=color, label=words)
        ax.set_xticks(range(len(self.layers)), self.layers, rotation=90)
        ax.set(ylim=(-1.05, 1.05), xlabel="randomised layer", ylabel="similarity with the model's own map")
        ax.legend()


def _by_method(batch: Batch, layers: Sequence[str]) -> dict[str, Tensor]:
    """Similarities (N,L,3) by method."""
    names = list(batch.maps)

    def explain(model: nn.Module) -> Tensor:
        found = batch.classifier.explain(names, batch.images, batch.targets, batch.rows, model=model)
        return torch.cat([found[name] for name in names])

    similarities = parameter_randomization(batch.classifier.model, explain, layers=layers).randomization_similarities
    return dict(zip(names, similarities.split(len(batch.images)), strict=True))


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
