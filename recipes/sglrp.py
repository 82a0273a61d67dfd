r"""Softmax-gradient LRP beside LRP, CLRP in its variants, Guided Grad-CAM and chance: figures 3 to 13 of its paper.

python recipes/sglrp.py
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Threads that wait by spinning, torch's default on CPUs, are several times slower beside another busy process.
os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")

import torch
from reporting import Run, add_run_options
from sglrp_measures import Values, joined, mosaics, patches, pointing
from sglrp_networks import Subject, loaded, photographs, planted
from sglrp_pictures import pictures
from sglrp_report import published, tables
from torch import Tensor

from lightning_xai import metrics

CHUNK = 16
"""Images between two points from which an interrupted run goes on."""


class Experiment:
    """The measurements of one run, chunk by chunk."""

    def __init__(self, args: argparse.Namespace, run: Run, subjects: Sequence[Subject]) -> None:
        self.args, self.run, self.subjects = args, run, subjects
        self.main = subjects[0]

    def batches(self, dataset: Any, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Items of a dataset in batches on the device, whose size is no matter of the results."""
        fields = [one.to(self.args.device) for one in loaded(dataset, indices)]
        return list(zip(*(one.split(self.args.batch_size) for one in fields), strict=True))

    def patches(self) -> Values:
        """Figure 11 on the first photographs."""

        def compute(indices: Sequence[int]) -> Values:
            found = [
                {"index": index.tolist()} | patches(self.main, images, labels)
                for index, images, labels in self.batches(self.main.images, indices)
            ]
            return joined(found)

        return joined(self.run.parts("patches", chunks(self.main.images, self.args.n_images), compute))

    def pointing(self) -> Values | None:
        """Figure 13 on the boxed images; None without them."""
        boxed = self.main.boxed
        if boxed is None:
            return None

        def compute(indices: Sequence[int]) -> Values:
            found = [
                {"index": index.tolist()} | pointing(self.main, *batch)
                for index, *batch in self.batches(boxed, indices)
            ]
            return joined(found)

        return joined(self.run.parts("pointing", chunks(boxed, self.args.n_boxed), compute))

    def pairs(self, found: Values) -> list[list[int]]:
        """Pairs of photographs of different classes that the network knows, no photograph twice."""
        scores, labels = torch.tensor(found["label"]["score"]), torch.tensor(found["labels"])
        groups = metrics.confident_groups(scores, labels, size=2, confidence=self.args.confidence)
        return torch.tensor(found["index"])[groups][: self.args.n_mosaics].tolist()

    def mosaics(self, pairs: Sequence[Sequence[int]]) -> dict[str, Values]:
        """Two images in one, by network."""
        found = {}
        for i, subject in enumerate(self.subjects):

            def compute(chosen: Sequence[Sequence[int]], subject: Subject = subject) -> Values:
                sides = [self.batches(subject.images, list(side)) for side in zip(*chosen, strict=True)]
                return joined([mosaics(subject, *both) for both in zip(*sides, strict=True)])

            groups = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
            if groups:
                found[subject.name] = joined(self.run.parts(f"mosaics_{i}", groups, compute))
        return found


def chunks(dataset: Any, n: int) -> list[range]:
    """The first n indices of a dataset, so many at a time.

    Example:
        >>> chunks(range(100), 40)
        [range(0, 16), range(16, 32), range(32, 40)]
    """
    n = min(n, len(dataset))
    return [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def classifier_options() -> argparse.ArgumentParser:
    """The options that describe one classifier."""
    parser = argparse.ArgumentParser(prog="--beside", add_help=False)
    parser.add_argument("--name", help="in tables; default: that of the model")
    parser.add_argument("--model", help="name in timm or torchvision, or package.module:function, with --data")
    parser.add_argument("--model-options", nargs="*", default=[], metavar="NAME=VALUE", help="for the constructor")
    parser.add_argument("--weights", type=Path, help="safetensors file or checkpoint; pickled code is not executed")
    parser.add_argument("--pretrained", action="store_true", help="download the library's weights")
    parser.add_argument("--layer", help="dotted name of the layer for Guided Grad-CAM; default: the last spatial one")
    parser.add_argument("--mean", type=float, nargs=3, help="mean of the channels; default: the model's")
    parser.add_argument("--std", type=float, nargs=3, help="standard deviation of the channels; default: the model's")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[classifier_options()]
    )
    parser.add_argument("--data", help="folder with val/<class>/* or cifar10_test.npz; nothing: planted evidence")
    parser.add_argument("--boxed", type=Path, help="folder with boxes.csv and label_to_imagenet.csv")
    parser.add_argument("--beside", nargs="*", default=[], metavar="OPTIONS", help="further classifiers, for figure 8")
    parser.add_argument("--image-size", type=int, default=224, help="side of the photographs in pixels")
    parser.add_argument("--n-images", type=int, default=80, help="images for figure 11")
    parser.add_argument("--n-boxed", type=int, default=100, help="images for figures 9 and 13")
    parser.add_argument("--n-mosaics", type=int, default=30, help="pairs of images for figures 6 and 8")
    parser.add_argument("--confidence", type=float, default=0.5, help="least probability of the labels of a pair")
    parser.add_argument("--batch-size", type=int, default=8, help="images in a pass; results do not depend on it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    add_run_options(parser, "sglrp")
    args = parser.parse_args(argv)
    if args.data is not None and args.model is None:
        parser.error("--data expected --model beside it.")
    if args.data is None and (args.model or args.boxed or args.beside):
        parser.error("--model, --boxed and --beside expected --data beside them.")
    if min(args.n_images, args.n_boxed) < 1:
        parser.error("--n-images and --n-boxed expected 1 or more.")
    if args.data is not None and ".tar" in args.data:
        parser.error("--data expected a folder: an interrupted run cannot go on in the middle of shards.")
    for text in args.beside:
        if classifier_options().parse_args(shlex.split(text)).model is None:
            parser.error(f"--beside expected the options of a classifier, --model among them, got {text!r}.")
    if args.fast_dev_run:
        args.n_images, args.n_boxed, args.n_mosaics, args.confidence = 4, 4, 2, 0.0
    return args


def subjects(args: argparse.Namespace) -> list[Subject]:
    """The classifier, and those beside it."""
    if args.data is None:
        return planted(args)
    # what `image_data` asks of a recipe that trains, too
    rest = {"val_data": None, "workers": 0, "epochs": 0, "max_steps": -1}
    others = [classifier_options().parse_args(shlex.split(text)) for text in args.beside]
    found = [photographs(argparse.Namespace(**vars(args) | rest | vars(one))) for one in (args, *others)]
    names = [subject.name for subject in found]
    if len(set(names)) < len(names):
        raise SystemExit(f"--name expected another name for each classifier, got {names}.")
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; returns what was measured, image by image."""
    args = parse(argv)
    run = Run(args, free=("batch_size", "device"))
    experiment = Experiment(args, run, subjects(args))
    found: Values = {"patches": experiment.patches(), "pointing": experiment.pointing()}
    pairs = experiment.pairs(found["patches"])
    found["mosaics"] = experiment.mosaics(pairs)
    summary = f"{experiment.main.name}: " + ("photographs" if args.data else "images with planted evidence")
    drawn = pictures(experiment.subjects, found, pairs, run.folder, args.device)
    made = tables(found, experiment.main.n_classes, args.seed)
    run.finish("Softmax-gradient LRP", summary, made, drawn, published(found))
    return found


if __name__ == "__main__":
    main()
