"""What the explaining callbacks share: finding the classifier, hearing its forward, taking this rank's share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_xai.attribution import Attribution
from lightning_xai.callbacks.loggers import wait_for_panels
from lightning_xai.explain import capture_for, named_attributions
from lightning_xai.metrics import Boxes
from lightning_xai.trace import Capture, Listener, Observer, Trace, find_layer, plain_tensors, run

Unpack: TypeAlias = Callable[[Any], Sequence[Any]]
"""How a batch is taken apart: ``batch -> (images (N,C,H,W), labels (N,) or None)``, and boxes where there are any."""


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


def first_two(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a batch that is a sequence: its first two items.

    Args:
        batch: What the dataloader gives.

    Returns:
        Images and labels.

    Raises:
        TypeError: If the batch is no sequence.

    Example:
        >>> import torch
        >>> first_two([torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])])[1]
        tensor([0, 1])
    """
    if isinstance(batch, Tensor):
        return batch, None
    if not isinstance(batch, (list, tuple)) or not batch:
        raise TypeError(
            f"The batch expected to be a sequence (images, labels, ...), got {type(batch).__name__}. "
            "Say how to take it apart: `unpack=lambda batch: (batch['image'], batch['label'])`, say."
        )
    return batch[0], batch[1] if len(batch) > 1 else None


def share_of(total: int, rank: int, world_size: int) -> int:
    """How many of the first ``total`` items fall to a rank when they are dealt out in turn.

    Args:
        total: Number of items.
        rank: The rank.
        world_size: Number of ranks.

    Returns:
        The number.

    Example:
        >>> [share_of(5, rank, 2) for rank in range(2)]
        [3, 2]
    """
    return max(0, (total - rank + world_size - 1) // world_size)


class ExplainingCallback(LightningCallback):
    """Hears the classifier's forward in validation and test batches, and hands over the trace.

    Subclasses say which batches they want (`wants`), what the forward must keep (`capture`), and what is
    done with it (`heard`). The sanity check is a rehearsal: they work as ever, so that whatever is wrong shows
    before the first epoch, and leave nothing behind.

    Args:
        attributions: Named methods.
        classifier: Dotted name of the module that takes images and gives logits; None to find it in the first batch.
        unpack: How a batch is taken apart.

    Raises:
        TypeError: If ``attributions`` holds anything else.
        ValueError: If it is empty.
    """

    def __init__(
        self, attributions: Mapping[str, Attribution], *, classifier: str | None = None, unpack: Unpack = first_two
    ) -> None:
        super().__init__()
        self.attributions = named_attributions(attributions)
        self.classifier = classifier
        self.unpack = unpack
        self._model: nn.Module | None = None
        self._automatic: nn.Module | None = None
        self._observer: Observer | None = None
        self._listener: Listener | None = None
        self._said: set[str] = set()

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether the next batch of this dataloader is of interest."""
        raise NotImplementedError

    def capture(self) -> Capture:
        """What the validation step's forward must keep."""
        return self.full_capture()

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Work on the trace of one batch; called without gradients and outside inference mode."""
        raise NotImplementedError

    @property
    def model(self) -> nn.Module:
        """The classifier, once it was found."""
        if self._model is None:
            raise RuntimeError("The classifier is known only from the first validation or test batch on.")
        return self._model

    def full_capture(self) -> Capture:
        """What a forward must keep for all attributions."""
        return capture_for(self.model, self.attributions.values(), self._automatic)

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
        """
        self._forget()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        others = [one for one in callbacks if type(one) is type(self) and one is not self]
        twice = sorted({name for one in others for name in one.names() & self.names()})
        if twice:
            raise ValueError(
                f"Two callbacks {type(self).__name__} expected to log under different names, got {twice} in both. "
                "Give one of the two other names; controls have names, too."
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep no model beyond the run, and end none before its pictures are stored."""
        self._forget()
        wait_for_panels(trainer.loggers)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the classifier as it was; what was drawn is stored."""
        self._forget()
        wait_for_panels(trainer.loggers)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that a named classifier and the layers named in it exist."""
        self._look_up(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that a named classifier and the layers named in it exist."""
        self._look_up(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that a named classifier and the layers named in it exist."""
        self._look_up(pl_module)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to listen."""
        self._start(trainer, pl_module, dataloader_idx)

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
        self._end(trainer, batch, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def _look_up(self, pl_module: pl.LightningModule) -> None:
        # Not in `setup`, which comes before the LightningModule's own, where models are made, too.
        if self.classifier is not None:
            named = find_layer(pl_module, self.classifier, argument="classifier")
            self._model = getattr(named, "_orig_mod", named)  # what torch.compile wraps: layers keep their names
            capture_for(self._model, self.attributions.values(), automatic=self._model)

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, dataloader_idx: int) -> None:
        self._close()
        if not self._found():
            self._observer = Observer(pl_module).__enter__()
        elif self.wants(trainer, dataloader_idx):
            self._listener = Listener(self.model, self.capture(), trainer.precision_plugin.forward_context).__enter__()

    def _end(self, trainer: pl.Trainer, batch: Any, dataloader_idx: int) -> None:
        observer, listener = self._observer, self._listener
        self._close()
        if observer is not None:
            self._find(observer)
        if self.wants(trainer, dataloader_idx):
            images, labels, boxes = self._unpacked(batch)
            with plain_tensors():
                trace = self._shared_trace(listener, len(images)) or self._own_trace(trainer, images, observer)
                self.heard(trainer, trace, labels, boxes, dataloader_idx)

    def _find(self, observer: Observer) -> None:
        self._model = self._model or observer.classifier()
        if self._needs_automatic():
            self._automatic = observer.last_spatial(self.model)
        self.full_capture()  # raises where a layer does not exist

    def _unpacked(self, batch: Any) -> tuple[Tensor, Tensor | None, Boxes | None]:
        images, labels, boxes = (*self.unpack(batch), None)[:3]
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"`unpack` expected to give images (N, C, H, W) and labels, got images of {found}.")
        return images, labels, boxes

    def _shared_trace(self, listener: Listener | None, n_images: int) -> Trace | None:
        """The trace of the validation step's own pass, of its first one if there were several."""
        if listener is None:
            return None
        usable = (one for one in listener.traces if one.has_graph or not listener.capture.needs_graph)
        return next((one for one in usable if len(one.images) == n_images), None)

    def _own_trace(self, trainer: pl.Trainer, images: Tensor, observer: Observer | None) -> Trace:
        if observer is not None:  # nobody could have listened yet; the step may have changed the batch's images
            given = observer.images_of(self.model)
            images = images if given is None or len(given) != len(images) else given
        else:
            self.say_once(
                rank_zero_info,
                "the validation step was not heard calling the classifier on the batch's images; it is run once more "
                "for the explanations. To save that pass, call the module itself in the step.",
            )
        return run(self.model, images, self.capture(), trainer.precision_plugin.forward_context)

    def _needs_automatic(self) -> bool:
        return any(layer is None for method in self.attributions.values() for layer in method.layers())

    def _found(self) -> bool:
        return self._model is not None and (self._automatic is not None or not self._needs_automatic())

    def _close(self) -> None:
        for context in (self._observer, self._listener):
            if context is not None:
                context.__exit__(None, None, None)
        self._observer = self._listener = None

    def _forget(self) -> None:
        self._close()
        self._model = self._automatic = None


def stage_of(trainer: pl.Trainer) -> str:
    """The first part of log keys: ``test`` while testing, else ``val``."""
    return "test" if trainer.testing else "val"


def loaders_of(trainer: pl.Trainer) -> list[Any]:
    """The dataloaders of the running validation or test loop."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def images_of_rank(trainer: pl.Trainer, loader: Any, n_images: int | None) -> int | None:
    """How many images of a dataloader this rank is to use, so that no image counts twice and ``n_images`` is global.

    A ``DistributedSampler`` repeats images to give every rank equally many; the copies come last and are left out.

    Args:
        trainer: The trainer.
        loader: One of its dataloaders.
        n_images: Number of images over all ranks; None for all.

    Returns:
        The number of images from the start; None for all.
    """
    sampler = getattr(loader, "sampler", None) if isinstance(loader, DataLoader) else None
    if isinstance(sampler, DistributedSampler):
        length = len(sampler.dataset)  # type: ignore[arg-type]
        n_images = length if n_images is None else min(n_images, length)
        return share_of(n_images, sampler.rank, sampler.num_replicas)
    return None if n_images is None else share_of(n_images, trainer.global_rank, trainer.world_size)
