"""The callback that shows the same images explained again and again while the network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_xai.attribution import Attribution
from lightning_xai.baselines import Baseline, black, check_standardized, to_pixels
from lightning_xai.callbacks.base import ExplainingCallback
from lightning_xai.callbacks.batches import Unpack, first_two
from lightning_xai.callbacks.data import class_names_of, is_due, loaders_of, stage_of
from lightning_xai.callbacks.loggers import log_panel
from lightning_xai.callbacks.probes import Probes
from lightning_xai.explain import attribute
from lightning_xai.kinds import require_count, require_kinds
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import Boxes, average_drop, masked_scores
from lightning_xai.scores import log_softmax, predicted, resolve_targets
from lightning_xai.standard import Numbers, Standard
from lightning_xai.trace import Calling, Capture, Trace, logits_of, run
from lightning_xai.types import LogitsOf, Score, Targets
from lightning_xai.visualization import Panel, overlay


@dataclass
class _Followed:
    """What is drawn of one dataloader, epoch after epoch."""

    probes: Probes
    kept: bool = False  # an epoch has ended, and the next ones draw the same images
    panels: list[Panel] = field(default_factory=list)  # of this epoch


class SaliencyMaps(ExplainingCallback):
    """Draws the maps of the first images of each validation or test dataloader, epoch after epoch.

    The images are taken once, as the classifier got them, and kept, so that the eye compares like with like also when
    the dataloader shuffles. Beside each stand its label, the prediction and, for each attribution, the drop: the share
    of the confidence in percent that is lost when only what the map shows is left. Each epoch costs one forward pass of
    these images, a masked one for each attribution, and what the attributions need. Pictures go to every logger of the
    Trainer (W&B, TensorBoard, MLflow, CSV), from rank zero, while training goes on.

    Args:
        attributions: Named methods, or one, which is called by its class.
        mean: Mean by which images were standardised, one number per channel, or what says both (`Standard`); None to
            read them from the transforms of the dataset or the datamodule, which is logged.
        std: Standard deviation by which images were standardised.
        n_images: Number of images to follow on each dataloader.
        every_n_epochs: Epochs of training from one picture to the next, the first included; ``validate`` and
            ``test`` always draw.
        name: Last part of the key, ``val/xai/<name>``; give two callbacks two names.
        baseline: What stands where the map hides the image, for the drop: `black` (the
            papers'), `mean_color` or `blurred`.
        targets: Which class is explained; None for the predicted one.
        class_names: Names of the classes, for captions; None for the dataset's own ``classes``, where it has them all.
        channels: Which channels are drawn, one or three of them; None for all of images that have no other number.
        log_probability: The confidence in captions; ``log_sigmoid`` for one-logit and multi-label heads.
        classifier: Dotted name of the module that takes images and gives logits, ``"self"`` for the LightningModule;
            None to find it.
        unpack: How a batch is taken apart.
        logits_of: Finds the logits in what a named classifier gives: ``lambda output: output["main"]``, say.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no attribution, or a number is less than 1.

    Example:
        >>> from lightning_xai import GradCAM
        >>> SaliencyMaps({"gradcam": GradCAM("layer4")}, mean=(0.5,) * 3, std=(0.5,) * 3).n_images
        8
    """

    def __init__(
        self,
        attributions: Mapping[str, Attribution] | Attribution,
        *,
        mean: Standard | None = None,
        std: Sequence[float] | None = None,
        n_images: int = 8,
        every_n_epochs: int = 1,
        name: str = "maps",
        baseline: Baseline = black,
        targets: Targets = None,
        class_names: Sequence[str] | None = None,
        channels: Sequence[int] | None = None,
        log_probability: Score = log_softmax,
        classifier: str | None = None,
        unpack: Unpack = first_two,
        logits_of: LogitsOf = logits_of,
    ) -> None:
        options: dict[str, Any] = {"classifier": classifier, "unpack": unpack, "logits_of": logits_of}
        super().__init__(attributions, mean=mean, std=std, **options)
        for argument, value in {"n_images": n_images, "every_n_epochs": every_n_epochs}.items():
            require_count(argument, value)
        shown: dict[str, object] = {"name": name, "class_names": class_names, "channels": channels}
        functions: dict[str, object] = {"baseline": baseline, "targets": targets, "log_probability": log_probability}
        require_kinds(SaliencyMaps.__init__, **shown, **functions)
        if channels is not None and len(channels) not in (1, 3):
            raise ValueError(f"`channels` expected one channel or three, got {list(channels)}.")
        self.n_images = n_images
        self.every_n_epochs = every_n_epochs
        self.baseline = baseline
        self.targets = targets
        self.class_names = class_names
        self.channels = channels
        self.log_probability = log_probability
        self.name = name
        self._followed: dict[tuple[str, int], _Followed] = {}
        self._shown_names: Sequence[str] | None = class_names
        self._standard: tuple[Numbers, Numbers] = (), ()

    def names(self) -> set[str]:
        """The last part of the key."""
        return {self.name}

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this is rank zero, somebody looks, and images of this epoch are still to be drawn."""
        if not (trainer.is_global_zero and trainer.loggers and is_due(trainer, self.every_n_epochs)):
            return False
        followed = self._of(trainer, dataloader_idx)
        return not followed.panels if followed.kept else not followed.probes.complete

    def capture(self) -> Capture:
        """Nothing: only the images are wanted from the validation step's forward."""
        return Capture()

    def heard(
        self, trainer: pl.Trainer, trace: Trace, labels: Tensor | None, boxes: Boxes | None, dataloader_idx: int
    ) -> None:
        """Take images until there are enough; draw those just taken, in later epochs all of them."""
        self.compare_scores(labels, self.log_probability)
        followed = self._of(trainer, dataloader_idx)
        self._standard = self.standard(trainer, dataloader_idx)
        classes = trace.logits.shape[1]
        names = class_names_of(loaders_of(trainer)[dataloader_idx])
        self._shown_names = self.class_names or (names if names and len(names) == classes else None)
        if not followed.kept:
            if not followed.probes.images:  # a later batch may hold a single odd image
                check_standardized(trace.images, *self._standard)
                self._check(trace)
            followed.probes.take(trace.images, labels, trace.calling(len(trace.images)))
        device = trace.images.device
        for images, known, calling in followed.probes.batches(0 if followed.kept else -1):
            known = None if known is None else known.to(device)
            followed.panels.append(self._panel(images.to(device), known, calling.to(device)))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: images are followed through one run, since the next one may have other data."""
        super().setup(trainer, pl_module, stage)
        self._followed = {}
        if not trainer.loggers:
            self.say_once(
                rank_zero_info, "nothing is drawn, as the Trainer has no logger: `logger=CSVLogger('logs')`, say."
            )

    def _check(self, trace: Trace) -> None:
        """Whether there is a name for each class, and a picture can be made of the channels."""
        classes, channels = max(trace.logits.shape[1], 2), trace.images.shape[1]
        if self.class_names is not None and len(self.class_names) < classes:
            raise ValueError(
                f"`class_names` expected a name for each of the {classes} classes, got {len(self.class_names)}."
            )
        if channels not in (1, 3) and self.channels is None:
            raise ValueError(
                f"`channels` expected which of the {channels} channels are drawn, `channels=(0, 1, 2)` say, got None: "
                "pictures have one or three."
            )
        if wrong := [one for one in self.channels or () if not 0 <= one < channels]:
            raise ValueError(f"`channels` expected channels of the images, in [0, {channels - 1}], got {wrong}.")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the panels of an epoch that was not finished."""
        for followed in self._followed.values():
            followed.panels.clear()
            if not followed.kept:
                followed.probes = Probes(self.n_images)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand the pictures to the loggers."""
        if trainer.sanity_checking:
            return
        several = len(loaders_of(trainer)) > 1
        for (stage, i), followed in self._followed.items():
            if stage != stage_of(trainer) or not followed.panels:
                continue
            followed.kept = True
            key = str(LogKey(stage, self.name, dataloader_idx=i if several else None))
            log_panel(trainer.loggers, key, _joined(followed.panels), trainer.global_step)
            followed.panels.clear()

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _of(self, trainer: pl.Trainer, dataloader_idx: int) -> _Followed:
        return self._followed.setdefault((stage_of(trainer), dataloader_idx), _Followed(Probes(self.n_images)))

    def _panel(self, images: Tensor, labels: Tensor | None, calling: Calling) -> Panel:
        trace = run(self.model, images, self.full_capture(), calling)
        targets = resolve_targets(self.targets, trace.logits, labels)
        found = predicted(trace.logits)
        pixels = self._pixels(images)
        maps = attribute(trace, targets, self.attributions)
        facts: dict[str, list[Any]] = {}
        if labels is not None and labels.ndim == 1:  # multi-hot labels are no caption
            facts["label"] = self._names(labels)
        facts["prediction"] = self._names(found)
        facts["probability"] = self.log_probability(trace.logits, found).exp().tolist()
        if self.targets is not None:
            facts["explained"] = self._names(targets)
        facts |= {f"{name} drop": self._drops(trace, one, targets).tolist() for name, one in maps.items()}
        return Panel(pixels.cpu(), {name: overlay(pixels, one).cpu() for name, one in maps.items()}, facts)

    def _pixels(self, images: Tensor) -> Tensor:
        if self.channels is None:
            return to_pixels(images, *self._standard)
        mean, std = ([values[one] for one in self.channels] for values in self._standard)
        return to_pixels(images[:, list(self.channels)], mean, std)

    def _drops(self, trace: Trace, maps: Tensor, targets: Tensor) -> Tensor:
        """The drop of each image (N,); NaN where the logits are."""
        behind = self.baseline(trace.images, *self._standard)
        before = self.log_probability(trace.logits.double(), targets)
        after = masked_scores(trace.predict, trace.images, maps, targets, baseline=behind, score=self.log_probability)
        known = ~(before.isnan() | after.isnan())
        drops = torch.full_like(before, torch.nan)
        drops[known] = average_drop(before[known], after[known])
        return drops

    def _names(self, classes: Tensor) -> list[Any]:
        numbers = classes.tolist()
        return [self._shown_names[number] for number in numbers] if self._shown_names else numbers


def _joined(panels: list[Panel]) -> Panel:
    """One panel of several, all pictures in the size of the first."""
    size = panels[0].images.shape[2:]

    def joined(pictures: list[Tensor]) -> Tensor:
        return torch.cat([F.interpolate(one, size) if one.shape[2:] != size else one for one in pictures])

    return Panel(
        joined([panel.images for panel in panels]),
        {name: joined([panel.overlays[name] for panel in panels]) for name in panels[0].overlays},
        {name: [value for panel in panels for value in panel.facts[name]] for name in panels[0].facts},
    )
