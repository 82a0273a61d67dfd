"""The callback that measures how faithful explanations are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lightning_xai.attribution import Attribution, CenteredGaussian, Edges, FakeCAM, Random, Shuffled
from lightning_xai.baselines import Baseline, black, check_standardized
from lightning_xai.callbacks.base import ExplainingCallback, Unpack, first_two, images_of_rank, loaders_of, stage_of
from lightning_xai.callbacks.loggers import declare_metrics, log_key
from lightning_xai.explain import attribute, named_attributions
from lightning_xai.metrics import Boxes, Sample, degenerate, measured, taken_by
from lightning_xai.scores import centered, log_softmax, resolve_targets
from lightning_xai.trace import Capture, Trace, plain_tensors
from lightning_xai.types import Score, Targets

CONSTANT_MAPS = "ConstantMaps"
"""Name in the log of the share of images, in percent, whose map shows nothing."""


class Faithfulness(ExplainingCallback):
    """Any set of attributions times any set of metrics, on validation and test batches.

    The maps come from the forward pass that the validation step makes anyway; each attribution adds its own backward
    passes, one masked forward pass for all confidence metrics together, and what other metrics need (their docstrings
    say). Logged as ``val/xai/<attribution>/<metric>`` (``test/...``; with several dataloaders
    ``.../dataloader_idx_<i>``) at the end of the epoch, ready for ``ModelCheckpoint(monitor=...)``, and beside them
    ``ConstantMaps``, the share of images in percent whose map shows nothing. A metric of several numbers logs each
    under its own name. What concerns several methods or the model rather than one map is logged once:
    ``val/xai/RelativePerformance/<later>_vs_<earlier>``, ``val/xai/model/GradientAlignment``.

    Args:
        attributions: Named methods.
        metrics: Metrics such as ``[AverageDrop(), Insertion()]`` (named by their class), or a dict of them: any whose
            ``update`` takes what a `Sample` has, or that has a method
            ``measure(sample)``.
        mean: Mean by which images were standardised, one number per channel.
        std: Standard deviation by which images were standardised.
        n_images: Number of images of each dataloader, over all ranks; None for all.
        controls: Methods that know nothing of the model, to be beaten; an empty dict for none. None for
            `default_controls`.
        baseline: What stands where the map hides the image: `black` (the papers'),
            `mean_color` or `blurred`.
        targets: Which class, fixed from the unmasked image; None for the predicted one.
        log_probability: The confidence; ``log_sigmoid`` for one-logit and multi-label heads.
        classifier: Dotted name of the module that takes images and gives logits; None to find it.
        unpack: How a batch is taken apart: into images, labels and, for localisation metrics, boxes.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is nothing to compute, a name is used twice, or ``n_images`` is less than 1.

    Example:
        >>> from lightning_xai import AverageDrop, GradCAM
        >>> callback = Faithfulness({"gradcam": GradCAM("layer4")}, [AverageDrop()], mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> list(callback.attributions)
        ['gradcam', 'random', 'gaussian', 'edges', 'fake_cam', 'shuffled']
    """

    def __init__(
        self,
        attributions: Mapping[str, Attribution],
        metrics: Sequence[Metric] | Mapping[str, Metric],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        n_images: int | None = None,
        controls: Mapping[str, Attribution] | None = None,
        baseline: Baseline = black,
        targets: Targets = None,
        log_probability: Score = log_softmax,
        classifier: str | None = None,
        unpack: Unpack = first_two,
    ) -> None:
        attributions = named_attributions(attributions)
        controls = default_controls(attributions) if controls is None else controls
        twice = set(attributions) & set(controls)
        if twice:
            raise ValueError(f"`controls` expected other names than `attributions`, got {sorted(twice)} in both.")
        super().__init__({**attributions, **controls}, classifier=classifier, unpack=unpack)
        if n_images is not None and n_images < 1:
            raise ValueError(f"`n_images` expected 1 or more, or None for all, got {n_images}.")
        self.metrics = _named_metrics(metrics)
        self._wanted = frozenset(name for metric in self.metrics.values() for name in taken_by(metric))
        self.mean, self.std = tuple(mean), tuple(std)
        self.n_images = n_images
        self.baseline = baseline
        self.targets = targets
        self.log_probability = log_probability
        self._states: list[dict[str, dict[str, Metric]]] = []
        self._shared: list[dict[str, Metric]] = []
        self._degenerate: list[dict[str, MeanMetric]] = []
        self._left: list[int | None] = []
        self._checked: set[int] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: the data may be other ones."""
        super().setup(trainer, pl_module, stage)
        self._checked = set()

    @property
    def states(self) -> list[dict[str, dict[str, Metric]]]:
        """The metrics of the last epoch, by dataloader and attribution: per-image values where they were kept."""
        return self._states

    @property
    def shared_states(self) -> list[dict[str, Metric]]:
        """The metrics of the last epoch that concern several methods or the model, by dataloader."""
        return self._shared

    def names(self) -> set[str]:
        """The names of the attributions and controls."""
        return set(self.attributions)

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this rank's share of the images is not yet complete."""
        return self._left[dataloader_idx] != 0

    def capture(self) -> Capture:
        """What the forward must keep: for some metrics, the way to the image."""
        return self.full_capture() | Capture(image_gradient="gradients" in self._wanted)

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Update every metric of every attribution with one batch."""
        left = self._left[dataloader_idx]
        if dataloader_idx not in self._checked:  # once a run: a later batch may hold a single odd image
            check_standardized(trace.images, self.mean, self.std)
            self._checked.add(dataloader_idx)
        targets = resolve_targets(self.targets, trace.logits, labels)
        maps = attribute(trace, targets, self.attributions)
        images = _Images(trace, targets, labels, boxes)
        rows = self._known(trace.logits.isfinite().all(1)[:left]).nonzero()[:, 0]
        samples = self._samples(images, maps, rows)
        if self._wanted & {"masked_scores", "masked_scores_by_method"}:
            known = self._known(~torch.stack([sample.masked_scores.isnan() for sample in samples.values()]).any(0))
            if not known.all():  # the same images for all methods, so that their values can be paired
                samples = self._samples(images, maps, rows[known])
        for name, sample in samples.items():
            self._degenerate[dataloader_idx][name].update(100.0 * degenerate(sample.maps))
            self._update(self._states[dataloader_idx][name], sample)
        first = next(iter(samples.values()))
        self._update(self._shared[dataloader_idx], replace(first, methods=samples))
        self._left[dataloader_idx] = None if left is None else left - len(trace.images[:left])

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with empty metrics on the module's device."""
        loaders = loaders_of(trainer)
        alone = {name: metric for name, metric in self.metrics.items() if not _is_shared(metric)}
        shared = {name: metric for name, metric in self.metrics.items() if _is_shared(metric)}
        with plain_tensors():
            device = pl_module.device
            self._states = [{name: _copies(alone, device) for name in self.attributions} for _ in loaders]
            self._shared = [_copies(shared, device) for _ in loaders]
            self._degenerate = [{name: MeanMetric().to(device) for name in self.attributions} for _ in loaders]
        self._left = [images_of_rank(trainer, loader, self.n_images) for loader in loaders]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log."""
        values: dict[str, float] = {}
        directions: dict[str, bool | None] = {}
        with plain_tensors():
            for i, states in enumerate(self._states):
                for name, metrics in states.items():
                    degenerate_maps: dict[str, Metric] = {CONSTANT_MAPS: self._degenerate[i][name]}
                    for part, better, value in _results(metrics | degenerate_maps):
                        values[self._key(trainer, name, part, i)] = value
                        directions[self._key(trainer, name, part, i)] = better
                for metric_name, metric in self._shared[i].items():
                    for part, better, value in _results({metric_name: metric}):
                        key = self._key(trainer, "model" if part == metric_name else metric_name, part, i)
                        values[key], directions[key] = value, better
        if trainer.is_global_zero and not trainer.sanity_checking:
            declare_metrics(trainer.loggers, directions)
        # The values are equal on every rank already; Lightning warns where it is not asked to see to that. What is
        # logged in the sanity check it throws away.
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _samples(self, images: _Images, maps: dict[str, Tensor], rows: Tensor) -> dict[str, Sample]:
        """What metrics are told of each method and of some of the images, which all methods share."""
        trace = images.trace

        def explain(name: str, others: Tensor, classes: Tensor) -> Tensor:
            return attribute(trace.rerun(others), classes, {name: self.attributions[name]})[name]

        def gradient(guided_rule: bool) -> Tensor:
            return trace.image_gradient(centered, images.targets, rectifiers="relu" if guided_rule else None)[rows]

        first, *_ = maps
        common = Sample(
            images=trace.images[rows],
            maps=maps[first][rows],
            targets=images.targets[rows],
            logits=trace.logits[rows],
            predict=trace.predict,
            explain=partial(explain, first),
            mean=self.mean,
            std=self.std,
            labels=None if images.labels is None else images.labels[rows],
            boxes=images.boxes_of(rows),
            baseline=self.baseline,
            log_probability=self.log_probability,
            wanted=self._wanted,
            image_gradient=gradient,
        )
        return {
            name: replace(common, maps=values[rows], explain=partial(explain, name)) for name, values in maps.items()
        }

    def _update(self, metrics: dict[str, Metric], sample: Sample) -> None:
        if len(sample.images):
            for metric in metrics.values():
                if arguments := measured(metric, sample):
                    metric.update(**arguments)

    def _known(self, known: Tensor) -> Tensor:
        if not known.all():
            self.say_once(rank_zero_warn, "images whose logits are NaN or infinite are left out of the metrics.")
        return known

    def _key(self, trainer: pl.Trainer, name: str, metric: str, dataloader_idx: int) -> str:
        return log_key(stage_of(trainer), name, metric, dataloader_idx=dataloader_idx if len(self._left) > 1 else None)


def default_controls(attributions: Mapping[str, Attribution]) -> dict[str, Attribution]:
    """Maps to be beaten: noise, a centred Gaussian, edges, all but one pixel, and the first method's own, shuffled.

    Args:
        attributions: Named methods.

    Returns:
        Named controls; the shuffled map costs what the first method costs.

    Example:
        >>> from lightning_xai import GradCAM
        >>> default_controls({"gradcam": GradCAM("layer4")})["edges"]
        Edges()
    """
    first = next(iter(attributions.values()))
    return {
        "random": Random(),
        "gaussian": CenteredGaussian(),
        "edges": Edges(),
        "fake_cam": FakeCAM(),
        "shuffled": Shuffled(first),
    }


@dataclass(frozen=True)
class _Images:
    """What is known of one batch."""

    trace: Trace
    targets: Tensor
    labels: Tensor | None
    boxes: Boxes | None

    def boxes_of(self, rows: Tensor) -> Boxes | None:
        if self.boxes is None or isinstance(self.boxes, Tensor):
            return None if self.boxes is None else self.boxes[rows]
        return [self.boxes[row] for row in rows.tolist()]


def _is_shared(metric: Metric) -> bool:
    """Whether a metric concerns the model or several methods, not one map."""
    return bool({"gradients", "masked_scores_by_method"} & set(taken_by(metric)))


def _copies(metrics: dict[str, Metric], device: torch.device) -> dict[str, Metric]:
    return {name: metric.clone().to(device) for name, metric in metrics.items()}


def _results(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, bool | None, float]]:
    """Name, direction and value of each number."""
    for name, metric in metrics.items():
        with warnings.catch_warnings():  # a rank without images has updated nothing
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            value = metric.compute()
        better = False if name == CONSTANT_MAPS else metric.higher_is_better
        parts = value if isinstance(value, Mapping) else {name: value}
        own_name = name == type(metric).__name__
        for part, number in parts.items():
            yield part if own_name or part == name else f"{name}_{part}", better, float(number)


def _named_metrics(metrics: Any) -> dict[str, Metric]:
    given = list(metrics.values()) if isinstance(metrics, Mapping) else metrics
    if not isinstance(given, Sequence) or not given or not all(isinstance(metric, Metric) for metric in given):
        raise TypeError(f"`metrics` expected a list or a dict of metrics such as [AverageDrop()], got {metrics!r}.")
    named = dict(metrics) if isinstance(metrics, Mapping) else {type(metric).__name__: metric for metric in given}
    if len(named) < len(given):
        raise ValueError(
            "`metrics` expected one metric of each class, got several. Name them: {'fine': Insertion(steps=50), ...}."
        )
    return named
