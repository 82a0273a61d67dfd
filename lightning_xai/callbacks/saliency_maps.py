"""The callback that shows the same images explained again and again while the network trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_xai.attribution import Attribution
from lightning_xai.baselines import Baseline, black, check_standardized, to_pixels
from lightning_xai.callbacks.base import ExplainingCallback, Unpack, first_two, loaders_of, stage_of
from lightning_xai.callbacks.loggers import log_panel
from lightning_xai.callbacks.probes import Probes
from lightning_xai.explain import attribute
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import Boxes, average_drop, masked_scores
from lightning_xai.scores import log_softmax, predicted, resolve_targets
from lightning_xai.trace import Capture, Trace, run
from lightning_xai.types import Score, Targets
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
    Trainer (W&B, TensorBoard, MLflow, CSV), from rank zero, beside the training.

    Args:
        attributions: Named methods.
        mean: Mean by which images were standardised, one number per channel.
        std: Standard deviation by which images were standardised.
        n_images: Number of images to follow on each dataloader.
        name: Last part of the key, ``val/xai/<name>``; give two callbacks two names.
        baseline: What stands where the map hides the image, for the drop: `black` (the
            papers'), `mean_color` or `blurred`.
        targets: Which class is explained; None for the predicted one.
        class_names: Names of the classes, for captions.
        log_probability: The confidence in captions; ``log_sigmoid`` for one-logit and multi-label heads.
        classifier: Dotted name of the module that takes images and gives logits; None to find it.
        unpack: How a batch is taken apart.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no attribution, or ``n_images`` is less than 1.

    Example:
        >>> from lightning_xai import GradCAM
        >>> SaliencyMaps({"gradcam": GradCAM("layer4")}, mean=(0.5,) * 3, std=(0.5,) * 3).n_images
        8
    """

    def __init__(
        self,
        attributions: Mapping[str, Attribution],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        n_images: int = 8,
        name: str = "maps",
        baseline: Baseline = black,
        targets: Targets = None,
        class_names: Sequence[str] | None = None,
        log_probability: Score = log_softmax,
        classifier: str | None = None,
        unpack: Unpack = first_two,
    ) -> None:
        super().__init__(attributions, classifier=classifier, unpack=unpack)
        if n_images < 1:
            raise ValueError(f"`n_images` expected 1 or more, got {n_images}.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.n_images = n_images
        self.baseline = baseline
        self.targets = targets
        self.class_names = class_names
        self.log_probability = log_probability
        self.name = name
        self._followed: dict[tuple[str, int], _Followed] = {}

    def names(self) -> set[str]:
        """The last part of the key."""
        return {self.name}

    def wants(self, trainer: pl.Trainer, dataloader_idx: int) -> bool:
        """Whether this is rank zero, somebody looks, and images of this epoch are still to be drawn."""
        if not (trainer.is_global_zero and trainer.loggers):
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
        followed = self._of(trainer, dataloader_idx)
        probes = followed.probes
        if not followed.kept:
            if not probes.images:  # a later batch may hold a single odd image
                check_standardized(trace.images, self.mean, self.std)
            captions = labels if labels is not None and labels.ndim == 1 else None  # multi-hot labels are none
            probes.take(trace.images, captions)
        first = 0 if followed.kept else -1
        images = torch.cat(probes.images[first:]).to(trace.images.device)
        known = torch.cat(probes.labels[first:]).to(images.device) if probes.labels else None
        followed.panels.append(self._panel(trainer, images, known))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew: images are followed through one run, since the next one may have other data."""
        super().setup(trainer, pl_module, stage)
        self._followed = {}

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

    def _panel(self, trainer: pl.Trainer, images: Tensor, labels: Tensor | None) -> Panel:
        trace = run(self.model, images, self.full_capture(), trainer.precision_plugin.forward_context)
        targets = resolve_targets(self.targets, trace.logits, labels)
        found = predicted(trace.logits)
        pixels = to_pixels(images, self.mean, self.std)
        maps = attribute(trace, targets, self.attributions)
        facts: dict[str, list[Any]] = {"label": self._names(labels)} if labels is not None else {}
        facts["prediction"] = self._names(found)
        facts["probability"] = self.log_probability(trace.logits, found).exp().tolist()
        if self.targets is not None:
            facts["explained"] = self._names(targets)
        facts |= {f"{name} drop": self._drops(trace, one, targets).tolist() for name, one in maps.items()}
        return Panel(pixels.cpu(), {name: overlay(pixels, one).cpu() for name, one in maps.items()}, facts)

    def _drops(self, trace: Trace, maps: Tensor, targets: Tensor) -> Tensor:
        """The drop of each image (N,); NaN where the logits are."""
        behind = self.baseline(trace.images, self.mean, self.std)
        before = self.log_probability(trace.logits.double(), targets)
        after = masked_scores(trace.predict, trace.images, maps, targets, baseline=behind, score=self.log_probability)
        known = ~(before.isnan() | after.isnan())
        drops = torch.full_like(before, torch.nan)
        drops[known] = average_drop(before[known], after[known])
        return drops

    def _names(self, classes: Tensor) -> list[Any]:
        numbers = classes.tolist()
        return [self.class_names[number] for number in numbers] if self.class_names else numbers


def _joined(panels: list[Panel]) -> Panel:
    names = panels[0].overlays
    return Panel(
        torch.cat([panel.images for panel in panels]),
        {name: torch.cat([panel.overlays[name] for panel in panels]) for name in names},
        {name: [value for panel in panels for value in panel.facts[name]] for name in panels[0].facts},
    )
