"""Many attribution methods x many metrics on one classifier, beside controls that know nothing of it.

    python recipes/method_table.py                                    # planted evidence, where the truth is known
    python recipes/method_table.py --data DIR --boxed DIR2 --model resnet50 --pretrained
    python recipes/method_table.py --data DIR --metrics confidence --confidence-images 500

Data: nothing (images whose evidence is planted, and a network trained on them here), or a folder ``val/<class>/*`` as
of ImageNet, and for localisation a folder with ``boxes.csv`` and ``label_to_imagenet.csv`` (see common/data/boxed.py).
Output: tables on the screen, and a run folder with ``report.html``, ``results.json`` (the value of every image),
``curves.png``, ``relative_performance.png`` and ``randomization.png``. Numbers in brackets are a bootstrap 95 %
interval over images; the best have a star, and a metric that a control wins is said to be won by it. An interrupted run
goes on with ``--resume``: each group of metrics is kept once it is done.

Time of one core: 80 s without data; on photographs of 224 pixels some 7 minutes for each network with the numbers of
images below. ROAD is off there: 2 to 10 s for each map. Memory: 3 GB.
What came out on photographs: ``papers/README.md``.

Options of SqueezeNet: ``--model torchvision:squeezenet1_1 --layer features.12 --weights FILE``; of MobileNet: ``--model
timm.models.efficientnet:_gen_mobilenet_v1 --model-options variant=mobilenetv1_100 channel_multiplier=0.75 pad_type=same
bn_eps=1e-3 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --weights FILE``.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

import lightning_xai as xai
from common.data.planted import CLASSES
from common.method_report import Found, draw, drawable, summary, tables
from common.options import DataOptions, ModelOptions, RunOptions, option, parsed
from common.planted_network import STANDARD, fitted, small_network
from common.run import Run
from common.subject import Boxed, Subject, boxed, given, planted
from common.training import Validated, bare_trainer
from lightning_xai import attribution, metrics
from lightning_xai.log_keys import LogKey
from lightning_xai.report import Results

Layer = str | None
Standard = dict[str, Any]

# Methods that average over passes take few of them here: --passes.
METHODS: dict[str, Callable[[Layer, Standard, int], xai.Attribution]] = {
    "gradcam": lambda layer, standard, passes: xai.GradCAM(layer),
    "gradcam_plus": lambda layer, standard, passes: xai.GradCAMPlus(layer),
    "gradcam_plus_plus": lambda layer, standard, passes: xai.GradCAMPlusPlus(layer),
    "smooth_gradcam_plus_plus": lambda layer, standard, passes: attribution.SmoothGradCAMPlusPlus(
        layer, n_samples=passes
    ),
    "xgradcam": lambda layer, standard, passes: attribution.XGradCAM(layer),
    "hirescam": lambda layer, standard, passes: attribution.HiResCAM(layer),
    "layercam": lambda layer, standard, passes: attribution.LayerCAM(layer),
    "rsi_gradcam": lambda layer, standard, passes: attribution.RSIGradCAM(layer, n_steps=passes, **standard),
    "scorecam": lambda layer, standard, passes: attribution.ScoreCAM(layer),
    "guided_gradcam": lambda layer, standard, passes: attribution.GuidedGradCAM(layer),
    "input_gradient": lambda layer, standard, passes: xai.InputGradient(),
    "input_x_gradient": lambda layer, standard, passes: attribution.InputXGradient(),
    "guided_gradient": lambda layer, standard, passes: xai.GuidedGradient(),
    "smoothgrad": lambda layer, standard, passes: attribution.SmoothGrad(n_samples=passes),
    "integrated_gradients": lambda layer, standard, passes: attribution.IntegratedGradients(n_steps=passes, **standard),
    "deeplift": lambda layer, standard, passes: attribution.DeepLIFT(**standard),
    "lrp": lambda layer, standard, passes: attribution.LRP(),
    "clrp": lambda layer, standard, passes: attribution.CLRP(),
    "sglrp": lambda layer, standard, passes: attribution.SGLRP(),
}
DEAR = {"scorecam", "smooth_gradcam_plus_plus"}
"""Left out unless asked for: hundreds of forward passes, and a second method of many passes to a layer."""
CONTROLS: dict[str, xai.Attribution] = {
    "random": xai.attribution.Random(),
    "gaussian": xai.attribution.CenteredGaussian(),
    "edges": attribution.Edges(),
    "fake_cam": xai.attribution.FakeCAM(),
}
SHUFFLED = "shuffled"
"""The map of the first method with its pixels in random order: the control of what its values alone win."""

METRICS: dict[str, Callable[[Sequence[str], int], list[metrics.ExplanationMetric]]] = {
    "confidence": lambda names, side: [
        metrics.AverageDrop(keep_values=True),
        metrics.AverageIncrease(keep_values=True),
        metrics.AverageGain(keep_values=True),
        metrics.AbsoluteDrop(keep_values=True),
        metrics.RelativePerformance(names, keep_values=True),
    ],
    "perturbation": lambda names, side: [
        metrics.Insertion(steps=10, keep_values=True),
        metrics.Deletion(steps=10, keep_values=True),
        metrics.MaximalPatchMasking(keep_values=True),
        metrics.Infidelity(n_samples=5, normalize=True, keep_values=True),
    ],
    "stability": lambda names, side: [
        metrics.ADCC(keep_values=True),
        metrics.MaxSensitivity(n_samples=2, keep_values=True),
        metrics.ClassSensitivity(keep_values=True),
        metrics.GridPointingGame(confidence=0.5, keep_values=True),
    ],
    "road": lambda names, side: [metrics.ROAD(keep_values=True)],
    "boxes": lambda names, side: [
        metrics.PointingGame(tolerance=round(15 * side / 224), keep_values=True),
        metrics.EnergyInBox(keep_values=True),
        metrics.EnergyPointingAccuracy(keep_values=True),
    ],
}
IMAGES: dict[str, dict[str, int]] = {
    "planted": {"confidence": 128, "perturbation": 32, "stability": 32, "road": 16, "boxes": 128, "randomization": 16},
    # what fits into 8 minutes of a CPU core
    "photographs": {"confidence": 40, "perturbation": 6, "stability": 8, "road": 0, "boxes": 40, "randomization": 4},
}


IMAGES_OF = "images for the metrics of {}; 0: leave out; default: what fits into minutes"


@dataclass(frozen=True)
class Counts:
    """Images."""

    confidence_images: int | None = option(None, IMAGES_OF.format("confidence"))
    perturbation_images: int | None = option(None, IMAGES_OF.format("perturbation"))
    stability_images: int | None = option(None, IMAGES_OF.format("stability"))
    road_images: int | None = option(None, IMAGES_OF.format("road"))
    boxes_images: int | None = option(None, IMAGES_OF.format("boxes"))
    randomization_images: int | None = option(None, IMAGES_OF.format("randomization"))


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    data: DataOptions = DataOptions(batch_size=8)
    model: ModelOptions = ModelOptions("resnet50")
    run: RunOptions = RunOptions(Path("runs/method_table"))
    images: Counts = Counts()
    boxed: Path | None = option(None, "folder with boxes.csv and label_to_imagenet.csv")
    methods: tuple[str, ...] = option(
        tuple(one for one in METHODS if one not in DEAR), "all but the dearest two", choices=METHODS, nargs="+"
    )
    passes: int = option(5, "of the methods that average over passes")
    layers: int = option(4, "blocks that are randomised, from the last to the first")
    metrics: tuple[str, ...] = option(tuple(IMAGES["planted"]), "groups of them", choices=IMAGES["planted"], nargs="+")
    accelerator: str = option("auto", "as of the Trainer")
    progress: bool = option(False, "show the Trainer's progress")

    @property
    def counts(self) -> dict[str, int]:
        """Images of each group of metrics: those asked for, else what is usual; none without boxes."""
        photographs = self.data.data is not None
        found = {}
        for group, usual in IMAGES["photographs" if photographs else "planted"].items():
            asked = getattr(self.images, f"{group}_images")
            left_out = group not in self.metrics or (group == "boxes" and photographs and not self.boxed)
            count = 0 if left_out else usual if asked is None else asked
            found[group] = min(count, 2) if self.run.fast_dev_run else count
        return found


class Experiment:
    """The measurements of one classifier: a network trained here, or one on the photographs of folders."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.counts = settings, settings.counts
        prepared = self._photographs if settings.data.data else self._planted
        self.subject, self.photographs, self.boxed = prepared()
        layer, standard = settings.model.layer, self.subject.standard
        self.methods = {name: METHODS[name](layer, standard, settings.passes) for name in settings.methods}
        self.controls = {**CONTROLS, SHUFFLED: attribution.Shuffled(next(iter(self.methods.values())))}

    def _planted(self) -> tuple[Subject, DataLoader[Any], Boxed]:
        """A small network, and images of which it is known what decides their class."""
        run, n = self.settings.run, max(1, *self.counts.values())
        pl.seed_everything(run.seed, verbose=False)
        network, training = small_network(), planted(128 if run.fast_dev_run else 2048, run.seed)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        fitted(network, training.images, training.labels, optimizer, epochs=6, batch_size=64)
        found = TensorDataset(*planted(n, run.seed + 1))
        subject = Subject(network, *STANDARD, CLASSES, name="A small network trained on planted evidence")
        return subject, self._loader(found), Boxed(found, xai.scores.label)

    def _photographs(self) -> tuple[Subject, DataLoader[Any], Boxed | None]:
        data, folder = self.settings.data, self.settings.boxed
        subject, loaders = given(data, self.settings.model, seed=self.settings.run.seed)
        return subject, loaders.val_dataloader(), boxed(folder, data, subject) if folder else None

    def _loader(self, images: Any) -> DataLoader[Any]:
        return DataLoader(images, batch_size=self.settings.data.batch_size)

    def group(self, name: str) -> dict[str, Any]:
        """All that is kept of a group of metrics."""
        begun = time.monotonic()
        found = self.randomized() if name == "randomization" else self.measured(name)
        return {
            "columns": summary({name: found}, list(self.controls), self.settings.run.seed),
            "constant_maps": dict(found.constant_maps),
            "drawn": drawable(name, found),
            "seconds": round(time.monotonic() - begun, 1),
        }

    def measured(self, group: str) -> Found:
        """The metrics of one group, by method, after a validation epoch."""
        on = self.boxed if group == "boxes" else None
        loader = self._loader(on.items) if on else self.photographs
        side = self.settings.data.image_size if self.settings.data.data else 40
        faithfulness = xai.Faithfulness(
            self.methods,
            METRICS[group]([*self.methods, *self.controls], side),
            controls=self.controls,
            control_images=None,
            n_images=self.counts[group],
            targets=on.targets if on else None,
            unpack=(lambda batch: batch[:3]) if on else (lambda batch: batch[:2]),
            **self.subject.standard,
        )
        trainer = bare_trainer(
            accelerator=self.settings.accelerator,
            devices=1,  # images are few, and no sampler is put in the place of ours
            enable_progress_bar=self.settings.progress,
            callbacks=[faithfulness],
            limit_val_batches=-(-self.counts[group] // self.settings.data.batch_size),
        )
        trainer.validate(Validated(self.subject.network), loader, verbose=False)
        logged = {name: str(LogKey("val", name, metrics.ConstantMaps.__name__)) for name in faithfulness.names()}
        constant = {name: trainer.callback_metrics[key].item() for name, key in logged.items()}
        return Found(faithfulness.states[0], faithfulness.shared_states[0], constant)

    def randomized(self) -> Found:
        """Similarity of each method's maps with those of a network whose layers were randomised from the top."""
        wanted, network, methods = self.counts["randomization"], self.subject.network, self.methods | self.controls
        batches = islice(self.photographs, -(-wanted // self.settings.data.batch_size))
        images = torch.cat([batch[0] for batch in batches])[:wanted]
        with torch.no_grad():
            targets = network(images).argmax(1)

        def explained(model: nn.Module) -> Tensor:  # one after the other: methods share passes and the copies
            return torch.cat(list(xai.explain(model, images, targets, attributions=methods).values()))

        layers = blocks(network)
        steps = torch.linspace(0, len(layers) - 1, min(self.settings.layers, len(layers))).tolist()
        names, similarities = metrics.parameter_randomization(
            network, explained, layers=[layers[round(i)] for i in steps]
        )
        found: dict[str, dict[str, Metric]] = {}
        for name, values in zip(methods, similarities.chunk(len(methods)), strict=True):
            # a map that is reversed under one layer must not make up for one that stays under another
            states = {"ParameterRandomization": values, "similarity": values.clamp(min=0)}
            found[name] = {key: metrics.ParameterRandomization(names, keep_values=True) for key in states}
            for metric, similar in zip(found[name].values(), states.values(), strict=True):
                metric.update(similar)
                metric.compute()
        return Found(found)


def blocks(network: nn.Module) -> list[str]:
    """The parts of a network, last ones first: names of two components, such as ``features.12`` or ``layer4.1``.

    Example:
        >>> blocks(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), nn.Linear(4, 2)))
        ['1', '0.1', '0.0']
    """
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in metrics.randomizable_layers(network)))


ANYTIME = ("accelerator", "progress", "workers")
"""Options that may change when a run is resumed."""


def main(argv: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    settings = parsed(Settings, __doc__, argv)
    run, experiment = Run(settings.run, settings, free=ANYTIME), Experiment(settings)
    groups: dict[str, dict[str, Any]] = {}
    for group, count in experiment.counts.items():
        if count:
            groups[group] = run.part(group, partial(experiment.group, group))
            print(f"{group}: {count} images, {groups[group]['seconds']:.0f} s", flush=True)
    return reported(experiment, run, groups)


def reported(experiment: Experiment, run: Run, groups: dict[str, dict[str, Any]]) -> Results:
    """Tables, figures and ``results.json``."""
    controls = list(experiment.controls)
    columns = [column for one in groups.values() for column in one["columns"]]
    values = {
        "columns": columns,
        "constant_maps": {group: one["constant_maps"] for group, one in groups.items()},
        "images": experiment.counts,
        "seconds_by_group": {group: one["seconds"] for group, one in groups.items()},
    }
    text = (
        f"{experiment.subject.name}: {len(experiment.methods)} methods "
        f"beside {len(controls)} controls that know nothing of it. Numbers of one network, intervals over images."
    )
    pictures = draw([one["drawn"] for one in groups.values()], controls, run.folder)
    return run.finish("Methods and metrics", text, tables(columns, controls), pictures, values)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each group of metrics has its own Trainer
    main()
