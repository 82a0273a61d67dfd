"""The callback that watches whether a classifier's raw logits can be explained, from the first weights on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.base import ListeningCallback
from lightning_xai.callbacks.batches import Unpack, first_two
from lightning_xai.callbacks.data import stage_of, standards_in
from lightning_xai.callbacks.integrity_check import IntegrityCheck, methods_of
from lightning_xai.callbacks.integrity_finding import Finding, changed_since, picture, remark_on
from lightning_xai.callbacks.integrity_run import IntegrityRun, Outcome, Phase, attempt, call_action, is_untrained
from lightning_xai.callbacks.loggers import log_figures, log_panel
from lightning_xai.callbacks.probes import Probes
from lightning_xai.callbacks.processes import own_passes
from lightning_xai.explain import named_attributions
from lightning_xai.integrity import Digest, Fingerprint, OneClassError, Threshold, Verdict, for_model
from lightning_xai.kinds import require_count, require_kinds
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import Boxes
from lightning_xai.standard import Standard, standard_of
from lightning_xai.trace import Calling, Observer, Trace, evaluation_mode, logits_of, own_pass, require_images
from lightning_xai.types import LogitsOf, OneLayer, Tokens


class ModelIntegrity(ListeningCallback):
    """Notices a classifier whose raw-logit maps follow a number that was added to all its logits.

    Such a shift (Lerma and Lucas, 2023, https://arxiv.org/abs/2307.03305) changes no prediction, no loss and no
    training, so that nothing else in a run shows it. The weights that training starts from are checked, then those of
    every n-th validation, and those that go into a checkpoint, by one small batch of probes: the first validation
    images, the sanity check's among them; without any, the first training images.

    Logged as ``val/xai/<name>/<figure>`` (``test/...``): the figures of `inspect_model`, ``suspicion``, ``flagged`` (0
    or 1), and ``reference_<figure>``. A model is flagged when a logit shift is seen, alone or against the reference, or
    a false gradient. Then a picture shows the maps of the raw logit and of the centred score, and from which layer and
    position the shift comes. The last verdict is part of each checkpoint, with digests of the classifier: a run that
    resumes from it, or tests it, tells whether the classifier is still the one that was judged.

    Maps are made as the run's `SaliencyMaps` and `Faithfulness` make them, with their methods and at their layers, in a
    pass of its own (see the table in `lightning_xai.integrity`). Where they differ and no shift is seen, that is said
    once and is no warning: many unaltered networks are so.

    What hinders a check (a reference for other classes, a damaged file, probes of one class) is a warning, and training
    goes on, unless ``action`` is ``"raise"``. Rank zero checks for all. A check costs less than two forward passes of
    the probes at a late layer, with a reference three, and what the methods cost, with three scores; the image adds
    four backward passes. The first flag of a run looks for its origin, once: four sweeps of 8 probes a layer.

    Args:
        layer: Where maps are made: dotted name, module, tokens, or None for the last layer with a spatial output.
        images: Probes (N,C,H,W) as the classifier gets them, some 32 of different classes; None to take them.
        n_images: Number of probes to take.
        every_n_validations: Check at every so many validations of a fit.
        image_level: Whether to look at the gradient of the image too; a method that shows it sees to it.
        attributions: Methods whose maps are looked at too; None for those of the run's callbacks.
        reference: A trusted model, its `Fingerprint`, or the file of one, whose probes are to be the ``images``.
        threshold: From which suspicion on to flag; None for the default.
        action: What a flagged model leads to, at each check: ``"warn"`` (once a run), ``"raise"`` (an error on all
            ranks), or a function, which gets the `Finding` on rank zero.
        mean: Mean of the images or what says both (`Standard`), for the picture; None: as the data say, or guessed.
        std: Standard deviation by which images were standardised.
        name: Part of the keys; give two callbacks two names.
        classifier: Dotted name of the module that takes images and gives logits, ``"self"`` for the LightningModule;
            None to find it.
        unpack: How a batch is taken apart.
        logits_of: Finds the logits in what a named classifier gives: ``lambda output: output["main"]``, say.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is less than 1.

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
        attributions: Mapping[str, Attribution] | Attribution | None = None,
        reference: nn.Module | Fingerprint | str | Path | None = None,
        threshold: Threshold | None = None,
        action: Literal["warn", "raise"] | Callable[[Finding], object] = "warn",
        mean: Standard | None = None,
        std: Sequence[float] | None = None,
        name: str = "integrity",
        classifier: str | None = None,
        unpack: Unpack = first_two,
        logits_of: LogitsOf = logits_of,
    ) -> None:
        super().__init__(classifier=classifier, unpack=unpack, logits_of=logits_of)
        for argument, value in {"n_images": n_images, "every_n_validations": every_n_validations}.items():
            require_count(argument, value)
        if images is not None:
            require_images(images)
        if isinstance(attributions, Attribution):
            attributions = named_attributions(attributions)
        looks: dict[str, object] = {"layer": layer, "image_level": image_level, "threshold": threshold, "name": name}
        require_kinds(ModelIntegrity.__init__, attributions=attributions, reference=reference, action=action, **looks)
        self.layer, self.images, self.n_images = layer, images, n_images
        self.every_n_validations = every_n_validations
        self.image_level, self.attributions = image_level, attributions
        self.reference, self.threshold, self.action = reference, threshold, action
        self._given = None if mean is None and std is None else standard_of(mean, std)
        self.name = name
        self.finding: Finding | None = None
        self._record: dict[str, Any] = {}
        self._saved: dict[str, Any] = {}
        self._run = self._new_run()

    def _new_run(self) -> IntegrityRun:
        given = self.images is not None
        probes = Probes(self.n_images, [] if self.images is None else [self.images], complete=given, one_size=True)
        return IntegrityRun(probes, IntegrityCheck(self.reference, self.image_level, self.threshold))

    @property
    def state_key(self) -> str:
        """Under which checkpoints hold the verdict; differs between two callbacks of this kind."""
        return self._generate_state_key(name=self.name)

    def names(self) -> set[str]:
        """Part of the keys."""
        return {self.name}

    def layers(self) -> Iterable[OneLayer]:
        """The layer at which maps are made."""
        return [self.layer]

    def state_dict(self) -> dict[str, Any]:
        """The last verdict, with digests of the classifier where it was written during a run."""
        return dict(self._record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the verdict of the checkpoint, for the first check to compare with."""
        self._saved = dict(state_dict)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: model and data may be other ones."""
        super().setup(trainer, pl_module, stage)
        self._saved = {}
        self._run = self._new_run()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep neither model nor images beyond the run."""
        super().teardown(trainer, pl_module, stage)
        self._run = self._new_run()

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this is rank zero, and probes are still to be taken."""
        return trainer.is_global_zero and dataloader_idx == 0 and not self._run.probes.complete

    def _attend(self, trainer: pl.Trainer, work: Callable[[], None]) -> None:
        """What hinders the finding of a classifier or of probes is told like what hinders a check."""
        try:
            work()
        except Exception as error:
            self._failure = error

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All ranks were told already."""

    on_test_end = on_validation_end

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Take probes until there are enough."""
        self._run.probes.take(trace.images, calling=trace.calling(len(trace.images)))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide whether this validation is checked."""
        every = self.every_n_validations if trainer.state.fn == "fit" else 1
        self._run.validation_begins(rehearsal=trainer.sanity_checking, every=every)

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
        self._check_if(self._run.phase is Phase.DUE and self._run.probes.complete, trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, and act; there may have been fewer images than wanted."""
        self._run.probes.finish()
        self._check_if(self._run.phase is Phase.DUE, trainer)
        if self._run.phase is Phase.CHECKED:
            values = {self._key(trainer, name): value for name, value in self._agree(trainer).items()}
            # equal on all ranks; Lightning warns where it is not asked to see to it
            pl_module.log_dict(values, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step: check the weights that training starts from."""
        if not self._run.started:
            self._run.started = True
            resumed = self._saved.get("step") == trainer.global_step  # logged when the checkpoint was written
            self._check_if(True, trainer, lambda: self._look_at_first(trainer, pl_module, batch))
            figures = self._agree(trainer)
            if not resumed:
                self._log(trainer, figures)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check what is about to be written, unless it was just validated, and put the verdict beside it."""
        if not self._run.started or trainer.interrupted:
            return  # before the first batch or after the run: the last verdict is in the state already
        if self._run.checked_at != trainer.global_step:
            self._check_if(True, trainer)
            self._log(trainer, self._agree(trainer))
        judged = self._record.get("step") == trainer.global_step  # else the check failed, or this is not rank zero
        with own_passes(trainer, judged):
            if judged:
                self._record["digest"] = asdict(Digest.of(self.model))
                checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Take from the first training batch what no validation has given: probes, and the classifier."""
        probes = self._run.probes
        if not probes.images:
            probes.take(self.unpacked(batch)[0])
        probes.finish()
        if not self.finder.known:
            calling = self._calling(trainer)
            module = self.finder.model if self.classifier is not None else pl_module
            with own_pass(), Observer(module, calling) as observer, evaluation_mode(module), calling.context():
                module(for_model(module, probes.images[0]))
            self.finder.find(observer)

    def _look_at_first(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> Finding:
        if self._failure is not None:
            raise self._failure
        self._prepare(trainer, pl_module, batch)
        return self._look(trainer)

    def _check_if(self, due: bool, trainer: pl.Trainer, look: Callable[[], Finding] | None = None) -> None:
        """On rank zero, if a check is due: look, trace back, compare."""
        here = due and trainer.is_global_zero
        if due:
            self._run.phase, self._run.outcome = Phase.CHECKED, Outcome()
        with own_passes(trainer, here):
            if here:
                self._judge(trainer, look or (lambda: self._look(trainer)))

    def _judge(self, trainer: pl.Trainer, look: Callable[[], Finding]) -> None:
        finding, error = attempt(look)
        if finding is not None:
            self._take(trainer, finding)
        elif isinstance(error, OneClassError) and self.images is None:  # as networks in their first steps are
            if not is_untrained(trainer):
                self.say_once(rank_zero_info, f"nothing can be checked as long as that is so: {error}")
        else:
            self._run.outcome.trouble = f"the classifier could not be checked. {type(error).__name__}: {error}"

    def _look(self, trainer: pl.Trainer) -> Finding:
        if self._failure is not None:
            raise self._failure
        probes, calling = self._probes(trainer)
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        own, layer = self.attributions, self.finder.layer(self.layer)
        methods = methods_of(callbacks, self.model, self.classifier) if own is None else own
        return self._run.check.look(self.model, probes, layer, trainer.global_step, calling, methods)

    def _probes(self, trainer: pl.Trainer) -> tuple[Tensor, Calling]:
        """The probes, and how the classifier is called with them, now."""
        probes, _, calling = self._run.probes.batches()[0]
        device = next((one.device for one in self.model.parameters()), probes.device)
        now = self._calling(trainer)
        return probes, replace(calling.to(device), context=now.context, logits_of=now.logits_of)

    def _take(self, trainer: pl.Trainer, finding: Finding) -> None:
        """Keep a finding, and say what is to be said of it."""
        self._run.outcome = Outcome(finding.figures)
        if finding.flagged:
            located, error = attempt(lambda: self._locate(trainer, finding))
            if error is not None:  # what was found is not to be lost over it
                told = f"the shift could not be located or drawn. {type(error).__name__}: {error}"
                self.say_once(rank_zero_warn, told)
            finding = located or finding
            self._run.outcome.alarm = f"raw-logit maps of the classifier are not to be trusted.\n{finding}"
        self._explain(trainer, finding)
        saved, self._saved = self._saved, {}
        if changed := changed_since(saved, self.model, finding):
            rank_zero_warn(f"ModelIntegrity: {changed}")
        self.finding, self._record = finding, finding.record

    def _locate(self, trainer: pl.Trainer, finding: Finding) -> Finding:
        """The finding with the origin of the shift, and its picture with the loggers."""
        probes, calling = self._probes(trainer)
        finding, shown, calling = self._run.check.traced_back(self.model, probes, finding, calling)
        if trainer.loggers:
            said = self._given or next(iter(standards_in(trainer, 0)), None)
            panel = picture(self.model, shown, self.finder.layer(self.layer), finding, calling, said)
            log_panel(trainer.loggers, str(LogKey(stage_of(trainer), self.name)), panel, trainer.global_step)
        return finding

    def _explain(self, trainer: pl.Trainer, finding: Finding) -> None:
        """Say once what is no alarm, and no all-clear either: many honest networks are so."""
        if (told := remark_on(finding.inspection)) and not is_untrained(trainer):
            self.say_once(rank_zero_info, told)
        if self._run.checked_at is None and finding.comparison and finding.comparison.verdict is Verdict.CHANGED:
            self.say_once(rank_zero_info, "the classifier is not its reference: another one, or trained further.")

    def _agree(self, trainer: pl.Trainer) -> dict[str, float]:
        """Tell all ranks what rank zero found, and act; the figures."""
        error = call_action(self.action, self._run.outcome, self.finding) if trainer.is_global_zero else None
        outcome = trainer.strategy.broadcast(self._run.outcome)
        self._run.checked_at = trainer.global_step
        if outcome.failure:  # the others would wait for rank zero
            raise error or RuntimeError(f"ModelIntegrity: `action` failed in the first process. {outcome.failure}")
        if self.action == "raise" and (outcome.trouble or outcome.alarm):
            raise RuntimeError(f"ModelIntegrity: {outcome.trouble or outcome.alarm}")
        if outcome.trouble:
            self.say_once(rank_zero_warn, f"{outcome.trouble} The run goes on.")
        elif outcome.alarm and self.action == "warn" and not self._run.flagged:
            rank_zero_warn(f"ModelIntegrity: {outcome.alarm}")
        self._run.flagged = self._run.flagged or outcome.alarm is not None
        return outcome.figures

    def _log(self, trainer: pl.Trainer, figures: dict[str, float]) -> None:
        if trainer.is_global_zero:
            values = {self._key(trainer, name): value for name, value in figures.items()}
            log_figures(trainer.loggers, values, trainer.global_step)

    def _key(self, trainer: pl.Trainer, figure: str) -> str:
        return str(LogKey(stage_of(trainer), self.name, figure))
