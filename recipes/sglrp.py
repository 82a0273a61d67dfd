r"""Softmax-gradient LRP beside LRP, CLRP in its variants, Guided Grad-CAM and chance: figures 3 to 13 of its paper.

    python recipes/sglrp.py                                             # planted evidence, networks trained here
    python recipes/sglrp.py --data DIR --boxed DIR2 --model torchvision:squeezenet1_1 --layer features.12 \
        --weights FILE --beside "--name MobileNet --model ..."          # photographs; a second network for figure 8
    python recipes/sglrp.py --data DIR --model cifar_resnet20 --weights FILE \
        --beside "--model cifar_resnet44 --weights FILE"                # DIR with cifar10_test.npz

Iwana et al., "Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise Relevance Propagation", 2019
(https://arxiv.org/abs/1908.04351). Maximal patch masking for the label and for the second most probable class (figure
11), pointing accuracy over energy beside the share of the image that the box covers (13), two images in one in place
of photographs with two objects (6), the same for several networks (8), examples (7), the failures of figure 9 found by
what the box covers, the toy networks of figures 3 and 5, and counts of images where equations 7 and 10 fail.

``CLRP`` is the paper's equation 7; ``CLRP1`` and ``CLRP2`` are those of Gu et al.'s code (``NormalizedCLRP``), against
all other classes and against the negated target.

Data: nothing; or a folder with ``val/<class>/*``, and for figures 9 and 13 one with ``boxes.csv`` and
``label_to_imagenet.csv`` (see common/data/boxed.py); or one with ``cifar10_test.npz``.
Output: tables on the screen, and a run folder with ``results.json``, ``curves.png`` (figures 11, 13), ``examples.png``
(7), ``pairs.png`` (6), ``networks.png`` (8) and ``failures.png`` (9). Interrupted, it goes on with ``--resume``.

What to expect, claim by claim: ``papers/sglrp/README.md``; photographs there with ``--n-images 48 --n-mosaics 20``,
CIFAR-10 with ``--n-images 64 --n-mosaics 20``. The options of SqueezeNet and MobileNet are those in method_table.py.
The pairs of figure 6 are those that the first network knows.

Time of one core: 1 minute without data, 3.5 minutes for SqueezeNet with MobileNet, 40 s for CIFAR-10; up to 4 GB of
memory, less with a smaller ``--batch-size``.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.options import DataOptions, ModelOptions, RunOptions, device_option, option, parsed, require_both
from common.run import Run, in_chunks, joined
from lightning_xai import metrics
from papers.sglrp.measures import Values, mosaics, patches, pointing
from papers.sglrp.networks import Judged, loaded, photographs, planted
from papers.sglrp.pictures import pictures
from papers.sglrp.report import published, tables

CHUNK = 16
"""Images between two points from which an interrupted run goes on."""


class Experiment:
    """The measurements of one run, chunk by chunk."""

    def __init__(self, settings: Settings, run: Run, subjects: Sequence[Judged]) -> None:
        self.settings, self.run, self.subjects = settings, run, subjects
        self.main = subjects[0]

    def batches(self, dataset: Any, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Items of a dataset in batches on the device, whose size is no matter of the results."""
        fields = [one.to(self.settings.device) for one in loaded(dataset, indices)]
        return list(zip(*(one.split(self.settings.data.batch_size) for one in fields), strict=True))

    def _measured(self, name: str, measure: Callable[..., Values], dataset: Any, n: int) -> Values:
        """What is measured of the first n items, chunk by chunk."""

        def compute(indices: Sequence[int]) -> Values:
            batches = self.batches(dataset, indices)
            return joined([{"index": index.tolist()} | measure(self.main, *batch) for index, *batch in batches])

        return joined(self.run.parts(name, list(in_chunks(range(min(n, len(dataset))), CHUNK)), compute))

    def patches(self) -> Values:
        """Figure 11 on the first photographs."""
        return self._measured("patches", patches, self.main.images, self.settings.n_images)

    def pointing(self) -> Values | None:
        """Figure 13 on the boxed images; None without them."""
        boxed = self.main.boxed
        return None if boxed is None else self._measured("pointing", pointing, boxed, self.settings.n_boxed)

    def pairs(self, found: Values) -> list[list[int]]:
        """Pairs of photographs of different classes that the network knows, no photograph twice."""
        scores, labels = torch.tensor(found["label"]["score"]), torch.tensor(found["labels"])
        groups = metrics.confident_groups(scores, labels, size=2, confidence=self.settings.confidence)
        return torch.tensor(found["index"])[groups][: self.settings.n_mosaics].tolist()

    def mosaics(self, pairs: Sequence[Sequence[int]]) -> dict[str, Values]:
        """Two images in one, by network."""
        found = {}
        for i, subject in enumerate(self.subjects):

            def compute(chosen: Sequence[Sequence[int]], subject: Judged = subject) -> Values:
                sides = [self.batches(subject.images, list(side)) for side in zip(*chosen, strict=True)]
                return joined([mosaics(subject, *both) for both in zip(*sides, strict=True)])

            if pairs:
                groups = list(in_chunks(pairs, CHUNK))
                found[subject.name] = joined(self.run.parts(f"mosaics_{i}", groups, compute))
        return found


@dataclass(frozen=True)
class Network:
    """A classifier and its name."""

    model: ModelOptions = ModelOptions()
    name: str | None = option(None, "in tables; default: that of the model")


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    data: DataOptions = DataOptions()
    network: Network = Network()
    run: RunOptions = RunOptions(Path("runs/sglrp"))
    boxed: Path | None = option(None, "folder with boxes.csv and label_to_imagenet.csv")
    beside: tuple[str, ...] = option((), "further classifiers, for figure 8", metavar="OPTIONS")
    n_images: int = option(80, "images for figure 11")
    n_boxed: int = option(100, "images for figures 9 and 13")
    n_mosaics: int = option(30, "pairs of images for figures 6 and 8")
    confidence: float = option(0.5, "least probability of the labels of a pair")
    device: str = device_option()

    def __post_init__(self) -> None:
        require_both(self.data, self.network.model, others=(self.boxed, self.beside))
        if min(self.n_images, self.n_boxed) < 1:
            raise ValueError("--n-images and --n-boxed expected 1 or more.")
        if ".tar" in str(self.data.data):
            raise ValueError("--data expected a folder: an interrupted run cannot go on in the middle of shards.")
        for text, one in zip(self.beside, self.others, strict=True):
            if one.model.model is None:
                raise ValueError(f"--beside expected the options of a classifier, --model among them, got {text!r}.")

    @property
    def others(self) -> list[Network]:
        """The further classifiers."""
        return [parsed(Network, "--beside", shlex.split(text)) for text in self.beside]


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    found = parsed(Settings, __doc__, argv)
    few = {"n_images": 4, "n_boxed": 4, "n_mosaics": 2, "confidence": 0.0}
    return replace(found, **few) if found.run.fast_dev_run else found  # type: ignore[arg-type]


def subjects(settings: Settings) -> list[Judged]:
    """The classifier, and those beside it."""
    run, compute = settings.run, {"device": settings.device, "batch_size": settings.data.batch_size}
    if settings.data.data is None:
        return planted(max(settings.n_images, settings.n_boxed), run.seed, small=run.fast_dev_run, **compute)  # type: ignore[arg-type]
    found = [
        photographs(
            settings.data, one.model, settings.n_images, settings.boxed, name=one.name, seed=run.seed, **compute
        )
        for one in (settings.network, *settings.others)
    ]
    names = [subject.name for subject in found]
    if len(set(names)) < len(names):
        raise SystemExit(f"--name expected another name for each classifier, got {names}.")
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; returns what was measured, image by image."""
    settings = parse(argv)
    run = Run(settings.run, settings, free=("batch_size", "device"))
    experiment = Experiment(settings, run, subjects(settings))
    found: Values = {"patches": experiment.patches(), "pointing": experiment.pointing()}
    pairs = experiment.pairs(found["patches"])
    found["mosaics"] = experiment.mosaics(pairs)
    summary = f"{experiment.main.name}: " + ("photographs" if settings.data.data else "images with planted evidence")
    drawn = pictures(experiment.subjects, found, pairs, run.folder, settings.device)
    made = tables(found, experiment.main.n_classes, settings.run.seed)
    run.finish("Softmax-gradient LRP", summary, made, drawn, published(found))
    return found


if __name__ == "__main__":
    main()
