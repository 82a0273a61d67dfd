"""What the callbacks share: the parts at Lightning's moments, and what a rank is to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.batches import Unpack, check_labels, first_two, is_multi_hot, taken_apart
from lightning_xai.callbacks.classifier import ClassifierFinder
from lightning_xai.callbacks.data import class_names_of, loaders_of, standards_in
from lightning_xai.callbacks.listening import HeardStep, StepListener
from lightning_xai.callbacks.processes import own_passes, require_no_tensor_parallelism, require_whole_parameters
from lightning_xai.explain import capture_for, named_attributions
from lightning_xai.kinds import require_kinds
from lightning_xai.metrics import Boxes
from lightning_xai.scores import log_softmax
from lightning_xai.standard import HOW_TO_SAY, Numbers, Standard, standard_of
from lightning_xai.trace import (
    Calling,
    Capture,
    Postponed,
    Trace,
    logits_of,
    name_of,
    plain_tensors,
    require_logits,
    run,
)
from lightning_xai.types import LogitsOf, OneLayer, Score


def _callback_classes() -> tuple[type, ...]:
    """Both packages ship Lightning with classes of their own, and each checks for its own."""
    try:
        from lightning.pytorch import Callback
    except ImportError:
        return (pl.Callback,)
    return pl.Callback, Callback


if TYPE_CHECKING:
    LightningCallback = pl.Callback
else:
    LightningCallback = type("LightningCallback", _callback_classes(), {"__doc__": "A callback of either package."})


# What was said of each module, by whichever of its callbacks.
_TOLD: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def tell_of(pl_module: nn.Module, told: str) -> None:
    """Say something of a run, once for all its callbacks."""
    if told not in _TOLD.setdefault(pl_module, set()):
        _TOLD[pl_module].add(told)
        rank_zero_info(told)


class ListeningCallback(LightningCallback):
    """Hears the classifier's forward in validation and test batches, at Lightning's moments.

    Subclasses say which layers they ask for (`layers`), which batches they want (`wants`), what the forward must keep
    (`capture`), and what is done with it (`heard`). The sanity check is a rehearsal: they work as ever, so that
    whatever is wrong shows before the first epoch, and leave nothing behind.

    Args:
        classifier: Dotted name of the module that takes images and gives logits; None to find it in the first batch.
        unpack: How a batch is taken apart.
        logits_of: Finds the logits in what the classifier gives.
    """

    def __init__(
        self, *, classifier: str | None = None, unpack: Unpack = first_two, logits_of: LogitsOf = logits_of
    ) -> None:
        super().__init__()
        require_kinds(ListeningCallback.__init__, classifier=classifier, unpack=unpack, logits_of=logits_of)
        self.classifier = classifier
        self.unpack = unpack
        self.logits_of = logits_of
        self.listener = StepListener(ClassifierFinder(classifier, []))
        self._said: set[str] = set()
        self._failure: Exception | None = None

    def layers(self) -> Iterable[OneLayer]:
        """The layers that will be asked for."""
        raise NotImplementedError

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether the next batch of this dataloader is of interest."""
        raise NotImplementedError

    def capture(self) -> Capture:
        """What the validation step's forward must keep: nothing where only the images are wanted."""
        return Capture()

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Work on the trace of one batch; called without gradients and outside inference mode."""
        raise NotImplementedError

    @property
    def finder(self) -> ClassifierFinder:
        """What knows the classifier of this run."""
        return self.listener.finder

    @property
    def model(self) -> nn.Module:
        """The classifier, once it was found."""
        return self.finder.model

    def say_once(self, say: Callable[..., None], message: str) -> None:
        """Inform or warn, the first time."""
        if message not in self._said:
            self._said.add(message)
            say(f"{type(self).__name__}: {message}")

    def names(self) -> set[str]:
        """The names under which this callback logs; those of two callbacks of a kind must differ."""
        raise NotImplementedError

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: the classifier may be another one.

        Raises:
            ValueError: If another callback of this kind logs under the same name: Lightning would log the mean of both.
            RuntimeError: If the strategy spreads the parameters in a way that no rank can gather.
        """
        require_whole_parameters(trainer)
        self._begin()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        others = [one for one in callbacks if type(one) is type(self) and one is not self]
        twice = sorted({name for one in others for name in one.names() & self.names()})
        if twice:
            raise ValueError(
                f"Two callbacks {type(self).__name__} expected to log under different names, got {twice} in both. "
                "Give one of the two other names; controls have names, too."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep no model beyond the run."""
        self._begin()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the classifier as it was."""
        self._begin()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that a named classifier and the layers named in it exist."""
        # Not in `setup`, which comes before the LightningModule's own, where models are made, too.
        require_no_tensor_parallelism(pl_module)
        self.finder.look_up(pl_module)

    on_validation_start = on_fit_start
    on_test_start = on_fit_start

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to listen."""
        if self._failure is not None:
            return
        capture = self.capture if self.finder.known and self.wants(trainer, dataloader_idx) else None
        self.listener.start(pl_module, capture, self._calling(trainer))

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop listening and work on what was heard."""
        step = self.listener.stop()
        wanted = self._failure is None and (step.observer is not None or self.wants(trainer, dataloader_idx))
        with own_passes(trainer, wanted):
            if wanted:
                self._attend(trainer, lambda: self._end(trainer, step, batch, dataloader_idx))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the run on all ranks where one of them failed: the others would wait for it until a timeout.

        Raises:
            RuntimeError: If another rank failed.
        """
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self._failure is not None, all=False):
            raise self._failure or RuntimeError(
                f"{type(self).__name__} failed in another process, whose own message says why; this one ends with it."
            )

    on_test_end = on_validation_end

    def _attend(self, trainer: pl.Trainer, work: Callable[[], None]) -> None:
        """Do what may fail on one rank alone; where there are several, it is told when all have come to the end."""
        try:
            work()
        except Exception as error:
            if trainer.world_size == 1:
                raise
            self._failure = error

    def _end(self, trainer: pl.Trainer, step: HeardStep, batch: Any, dataloader_idx: int) -> None:
        if step.observer is not None:
            self.finder.find(step.observer)
        if self.wants(trainer, dataloader_idx):
            images, labels, boxes = self.unpacked(batch)
            with plain_tensors():
                trace = step.trace(len(images)) or self._own_trace(trainer, images, step)
                require_logits(trace)
                check_labels(labels, trace.logits, self.model)
                self._tell_of(trainer.lightning_module, trace.logits, loaders_of(trainer)[dataloader_idx])
                self.heard(trainer, trace, labels, boxes, dataloader_idx)

    def unpacked(self, batch: Any) -> tuple[Tensor, Tensor | None, Boxes | None]:
        """Images, labels and boxes of a batch."""
        return taken_apart(batch, self.unpack, lambda told: self.say_once(rank_zero_info, told))

    def _tell_of(self, pl_module: nn.Module, logits: Tensor, loader: Any) -> None:
        """Say which module is explained: numbers that are no class logits look like them."""
        told = f"{name_of(pl_module, self.model)!r} ({type(self.model).__name__}), {logits.shape[1]} classes"
        tell_of(pl_module, f"The classifier that is explained: {told}. `classifier=` names another module.")
        names = class_names_of(loader)
        if names and len(names) != max(logits.shape[1], 2):
            self.say_once(
                rank_zero_warn,
                f"the classifier that is explained, {told}, expected one number for each of the {len(names)} classes "
                "of the dataset. If these are features, name the module that makes logits of them, `classifier='self'` "
                "say, or wrap both in one.",
            )

    def _own_trace(self, trainer: pl.Trainer, images: Tensor, step: HeardStep) -> Trace:
        calling, logits = self._calling(trainer), None
        if step.observer is not None:  # nobody could have listened yet; the step may have changed the batch's images
            given, calling = step.images_of(self.model), step.observer.calling_of(self.model)
            if given is not None and len(given) == len(images):
                images, logits = given, step.observer.logits_of(self.model)
        else:
            self.say_once(
                rank_zero_info,
                "the validation step was not heard calling the classifier on the batch's images; it is run once more "
                "for the explanations. To save that pass, call the module itself in the step.",
            )
        if not images.is_floating_point():
            raise TypeError(
                "`unpack` expected to give images as the classifier gets them, since it is run on them, got "
                f"{images.dtype}. Do what the step does: `unpack=lambda batch: (batch[0] / 255, batch[1])`, say."
            )
        capture = self.capture()
        if logits is not None and not capture.needs_graph and self.logits_of is logits_of:
            return Postponed(self.model, images, capture, calling, logits=logits)
        return run(self.model, images, capture, calling)

    def _calling(self, trainer: pl.Trainer) -> Calling:
        return Calling(logits_of=self.logits_of, context=trainer.precision_plugin.forward_context)

    def _begin(self) -> None:
        self._failure = None
        self.listener.stop()
        self.listener = StepListener(ClassifierFinder(self.classifier, self.layers()))


class ExplainingCallback(ListeningCallback):
    """Hears the classifier for the sake of named methods.

    Args:
        attributions: Named methods, or one, which is called by its class.
        mean: Mean by which images were standardised, or what says both; None to read it from the data.
        std: Standard deviation by which they were.
        options: ``classifier``, ``unpack`` and ``logits_of`` of a `ListeningCallback`.

    Raises:
        TypeError: If ``attributions`` holds anything else.
        ValueError: If it is empty.
    """

    def __init__(
        self,
        attributions: Mapping[str, Attribution] | Attribution,
        *,
        mean: Standard | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.attributions = named_attributions(attributions)
        self._given = None if mean is None and std is None else standard_of(mean, std)

    def layers(self) -> Iterable[OneLayer]:
        """The layers that the methods ask for."""
        return [layer for method in self.attributions.values() for layer in method.layers()]

    def explanations(self) -> dict[str, Attribution]:
        """The methods whose maps are believed: not the controls."""
        return self.attributions

    def capture(self) -> Capture:
        """All that the methods need."""
        return self.full_capture()

    def compare_scores(self, labels: Tensor | None, log_probability: Score) -> None:
        """Say once where the confidence is that of a softmax, and the labels are those of sigmoids."""
        if log_probability is log_softmax and is_multi_hot(labels):
            self.say_once(
                rank_zero_warn,
                "labels mark several classes of an image, or none, while the confidence is that of a softmax. Pass "
                "`log_probability=log_sigmoid`, and `score=sigmoid` or `pre_softmax` to the methods.",
            )

    def standard(self, trainer: pl.Trainer, dataloader_idx: int) -> tuple[Numbers, Numbers]:
        """Mean and deviation by which the images of a dataloader are standardised: given, or as the data say.

        Raises:
            ValueError: If the data do not say, or say several.
        """
        if self._given is not None:
            return self._given
        found = standards_in(trainer, dataloader_idx)
        dataset = type(getattr(loaders_of(trainer)[dataloader_idx], "dataset", None)).__name__
        if len(found) != 1:
            raise ValueError(
                f"`mean` expected by what the images were standardised, since the data say {len(found) or 'no'} mean "
                f"and std (dataset {dataset}, its transforms, the datamodule). {HOW_TO_SAY}"
            )
        told = "Images are standardised by mean {} and std {}, as the transforms of {} say."
        tell_of(trainer.lightning_module, told.format(*(one := found.pop()), dataset))
        return one

    def full_capture(self) -> Capture:
        """What a forward must keep for all attributions."""
        return capture_for(self.model, self.attributions.values(), self.finder.automatic)
