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
import torch.nn.functional as F
from reporting import Run, add_run_options
from sglrp_networks import Subject, loaded, photographs, planted
from sglrp_pictures import pictures
from sglrp_report import published, tables
from torch import Tensor

import lightning_xai as xai
from lightning_xai import metrics
from lightning_xai.attribution.relevance import is_reversed
from lightning_xai.scores import log_softmax

CHUNK = 16
"""Images between two points from which an interrupted run goes on."""
LEVELS = tuple(range(101))
"""Energies in percent of figure 13."""
TARGETS = {"label": xai.label, "second class": xai.second_best}
"""The classes of figures 11 (a) and (b)."""

Values = dict[str, Any]


def printed_seed(logits: Tensor, targets: Tensor) -> Tensor:
    """Equation 10 as it is printed, ``R_n = dy_t / dz_n``, without the care for saturation that our SGLRP takes.

    Args:
        logits: Logits (N,K).
        targets: Class for each image, (N,).

    Returns:
        Relevance of the logits, (N,K), of their dtype.

    Example:
        >>> printed_seed(torch.tensor([[0.0, 0.0], [0.0, 20.0]]), torch.tensor([1, 1]))
        tensor([[-2.5000e-01,  2.5000e-01],
                [-2.0612e-09,  0.0000e+00]])
    """
    hot, probabilities = F.one_hot(targets, logits.shape[1]), logits.softmax(1)
    return (probabilities * hot).sum(1, keepdim=True) * (hot - probabilities)


def facts(logits: Tensor, targets: Tensor, maps: dict[str, Tensor]) -> Values:
    """What is known of each image beside the metrics: where equations 7 and 10 fail, and which maps show nothing."""
    return {
        "probability": log_softmax(logits.double(), targets).exp().tolist(),
        "reversed": is_reversed(logits, targets).tolist(),
        # where no logit gets positive relevance, no pixel does
        "saturated": (printed_seed(logits, targets) <= 0).all(1).tolist(),
        "nothing": {name: metrics.degenerate(one).tolist() for name, one in maps.items()},
    }


def patches(subject: Subject, images: Tensor, labels: Tensor) -> Values:
    """Figure 11: change of the probability when the pixels around each map's maximum take the average colour."""
    logits = subject.predict(images)
    color = metrics.mean_color(images, subject.mean, subject.std, color=subject.color)
    found: Values = {"labels": labels.tolist()}
    for kind, choose in TARGETS.items():
        targets = choose(logits, labels)
        maps = xai.explain(subject.network, images, targets, attributions=subject.methods())
        before, changes = log_softmax(logits.double(), targets), {}
        for name, one in maps.items():
            after = metrics.patch_masked_scores(subject.predict, images, one, targets, baseline=color)
            changes[name] = (after.exp() - before.exp()[:, None]).tolist()
        found[kind] = {"changes": changes, "score": before.tolist(), **facts(logits, targets, maps)}
    return found


def pointing(subject: Subject, images: Tensor, labels: Tensor, masks: Tensor) -> Values:
    """Figure 13: how many points of each map lie on the object, and how many there are, by energy."""
    logits = subject.predict(images)
    targets = subject.boxed_targets(logits, labels)
    maps = xai.explain(subject.network, images, targets, attributions=subject.methods())
    found: Values = {"labels": labels.tolist(), "share": masks.double().mean((1, 2)).tolist(), "hits": {}, "points": {}}
    for name, one in maps.items():
        hits, points = metrics.energy_pointing(one, masks, levels=LEVELS)
        found["hits"][name], found["points"][name] = hits.tolist(), points.tolist()
    return found | facts(logits, targets, maps)


def side_by_side(first: Tensor, second: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Two images in one, as two objects in one photograph.

    Args:
        first: Images (N,C,H,W), on the left.
        second: Images (N,C,H,W), on the right.

    Returns:
        Images (N,C,H,2W), and the masks (N,H,2W) of the left and of the right halves, bool.

    Example:
        >>> both, halves = side_by_side(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
        >>> both, halves[1]
        (tensor([[[[0., 1.]]]]), tensor([[[False,  True]]]))
    """
    both, right = torch.cat([first, second], 3), torch.zeros_like(first[:, 0], dtype=torch.bool)
    return both, [torch.cat(halves, 2) for halves in ((~right, right), (right, ~right))]


def mosaics(subject: Subject, first: Sequence[Tensor], second: Sequence[Tensor]) -> Values:
    """In place of figure 6: the share of each map's positive relevance on the one of two images that it explains."""
    (_, left, left_labels), (_, right, right_labels) = first, second
    both, halves = side_by_side(left, right)
    logits, found = subject.predict(both), {}
    for side, targets, half in zip(("left", "right"), (left_labels, right_labels), halves, strict=True):
        maps = xai.explain(subject.network, both, targets, attributions=subject.methods())
        shares = {name: (100 * metrics.energy_in_box(one, half)).tolist() for name, one in maps.items()}
        shown = {name: [None if v != v else v for v in metrics.complexity(one).tolist()] for name, one in maps.items()}
        found[side] = {"share": shares, "complexity": shown, **facts(logits, targets, maps)}
    return found


def joined(parts: Sequence[Any]) -> Any:
    """The values of parts, in lists or nested dicts of lists, one after the other.

    Example:
        >>> joined([{"a": [1], "b": {"c": [2]}}, {"a": [3], "b": {"c": [4]}}])
        {'a': [1, 3], 'b': {'c': [2, 4]}}
    """
    if isinstance(parts[0], dict):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    return [value for part in parts for value in part]


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
    parser = argparse.ArgumentParser(prog="sglrp.py --beside", add_help=False)
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
    parser.add_argument("--data", help="folder with val/<class>/*; nothing: planted evidence")
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
    every = [argparse.Namespace(**vars(args) | rest | vars(one)) for one in (args, *others)]
    return [photographs(one) for one in every]


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
