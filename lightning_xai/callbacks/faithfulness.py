"""The callback that measures how faithful explanations are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection

from lightning_xai.attribution import CenteredGaussian, FakeCAM, Random
from lightning_xai.callbacks.base import (
    ExplainingCallback,
    Unpack,
    first_two,
    images_of_rank,
    loaders_of,
    stage_of,
)
from lightning_xai.callbacks.loggers import declare_metrics, log_key
from lightning_xai.explain import attribute, named_attributions
from lightning_xai.metrics import Baseline, black, degenerate, masked_scores
from lightning_xai.scores import log_softmax, resolve_targets
from lightning_xai.trace import Trace, plain_tensors
from lightning_xai.types import Attribution, Score, Targets
from lightning_xai.visualization import check_standardized

CONSTANT_MAPS = "ConstantMaps"
"""Name in the log of the share of images, in percent, whose map shows nothing."""


class Faithfulness(ExplainingCallback):
    """Any set of attributions times any set of confidence metrics, on validation and test batches.

    The maps come from the forward pass that the validation step makes anyway; each attribution adds one masked forward
    pass for all metrics together, and its own backward passes. Logged as ``val/xai/<attribution>/<metric>``
    (``test/...``; with several dataloaders ``.../dataloader_idx_<i>``) at the end of the epoch, ready for
    ``ModelCheckpoint(monitor=...)``, and beside them ``ConstantMaps``, the share of images in percent whose map shows
    nothing.

    Args:
        attributions: Named methods.
        metrics: Confidence metrics, ``update(scores, masked_scores)``, such as ``[AverageDrop(), AverageGain()]``
            (named by their class), or a dict of them.
        mean: Mean by which images were standardised, one number per channel.
        std: Standard deviation by which images were standardised.
        n_images: Number of images of each dataloader, over all ranks; None for all.
        controls: Methods that know nothing of the model, to be beaten. None for random, centred Gaussian and
            Fake-CAM; an empty dict for none.
        baseline: What stands where the map hides the image: :func:`~lightning_xai.metrics.black` (the papers'),
            :func:`~lightning_xai.metrics.mean_color` or :func:`~lightning_xai.metrics.blurred`.
        targets: Which class, fixed from the unmasked image; None for the predicted one.
        log_probability: The confidence; ``log_sigmoid`` for one-logit and multi-label heads.
        classifier: Dotted name of the module that takes images and gives logits; None to find it.
        unpack: How a batch is taken apart.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is nothing to compute, a name is used twice, or ``n_images`` is less than 1.

    Example:
        >>> from lightning_xai import AverageDrop, GradCAM
        >>> callback = Faithfulness({"gradcam": GradCAM("layer4")}, [AverageDrop()], mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> list(callback.attributions)
        ['gradcam', 'random', 'gaussian', 'fake_cam']
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
        if controls is None:
            controls = {"random": Random(), "gaussian": CenteredGaussian(), "fake_cam": FakeCAM()}
        twice = set(named_attributions(attributions)) & set(controls)
        if twice:
            raise ValueError(f"`controls` expected other names than `attributions`, got {sorted(twice)} in both.")
        super().__init__({**attributions, **controls}, classifier=classifier, unpack=unpack)
        if n_images is not None and n_images < 1:
            raise ValueError(f"`n_images` expected 1 or more, or None for all, got {n_images}.")
        self.metrics = _collection(metrics)
        self.mean, self.std = tuple(mean), tuple(std)
        self.n_images = n_images
        self.baseline = baseline
        self.targets = targets
        self.log_probability = log_probability
        self._states: list[dict[str, MetricCollection]] = []
        self._degenerate: list[dict[str, MeanMetric]] = []
        self._left: list[int | None] = []
        self._checked: set[int] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: the data may be other ones."""
        super().setup(trainer, pl_module, stage)
        self._checked = set()

    @property
    def states(self) -> list[dict[str, MetricCollection]]:
        """The metrics of the last epoch, by dataloader and attribution: per-image values where they were kept."""
        return self._states

    def names(self) -> set[str]:
        """The names of the attributions and controls."""
        return set(self.attributions)

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this rank's share of the images is not yet complete."""
        return self._left[dataloader_idx] != 0

    def heard(self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, dataloader_idx: int) -> None:
        """Update every metric of every attribution with one batch."""
        left = self._left[dataloader_idx]
        images = trace.images[:left]
        if dataloader_idx not in self._checked:  # once a run: a later batch may hold a single odd image
            check_standardized(trace.images, self.mean, self.std)
            self._checked.add(dataloader_idx)
        targets = resolve_targets(self.targets, trace.logits, labels)
        maps = attribute(trace, targets, self.attributions)
        targets = targets[:left]
        scores = self.log_probability(trace.logits[:left].double(), targets)
        baseline = self.baseline(images, self.mean, self.std)
        for name, values in maps.items():
            masked = masked_scores(
                trace.predict, images, values[:left], targets, baseline=baseline, score=self.log_probability
            )
            known = self._known(trace.logits[:left], masked)
            self._states[dataloader_idx][name].update(scores[known], masked[known])
            self._degenerate[dataloader_idx][name].update(100.0 * degenerate(values[:left])[known])
        self._left[dataloader_idx] = None if left is None else left - len(images)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with empty metrics on the module's device."""
        loaders = loaders_of(trainer)
        with plain_tensors():
            device = pl_module.device
            self._states = [{name: self.metrics.clone().to(device) for name in self.attributions} for _ in loaders]
            self._degenerate = [{name: MeanMetric().to(device) for name in self.attributions} for _ in loaders]
        self._left = [images_of_rank(trainer, loader, self.n_images) for loader in loaders]
        if trainer.is_global_zero and not trainer.sanity_checking:
            declare_metrics(trainer.loggers, self._directions(trainer))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log."""
        with plain_tensors():
            values = {
                self._key(trainer, name, metric, i): float(value)
                for i, states in enumerate(self._states)
                for name, state in states.items()
                for metric, value in {**state.compute(), CONSTANT_MAPS: self._degenerate[i][name].compute()}.items()
            }
        # The values are equal on every rank already; Lightning warns where it is not asked to see to that. What is
        # logged in the sanity check it throws away.
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _known(self, logits: Tensor, masked: Tensor) -> Tensor:
        known = logits.isfinite().all(1) & ~masked.isnan()
        if not known.all():
            self.say_once(rank_zero_warn, "images whose logits are NaN or infinite are left out of the metrics.")
        return known

    def _directions(self, trainer: pl.Trainer) -> dict[str, bool | None]:
        directions = {name: metric.higher_is_better for name, metric in self.metrics.items(keep_base=True)}
        return {
            self._key(trainer, name, metric, i): better
            for i in range(len(self._left))
            for name in self.attributions
            for metric, better in {**directions, CONSTANT_MAPS: False}.items()
        }

    def _key(self, trainer: pl.Trainer, name: str, metric: str, dataloader_idx: int) -> str:
        return log_key(stage_of(trainer), name, metric, dataloader_idx=dataloader_idx if len(self._left) > 1 else None)


def _collection(metrics: Any) -> MetricCollection:
    given = list(metrics.values()) if isinstance(metrics, Mapping) else metrics
    if not isinstance(given, Sequence) or not given or not all(isinstance(metric, Metric) for metric in given):
        raise TypeError(f"`metrics` expected a list or a dict of metrics such as [AverageDrop()], got {metrics!r}.")
    return MetricCollection(dict(metrics) if isinstance(metrics, Mapping) else list(metrics))
