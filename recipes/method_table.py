"""Many attribution methods x many metrics on one classifier, beside controls that know nothing of it.

    python recipes/method_table.py                                    # planted evidence, where the truth is known
    python recipes/method_table.py --data DIR --boxed DIR2 --model resnet50 --pretrained
    python recipes/method_table.py --data DIR --metrics confidence --confidence-images 500

Data: nothing (images whose evidence is planted, and a network trained on them here), or a folder ``val/<class>/*`` as
of ImageNet, and for localisation a folder with ``boxes.csv`` and ``label_to_imagenet.csv`` (see boxed_images.py).
Output: tables on the screen, and a run folder with ``report.html``, ``results.json`` (the value of every image),
``curves.png``, ``relative_performance.png`` and ``randomization.png``. Numbers in brackets are a bootstrap 95 %
interval over images; the best have a star, and a metric that a control wins is said to be won by it. An interrupted run
goes on with ``--resume``: each group of metrics is kept once it is done.

Time: 67 to 84 s of a CPU core without data; SqueezeNet 430 s and MobileNet 380 s on photographs of 224 pixels with the
numbers of images below (torch 2.15, x86-64; 22 maps an image). ROAD is off there: 2 to 10 s for each map. Memory: 3 GB.
Expected, one network each, intervals over images; dear metrics have few images and wide intervals:

    planted evidence     average drop of Grad-CAM 46 [38, 54], random map 31 [25, 38]: the drop is won by Fake-CAM
                         pointing game 1.00 [1.00, 1.00] for 9 methods, 0.10 [0.06, 0.16] for the best control
                         energy in the evidence 0.79 [0.78, 0.79] for input x gradient, 0.02 for the best control
    SqueezeNet 1.1       average drop of Grad-CAM 54 [41, 66], centred Gaussian 52 [41, 63], Fake-CAM 0.3 [0.1, 0.7]
                         energy pointing 0.90 for CLRP, 0.67 for the centred Gaussian, 0.49 for noise
    MobileNet v1 0.75    average drop of Grad-CAM 22 [13, 33], centred Gaussian 43 [31, 56], Fake-CAM 0.0 [0.0, 0.1]
                         ADCC 70 [60, 78] for Grad-CAM, 71 [60, 81] for the centred Gaussian

Options of SqueezeNet: ``--model torchvision:squeezenet1_1 --layer features.12 --weights FILE``; of MobileNet: ``--model
timm.models.efficientnet:_gen_mobilenet_v1 --model-options variant=mobilenetv1_100 channel_multiplier=0.75 pad_type=same
bn_eps=1e-3 --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --weights FILE``.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import argparse
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
from common.data.boxed import BoxedImages, most_probable_of
from common.data.images import eval_transform, image_data
from common.data.planted import CLASSES, planted_evidence
from common.method_report import Found, draw, drawable, summary, tables
from common.networks import model_options
from common.options import DataOptions, ModelOptions, RunOptions, add_options, built
from common.planted_network import fitted
from common.run import Run
from lightning_xai import attribution, metrics
from lightning_xai.networks import create_classifier
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


@dataclass(frozen=True)
class Subject:
    """A classifier with the images on which its maps are judged."""

    network: nn.Module
    side: int
    standard: Standard
    photographs: DataLoader[Any]
    boxed: DataLoader[Any] | None
    boxed_targets: Any  # as Faithfulness takes them


class Validated(pl.LightningModule):
    """A network whose validation step is what the callback listens to."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,C,H,W) to logits (N,K)."""
        return self.network(images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The forward pass that explanations share."""
        self(batch[0])


def planted(args: argparse.Namespace) -> Subject:
    """A small network, and images of which it is known what decides their class."""
    side, standard = 40, {"mean": (0.5,) * 3, "std": (0.25,) * 3}

    def drawn(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, masks = planted_evidence(torch.arange(n) % len(CLASSES), size=side, seed=seed)
        return (images - 0.5) / 0.25, labels, masks

    pl.seed_everything(args.seed, verbose=False)
    network = trained(*drawn(128 if args.fast_dev_run else 2048, args.seed)[:2])
    n = max(1, *args.counts.values())
    loader: DataLoader[Any] = DataLoader(TensorDataset(*drawn(n, args.seed + 1)), batch_size=args.batch_size)
    return Subject(network, side, standard, loader, loader, xai.scores.label)


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """Two convolutions and the largest response of each channel, after six epochs."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers[:-1], nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, len(CLASSES)))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    return fitted(network, images, labels, optimizer, epochs=6, batch_size=64)


def photographs(args: argparse.Namespace) -> Subject:
    """A classifier and the photographs of folders."""
    data = image_data(built(DataOptions, args), built(ModelOptions, args), seed=args.seed)
    options = model_options(args.model_options)
    weights = {"pretrained": args.pretrained, "weights": args.weights}
    network = create_classifier(args.model, len(data.classes), **weights, **options).eval()
    boxed = targets = None
    if args.boxed is not None:
        images = BoxedImages(args.boxed, eval_transform(args.image_size, data.mean, data.std))
        boxed, targets = DataLoader(images, batch_size=args.batch_size), most_probable_of(images.classes)
    standard = {"mean": data.mean, "std": data.std}
    return Subject(network, args.image_size, standard, data.val_dataloader(), boxed, targets)


def measured(
    args: argparse.Namespace,
    subject: Subject,
    methods: dict[str, xai.Attribution],
    controls: dict[str, xai.Attribution],
    group: str,
) -> Found:
    """The metrics of one group, by method, after a validation epoch."""
    on_boxes = group == "boxes"
    loader, n_images = subject.boxed if on_boxes else subject.photographs, args.counts[group]
    faithfulness = xai.Faithfulness(
        methods,
        METRICS[group]([*methods, *controls], subject.side),
        controls=controls,
        control_images=None,
        n_images=n_images,
        targets=subject.boxed_targets if on_boxes else None,
        unpack=(lambda batch: batch[:3]) if on_boxes else (lambda batch: batch[:2]),
        **subject.standard,
    )
    trainer = pl.Trainer(
        accelerator=args.accelerator,
        devices=1,  # images are few, and no sampler is put in the place of ours
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=args.progress,
        callbacks=[faithfulness],
        limit_val_batches=-(-n_images // args.batch_size),
    )
    trainer.validate(Validated(subject.network), loader, verbose=False)
    constant = {name: trainer.callback_metrics[f"val/xai/{name}/ConstantMaps"].item() for name in faithfulness.names()}
    return Found(faithfulness.states[0], faithfulness.shared_states[0], constant)


def randomized(args: argparse.Namespace, subject: Subject, methods: dict[str, xai.Attribution]) -> Found:
    """Similarity of the maps of each method with those of a network whose layers were randomised from the top."""
    wanted = args.counts["randomization"]
    batches = islice(subject.photographs, -(-wanted // args.batch_size))
    images = torch.cat([batch[0] for batch in batches])[:wanted]
    with torch.no_grad():
        targets = subject.network(images).argmax(1)

    def explained(network: nn.Module) -> Tensor:  # one after the other: methods share passes and the copies
        return torch.cat(list(xai.explain(network, images, targets, attributions=methods).values()))

    layers = blocks(subject.network)
    layers = [layers[round(i)] for i in torch.linspace(0, len(layers) - 1, min(args.layers, len(layers))).tolist()]
    names, similarities = metrics.parameter_randomization(subject.network, explained, layers=layers)
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


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxed", type=Path, help="folder with boxes.csv and label_to_imagenet.csv")
    add_options(parser, DataOptions(batch_size=8), ModelOptions("resnet50"))
    usual = [name for name in METHODS if name not in DEAR]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=usual, help="default: all but the dearest two")
    parser.add_argument("--passes", type=int, default=5, help="of the methods that average over passes")
    parser.add_argument("--layers", type=int, default=4, help="blocks that are randomised, from the last to the first")
    parser.add_argument("--metrics", nargs="+", choices=IMAGES["planted"], help="groups of metrics; default: all")
    for group in IMAGES["planted"]:
        parser.add_argument(f"--{group}-images", type=int, help=f"images for the metrics of {group}; 0: leave out")
    parser.add_argument("--accelerator", default="auto", help="as of the Trainer")
    parser.add_argument("--progress", action="store_true", help="show the Trainer's progress")
    add_options(parser, RunOptions(Path("runs/method_table")))
    args = parser.parse_args(argv)
    args.counts = counts_of(args)
    return args


def counts_of(args: argparse.Namespace) -> dict[str, int]:
    """How many images each group of metrics gets: those asked for, else what is usual; none without boxes."""
    counts = {}
    for group, usual in IMAGES["photographs" if args.data else "planted"].items():
        given = getattr(args, f"{group}_images")
        left_out = (args.metrics and group not in args.metrics) or (group == "boxes" and args.data and not args.boxed)
        count = 0 if left_out else usual if given is None else given
        counts[group] = min(count, 2) if args.fast_dev_run else count
    return counts


ANYTIME = ("accelerator", "progress", "workers")
"""Options that may change when a run is resumed."""


def group_of(
    args: argparse.Namespace,
    subject: Subject,
    methods: dict[str, xai.Attribution],
    controls: dict[str, xai.Attribution],
    group: str,
) -> dict[str, Any]:
    """All that is kept of a group of metrics."""
    begun = time.monotonic()
    if group == "randomization":
        found = randomized(args, subject, methods | controls)
    else:
        found = measured(args, subject, methods, controls, group)
    return {
        "columns": summary({group: found}, list(controls), args.seed),
        "constant_maps": dict(found.constant_maps),
        "drawn": drawable(group, found),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main(argv: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    args = parse(argv)
    run = Run(built(RunOptions, args), vars(args), free=ANYTIME)
    subject = photographs(args) if args.data else planted(args)
    methods = {name: METHODS[name](args.layer, subject.standard, args.passes) for name in args.methods}
    controls = {**CONTROLS, SHUFFLED: attribution.Shuffled(next(iter(methods.values())))}
    groups: dict[str, dict[str, Any]] = {}
    for group, count in args.counts.items():
        if count:
            groups[group] = run.part(group, partial(group_of, args, subject, methods, controls, group))
            print(f"{group}: {count} images, {groups[group]['seconds']:.0f} s", flush=True)
    return reported(args, run, groups, list(controls))


def reported(args: argparse.Namespace, run: Run, groups: dict[str, dict[str, Any]], controls: list[str]) -> Results:
    """Tables, figures and ``results.json``."""
    columns = [column for one in groups.values() for column in one["columns"]]
    values = {
        "columns": columns,
        "constant_maps": {group: one["constant_maps"] for group, one in groups.items()},
        "images": args.counts,
        "seconds_by_group": {group: one["seconds"] for group, one in groups.items()},
    }
    text = (
        f"{args.model if args.data else 'A small network trained on planted evidence'}: {len(args.methods)} methods "
        f"beside {len(controls)} controls that know nothing of it. Numbers of one network, intervals over images."
    )
    pictures = draw([one["drawn"] for one in groups.values()], controls, run.folder)
    return run.finish("Methods and metrics", text, tables(columns, controls), pictures, values)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each group of metrics has its own Trainer
    main()
