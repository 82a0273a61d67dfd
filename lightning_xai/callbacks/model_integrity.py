"""The callback that watches whether a classifier's raw logits can be explained, from the first weights on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_xai.attribution import GradCAM
from lightning_xai.callbacks.base import ExplainingCallback, Unpack, first_two, stage_of
from lightning_xai.callbacks.integrity_finding import DRAWN, Finding, origin_of_shift, picture
from lightning_xai.callbacks.loggers import log_figures, log_key, log_panel
from lightning_xai.integrity import (
    Digest,
    Fingerprint,
    Inspection,
    OneClassError,
    Threshold,
    Verdict,
    for_model,
    inspect_model,
)
from lightning_xai.metrics import Boxes
from lightning_xai.trace import Capture, Observer, Trace, evaluation_mode, is_image_batch, own_pass, plain_tensors
from lightning_xai.types import OneLayer, Tokens


@dataclass
class _Outcome:
    """What all ranks are told of a check that rank zero made."""

    figures: dict[str, float] = field(default_factory=dict)
    alarm: str | None = None
    trouble: str | None = None


class ModelIntegrity(ExplainingCallback):
    """Notices a classifier whose raw-logit maps follow a number that was added to all its logits.

    Such a shift (Lerma and Lucas, 2023, https://arxiv.org/abs/2307.03305) changes no prediction, no loss and no
    training, so that nothing else in a run shows it. The weights that training starts from are checked before the first
    step, then those of every n-th validation, and those that go into a checkpoint. Checks use one small batch of
    probes, as the classifier got them in the first validation batches, the sanity check's among them; without any, in
    the first training batch. They are kept through a run.

    Logged as ``val/xai/<name>/<figure>`` (``test/...``): the figures of `inspect_model`,
    ``suspicion``, ``flagged`` (0 or 1), and ``reference_<figure>``. A model is flagged when a logit shift is seen,
    alone or against the reference; being another model than the reference is no reason. Then a picture shows the maps
    of the raw logit and of the centred score, and from which layer and position the shift comes. The last verdict is
    part of each checkpoint, with digests of the classifier: a run that resumes from it, or tests it, tells whether the
    classifier is still the one that was judged.

    What hinders a check (a reference for other classes, a damaged file, probes of one class) is a warning, and training
    goes on, unless ``action`` is ``"raise"``. Rank zero checks, the others are told. A check costs less than two
    forward passes of the probes at a late layer, with a reference three; ``image_level`` adds two backward passes. The
    first flag of a run looks for the origin of the shift, once: three sweeps of 8 probes for each layer.

    Args:
        layer: Where maps are made: dotted name, module, tokens, or None for the last layer with a spatial output.
        images: Probes (N,C,H,W) as the classifier gets them, some 32 of different classes; None to take them.
        n_images: Number of probes to take.
        every_n_validations: Check at every so many validations of a fit.
        image_level: Whether to look at the gradient of the image too.
        reference: A trusted model, its `Fingerprint`, or the file of one. A fingerprint
            belongs to its probes: pass them as ``images``.
        threshold: From which suspicion on to flag; None for the uncalibrated default.
        action: What a flagged model leads to, at each check: ``"warn"`` (once a run), ``"raise"`` (an error on all
            ranks), or a function, which gets the `Finding` on rank
            zero.
        mean: Mean by which images were standardised, one number per channel, for the picture; None to guess.
        std: Standard deviation by which images were standardised.
        name: Part of the keys; give two callbacks two names.
        classifier: Dotted name of the module that takes images and gives logits; None to find it.
        unpack: How a batch is taken apart.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is less than 1, or one of ``mean`` and ``std`` is missing.

    Example:
        >>> ModelIntegrity(action="raise").names()
        {'integrity'}
    """

    def __init__(
        self,
        layer: str | nn.Module | Tokens | None = None,
        *,
        images: Tensor | None = None,
        n_images: int = 32,
        every_n_validations: int = 1,
        image_level: bool = False,
        reference: nn.Module | Fingerprint | str | Path | None = None,
        threshold: Threshold | None = None,
        action: Literal["warn", "raise"] | Callable[[Finding], object] = "warn",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str = "integrity",
        classifier: str | None = None,
        unpack: Unpack = first_two,
    ) -> None:
        super().__init__({"Grad-CAM": GradCAM(layer)}, classifier=classifier, unpack=unpack)
        for argument, value in {"n_images": n_images, "every_n_validations": every_n_validations}.items():
            if value < 1:
                raise ValueError(f"`{argument}` expected 1 or more, got {value}.")
        if images is not None and not is_image_batch(images):
            raise TypeError(f"`images` expected probes (N, C, H, W) of a floating dtype, got {_kind(images)}.")
        if action not in ("warn", "raise") and not callable(action):
            raise TypeError(f"`action` expected 'warn', 'raise' or a function of the finding, got {action!r}.")
        if (mean is None) != (std is None):
            raise ValueError(f"`mean` and `std` expected both or neither, got {mean} and {std}.")
        self.layer = layer
        self.images = images
        self.n_images = n_images
        self.every_n_validations = every_n_validations
        self.image_level = image_level
        self.reference = reference
        self.threshold = threshold
        self.action = action
        self.standard = None if mean is None or std is None else (tuple(mean), tuple(std))
        self.name = name
        self.finding: Finding | None = None
        self._record: dict[str, Any] = {}
        self._saved: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._probes: list[Tensor] = [] if self.images is None else [self.images]
        self._complete = self.images is not None
        self._fingerprint: Fingerprint | None = None
        self._outcome: _Outcome | None = None
        self._started = self._due = self._was_flagged = False
        self._validations = 0
        self._checked_at: int | None = None
        self._origin: Inspection | None = None
        self._shown = torch.empty(0, dtype=torch.long)

    @property
    def state_key(self) -> str:
        """Under which checkpoints hold the verdict; differs between two callbacks of this kind."""
        return self._generate_state_key(name=self.name)

    def names(self) -> set[str]:
        """Part of the keys."""
        return {self.name}

    def state_dict(self) -> dict[str, Any]:
        """The last verdict, with digests of the classifier where the checkpoint was written during a run."""
        return dict(self._record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the verdict of the checkpoint, for the first check to compare with."""
        self._saved = dict(state_dict)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: model and data may be other ones."""
        super().setup(trainer, pl_module, stage)
        self._saved = {}
        self._begin()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep neither model nor images beyond the run."""
        super().teardown(trainer, pl_module, stage)
        self._begin()

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this is rank zero, and probes are still to be taken."""
        return trainer.is_global_zero and dataloader_idx == 0 and not self._complete

    def capture(self) -> Capture:
        """Nothing: only the images are wanted from the validation step's forward."""
        return Capture()

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Take probes until there are enough."""
        missing = self.n_images - sum(map(len, self._probes))
        self._probes.append(trace.images[:missing].to("cpu", copy=True))  # a view would keep the batch
        self._complete = missing <= len(trace.images)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide whether this validation is one of those that are checked."""
        if not self._complete:  # of an epoch that was not finished
            self._probes.clear()
        self._validations += not trainer.sanity_checking
        skipped = trainer.state.fn == "fit" and self._validations % self.every_n_validations != 0
        self._due = not (trainer.sanity_checking or skipped)
        self._outcome = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take probes; check them now: where averaged weights are validated, they are gone when the epoch ends."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._due and self._complete and self._outcome is None:
            self._check(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, and act; there may have been fewer images than wanted."""
        self._complete = self._complete or bool(self._probes)
        if not self._due:
            return
        if self._outcome is None:
            self._check(trainer)
        figures = self._agree(trainer)
        pl_module.log_dict(
            {self._key(trainer, name): value for name, value in figures.items()},
            sync_dist=trainer.world_size > 1,  # equal on all ranks; Lightning warns where it is not asked to see to it
            add_dataloader_idx=False,
        )

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step: check the weights that training starts from."""
        if not self._started:
            self._started = True
            self._check(trainer, lambda: self._prepare(trainer, pl_module, batch))
            self._log(trainer, self._agree(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check what is about to be written, unless it was just validated, and put the verdict beside it."""
        if not self._started:
            return  # before the first batch or after the run: the last verdict is in the state already
        if self._checked_at != trainer.global_step:
            self._check(trainer)
            self._log(trainer, self._agree(trainer))
        if self._record.get("step") == trainer.global_step:  # else the check failed, or this is not rank zero
            self._record["digest"] = asdict(Digest.of(self.model))
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Take from the first training batch what no validation has given: probes, and the classifier."""
        if not self._probes:
            self._probes.append(self._unpacked(batch)[0][: self.n_images].to("cpu", copy=True))
        self._complete = True
        if not self._found():
            context = trainer.precision_plugin.forward_context
            module = self._model or pl_module
            with own_pass(), Observer(module) as observer, evaluation_mode(module), context():
                module(for_model(module, self._probes[0]))
            self._find(observer)

    def _check(self, trainer: pl.Trainer, prepare: Callable[[], None] = lambda: None) -> None:
        """On rank zero: look, trace back, compare."""
        self._outcome = _Outcome()
        if not trainer.is_global_zero:
            return
        try:
            with plain_tensors():
                prepare()
                finding = self._look(trainer)
        except Exception as error:
            if isinstance(error, OneClassError) and self.images is None:  # as networks in their first steps are
                self.say_once(rank_zero_info, f"nothing can be checked as long as that is so: {error}")
                return
            self._outcome = _Outcome(trouble=f"the classifier could not be checked. {type(error).__name__}: {error}")
            return
        self._outcome = _Outcome(finding.figures)
        if finding.flagged:
            finding = self._traced_back(trainer, finding)
            self._outcome.alarm = f"raw-logit maps of the classifier are not to be trusted.\n{finding}"
        self._explain(finding)
        self._compare_with_checkpoint(finding)
        self.finding, self._record = finding, finding.record

    def _look(self, trainer: pl.Trainer) -> Finding:
        context = trainer.precision_plugin.forward_context
        kept = torch.cat(self._probes)
        inspection = inspect_model(
            self.model,
            for_model(self.model, kept),
            layer=self._layer,
            image_level=self.image_level,
            threshold=self.threshold,
            context=context,
        )
        if self.reference is None:
            return Finding(trainer.global_step, inspection)
        self._fingerprint = self._fingerprint or self._trusted(trainer, kept, inspection.layer)
        comparison = self._fingerprint.compare(self.model, kept, layer=self._layer, context=context)
        return Finding(trainer.global_step, inspection, comparison)

    @property
    def _layer(self) -> OneLayer:
        return self._automatic if self.layer is None else self.layer

    def _trusted(self, trainer: pl.Trainer, images: Tensor, layer: str) -> Fingerprint:
        if isinstance(self.reference, Fingerprint):
            return self.reference
        if not isinstance(self.reference, nn.Module):
            return Fingerprint.load(self.reference)  # type: ignore[arg-type]  # a path: there is a reference
        named = layer in dict(self.reference.named_modules())
        context = trainer.precision_plugin.forward_context
        return Fingerprint.of(self.reference, images, layer=layer if named else None, context=context)

    def _traced_back(self, trainer: pl.Trainer, finding: Finding) -> Finding:
        """The finding with the origin of the shift, and its picture with the loggers."""
        context = trainer.precision_plugin.forward_context
        images = for_model(self.model, torch.cat(self._probes))
        try:
            with plain_tensors():
                if not self._was_flagged:
                    self._origin, self._shown = origin_of_shift(self.model, images, finding, context)
                finding = replace(finding, origin=self._origin)
                if trainer.loggers:
                    shown = images[self._shown[:DRAWN]]
                    panel = picture(self.model, shown, self._layer, finding, context, self.standard)
                    log_panel(trainer.loggers, log_key(stage_of(trainer), self.name), panel, trainer.global_step)
        except Exception as error:  # what was found is not to be lost over it
            told = f"the shift could not be located or drawn. {type(error).__name__}: {error}"
            self.say_once(rank_zero_warn, told)
        return finding

    def _explain(self, finding: Finding) -> None:
        """Say once what is no alarm, and no all-clear either."""
        inspection = finding.inspection
        if finding.verdict is Verdict.CANNOT_TELL:
            reasons = "; ".join(inspection.caveats) or "no figure is defined"
            self.say_once(rank_zero_info, f"the classifier cannot be judged without a reference: {reasons}.")
        if self._checked_at is None and finding.comparison and finding.comparison.verdict is Verdict.CHANGED:
            self.say_once(rank_zero_info, "the classifier is not its reference: another one, or trained further.")

    def _compare_with_checkpoint(self, finding: Finding) -> None:
        saved, self._saved = self._saved, {}
        if not saved.get("digest"):
            return
        differing = Digest(**saved["digest"]).differences(Digest.of(self.model))
        verdict = finding.verdict.name
        if differing:  # the same network may be judged by other images: a verdict alone tells nothing
            rank_zero_warn(
                f"ModelIntegrity: the classifier is not the one that was judged when the checkpoint was written (step "
                f"{saved['step']}): different are its {', '.join(differing)}. Then {saved['verdict']} "
                f"with suspicion {saved['figures']['suspicion']:.3g}, now {verdict} with "
                f"{finding.inspection.suspicion:.3g}."
            )

    def _agree(self, trainer: pl.Trainer) -> dict[str, float]:
        """Tell all ranks what rank zero found, and act; the figures."""
        outcome = trainer.strategy.broadcast(self._outcome or _Outcome())
        self._checked_at = trainer.global_step
        if self.action == "raise" and (outcome.trouble or outcome.alarm):
            raise RuntimeError(f"ModelIntegrity: {outcome.trouble or outcome.alarm}")
        if outcome.trouble:
            self.say_once(rank_zero_warn, f"{outcome.trouble} The run goes on.")
        elif outcome.alarm and callable(self.action):
            if self.finding is not None and trainer.is_global_zero:
                self.action(self.finding)
        elif outcome.alarm and not self._was_flagged:
            rank_zero_warn(f"ModelIntegrity: {outcome.alarm}")
        self._was_flagged = self._was_flagged or outcome.alarm is not None
        return outcome.figures

    def _log(self, trainer: pl.Trainer, figures: dict[str, float]) -> None:
        if trainer.is_global_zero:
            values = {self._key(trainer, name): value for name, value in figures.items()}
            log_figures(trainer.loggers, values, trainer.global_step)

    def _key(self, trainer: pl.Trainer, figure: str) -> str:
        return log_key(stage_of(trainer), self.name, figure)


def _kind(value: object) -> str:
    return f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
