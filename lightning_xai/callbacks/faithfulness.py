"""The callback that measures how faithful explanations are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_xai.attribution import Attribution, CenteredGaussian, Edges, FakeCAM, Random, Shuffled
from lightning_xai.baselines import Baseline, black, check_standardized
from lightning_xai.callbacks.base import ExplainingCallback
from lightning_xai.callbacks.batches import Unpack, first_two
from lightning_xai.callbacks.data import images_of_rank, is_due, loaders_of, stage_of
from lightning_xai.callbacks.loggers import declare_metrics
from lightning_xai.callbacks.tally import Tally
from lightning_xai.explain import attribute, named_attributions
from lightning_xai.kinds import require_count, require_kinds
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import Batch, Boxes, ExplanationMetric, Setting
from lightning_xai.scores import centered, log_softmax, resolve_targets
from lightning_xai.standard import Standard
from lightning_xai.trace import Capture, Trace, logits_of, plain_tensors, run, same_places
from lightning_xai.types import LogitsOf, Rectifiers, Score, Targets

_DEAR = 1 / 3
"""Share of the time of a validation from which on it is logged."""


class Faithfulness(ExplainingCallback):
    """Any set of attributions times any set of metrics, on validation and test batches.

    The maps come from the forward pass that the validation step makes anyway; each attribution adds its own backward
    passes, one masked forward pass for all confidence metrics together, and what other metrics need (their docstrings
    say). Logged as ``val/xai/<attribution>/<metric>`` (``test/...``; with several dataloaders
    ``.../dataloader_idx_<i>``) at the end of the epoch, ready for ``ModelCheckpoint(monitor=...)``, and with them
    ``ConstantMaps``, the share of images in percent whose map shows nothing. A metric of several numbers logs each
    under its own name. What concerns several methods or the model rather than one map is logged once:
    ``val/xai/RelativePerformance/<later>_vs_<earlier>``, ``val/xai/model/GradientAlignment``.

    Controls are measured on the first ``control_images`` only, and ``<metric>_over_controls`` is how much better a
    method is than the best of them on those very images, in the metric's unit: below 0 a control wins.

    Args:
        attributions: Named methods, or one, which is called by its class.
        metrics: Metrics such as ``[AverageDrop(), Insertion()]`` (named by their class), or a dict of them: any
            `ExplanationMetric`; wrap another metric of torchmetrics in `FromMetric`.
        mean: Mean by which images were standardised, one number per channel, or what says both (`Standard`); None to
            read them from the transforms of the dataset or the datamodule, which is logged.
        std: Standard deviation by which images were standardised.
        n_images: Number of images of each dataloader, over all ranks; None for all.
        controls: Methods that know nothing of the model, to be beaten; an empty dict for none. None for
            `default_controls`.
        control_images: Number of these images that controls are measured on; None for all of them.
        every_n_epochs: Epochs of training from one measurement to the next, the first included; ``validate`` and
            ``test`` always measure.
        baseline: What stands where the map hides the image: `black` (the papers'),
            `mean_color` or `blurred`.
        targets: Which class, fixed from the unmasked image; None for the predicted one.
        log_probability: The confidence; ``log_sigmoid`` for one-logit and multi-label heads.
        classifier: Dotted name of the module that takes images and gives logits, ``"self"`` for the LightningModule;
            None to find it.
        unpack: How a batch is taken apart: into images, labels and, for localisation metrics, boxes.
        logits_of: Finds the logits in what a named classifier gives: ``lambda output: output["main"]``, say.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is nothing to compute, a name is used twice, or a number is less than 1.

    Example:
        >>> from lightning_xai import AverageDrop, GradCAM
        >>> callback = Faithfulness({"gradcam": GradCAM("layer4")}, [AverageDrop()], mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> list(callback.attributions)
        ['gradcam', 'random', 'gaussian', 'edges', 'fake_cam', 'shuffled']
    """

    def __init__(
        self,
        attributions: Mapping[str, Attribution] | Attribution,
        metrics: Sequence[ExplanationMetric] | Mapping[str, ExplanationMetric],
        *,
        mean: Standard | None = None,
        std: Sequence[float] | None = None,
        n_images: int | None = 256,
        controls: Mapping[str, Attribution] | None = None,
        control_images: int | None = 32,
        every_n_epochs: int = 1,
        baseline: Baseline = black,
        targets: Targets = None,
        log_probability: Score = log_softmax,
        classifier: str | None = None,
        unpack: Unpack = first_two,
        logits_of: LogitsOf = logits_of,
    ) -> None:
        attributions = named_attributions(attributions)
        controls = default_controls(attributions) if controls is None else controls
        functions: dict[str, object] = {"baseline": baseline, "targets": targets, "log_probability": log_probability}
        require_kinds(Faithfulness.__init__, controls=controls, **functions)
        twice = set(attributions) & set(controls)
        if twice:
            raise ValueError(f"`controls` expected other names than `attributions`, got {sorted(twice)} in both.")
        options: dict[str, Any] = {"classifier": classifier, "unpack": unpack, "logits_of": logits_of}
        super().__init__({**attributions, **controls}, mean=mean, std=std, **options)
        require_count("n_images", n_images, none="all")
        require_count("control_images", control_images, none="all")
        require_count("every_n_epochs", every_n_epochs)
        self.metrics = _named_metrics(metrics)
        self.controls = tuple(controls)
        self.baseline, self.log_probability = baseline, log_probability
        self.n_images, self.control_images, self.every_n_epochs = n_images, control_images, every_n_epochs
        self.targets = targets
        self._needs = frozenset().union(*(metric.needs for metric in self.metrics.values()))
        self._tallies: list[Tally] = []
        self._checked: set[int] = set()
        self._due = True
        self._begun = self._spent = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: the data may be other ones."""
        super().setup(trainer, pl_module, stage)
        self._checked = set()

    @property
    def states(self) -> list[dict[str, dict[str, ExplanationMetric]]]:
        """The metrics of the last epoch, by dataloader and attribution: per-image values where they were kept."""
        return [tally.metrics for tally in self._tallies]

    @property
    def shared_states(self) -> list[dict[str, ExplanationMetric]]:
        """The metrics of the last epoch that concern several methods or the model, by dataloader."""
        return [tally.shared for tally in self._tallies]

    def names(self) -> set[str]:
        """The names of the attributions and controls."""
        return set(self.attributions)

    def explanations(self) -> dict[str, Attribution]:
        """The attributions without the controls."""
        return {name: method for name, method in self.attributions.items() if name not in self.controls}

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this rank's share of the images is not yet complete."""
        return self._due and self._tallies[dataloader_idx].left != 0

    def capture(self) -> Capture:
        """What the forward must keep: for some metrics, the way to the image."""
        return self.full_capture() | Capture(image_gradient="image_gradient" in self._needs)

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Update every metric of every attribution with one batch."""
        self.compare_scores(labels, self.log_probability)
        tally = self._tallies[dataloader_idx]
        # waits for a GPU, so that the clock is right
        rows, n = self._known(trace.logits.isfinite().all(1)[: tally.left])
        begun = time.perf_counter()
        setting = Setting(*self.standard(trainer, dataloader_idx), self.baseline, self.log_probability)
        if dataloader_idx not in self._checked:  # once a run: a later batch may hold a single odd image
            check_standardized(trace.images, setting.mean, setting.std)
            self._checked.add(dataloader_idx)
        with_controls = tally.with_controls(n) if self.controls else n
        names = [name for name in self.attributions if with_controls or name not in self.controls]
        batch = self._batch(trace, labels, boxes, names, setting)
        self._measure(batch.take(rows if with_controls == n else rows[rows < with_controls]), tally)
        if with_controls < n:
            tally.leave_controls(self.controls)
            own = [name for name in self.attributions if name not in self.controls]
            self._measure(batch.take(rows[rows >= with_controls], own), tally)
        tally.count(n)
        self._spent += time.perf_counter() - begun

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with empty metrics on the module's device."""
        self._due = is_due(trainer, self.every_n_epochs)
        self._begun, self._spent = time.perf_counter(), 0.0
        if not self._due:
            return
        with plain_tensors():
            self._tallies = [
                Tally.begun(
                    self.metrics,
                    [*self.attributions],
                    pl_module.device,
                    images_of_rank(trainer, loader, self.n_images),
                    images_of_rank(trainer, loader, self.control_images),
                )
                for loader in loaders_of(trainer)
            ]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log."""
        if not self._due:
            return
        values: dict[str, float] = {}
        directions: dict[LogKey, bool | None] = {}
        with plain_tensors():
            for i, tally in enumerate(self._tallies):
                index = i if len(self._tallies) > 1 else None
                for name, metric, better, value in tally.results(self.controls):
                    key = LogKey(stage_of(trainer), name, metric, index)
                    values[str(key)], directions[key] = value, better
        if trainer.is_global_zero and not trainer.sanity_checking:
            declare_metrics(trainer.loggers, directions)
        # The values are equal on every rank already; Lightning warns where it is not asked to see to that. What is
        # logged in the sanity check it throws away.
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)
        self._tell_price(trainer)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _batch(
        self, trace: Trace, labels: Tensor | None, boxes: Boxes | None, names: Sequence[str], setting: Setting
    ) -> Batch:
        targets = resolve_targets(self.targets, trace.logits, labels)
        maps = attribute(trace, targets, {name: self.attributions[name] for name in names})
        classifier = _Asked(trace, self.capture(), self.attributions, targets)
        rows = torch.arange(len(trace.images), device=trace.images.device)
        return Batch(trace.images, trace.logits, targets, maps, classifier, setting, rows, labels, boxes)

    def _measure(self, batch: Batch, tally: Tally) -> None:
        if "masked_scores" in self._needs and len(batch.images):
            rows, n = self._known(~torch.stack(list(batch.masked_scores.values())).isnan().any(0))
            if len(rows) < n:  # the same images for all methods, so that their values can be paired
                batch = batch.take(rows)
        if len(batch.images):
            tally.measure(batch)

    def _known(self, known: Tensor) -> tuple[Tensor, int]:
        """Which images are known, and how many there are."""
        rows = known.nonzero()[:, 0]
        if len(rows) < len(known):
            self.say_once(rank_zero_warn, "images whose logits are NaN or infinite are left out of the metrics.")
        return rows, len(known)

    def _tell_price(self, trainer: pl.Trainer) -> None:
        whole = time.perf_counter() - self._begun
        if self._spent > _DEAR * whole and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.say_once(
                rank_zero_info,
                f"{self._spent / whole:.0%} of the validation ({self._spent:.1f} of {whole:.1f} s) went into "
                f"{len(self.attributions)} methods and controls. `n_images`, `control_images`, `every_n_epochs` and "
                "fewer steps of curves make it less.",
            )


def default_controls(attributions: Mapping[str, Attribution]) -> dict[str, Attribution]:
    """Maps to be beaten: noise, a centred Gaussian, edges, all but one pixel, and the first method's own, shuffled.

    The shuffled map costs what the first method costs.

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
class _Asked:
    """The classifier and the methods behind one batch, as `metrics.sample.Classifier` describes them."""

    trace: Trace
    capture: Capture
    methods: Mapping[str, Attribution]
    targets: Tensor

    @property
    def model(self) -> nn.Module:
        return self.trace.model

    @property
    def names(self) -> Sequence[str]:
        return list(self.methods)

    @property
    def batch_size(self) -> int:
        return len(self.trace.images)

    @property
    def takes_images_alone(self) -> bool:
        return not self.trace.calling(self.batch_size).has_rows(self.batch_size)

    def predict(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.trace.predict(images, rows=rows)

    def explain(
        self,
        names: Sequence[str],
        images: Tensor,
        targets: Tensor,
        rows: Tensor | None,
        *,
        model: nn.Module | None = None,
        noise_source: Tensor | None = None,
    ) -> dict[str, Tensor]:
        methods = {name: self.methods[name] for name in names}
        if model is None:
            return attribute(self.trace.rerun(images, rows=rows, noise_source=noise_source), targets, methods)
        calling = self.trace.calling(len(images), rows)
        return attribute(run(model, images, self._capture_of(model), calling), targets, methods)

    def image_gradients(self, rectifiers: Rectifiers | None = None) -> Tensor:
        return self.trace.image_gradient(centered, self.targets, rectifiers=rectifiers)

    def _capture_of(self, copied: nn.Module) -> Capture:
        """What a copy of the classifier must keep: the layers of the same names, their tokens at the same places."""
        same_places(self.model, copied)
        names = {module: name for name, module in self.model.named_modules()}
        layers = {layer: copied.get_submodule(names[module]) for layer, module in self.capture.layers.items()}
        return replace(self.capture, layers=layers)


def _named_metrics(metrics: Any) -> dict[str, ExplanationMetric]:
    given = list(metrics.values()) if isinstance(metrics, Mapping) else metrics
    if not isinstance(given, Sequence) or not given or not all(isinstance(one, ExplanationMetric) for one in given):
        classes = [one.__name__ for one in given if isinstance(one, type)] if isinstance(given, Sequence) else []
        wrap = "Wrap other metrics of torchmetrics: `FromMetric(metric, lambda sample: {...})`."
        remedy = f"Create it: `{classes[0]}()` instead of `{classes[0]}`." if classes else wrap
        raise TypeError(
            f"`metrics` expected a list or a dict of metrics such as [AverageDrop()], got {metrics!r}. {remedy}"
        )
    named = dict(metrics) if isinstance(metrics, Mapping) else {type(metric).__name__: metric for metric in given}
    if len(named) < len(given):
        raise ValueError(
            "`metrics` expected one metric of each class, got several. Name them: {'fine': Insertion(steps=50), ...}."
        )
    return named
