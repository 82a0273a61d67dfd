r"""Grad-CAM++ against Grad-CAM with positive gradients: tables 1 and 2 and figures 3 to 6 of the paper, and the alphas.

    python recipes/gradcam_plus.py                       # a small network trained on images drawn here
    python recipes/gradcam_plus.py --data DIR --model torchvision:squeezenet1_1 --layer features.12 --weights FILE
    python recipes/gradcam_plus.py --data DIR --model timm.models.efficientnet:_gen_mobilenet_v1 --layer blocks.4 \
        --model-options variant=mobilenetv1_100 channel_multiplier=0.75 pad_type=same bn_eps=1e-3 \
        --mean .5 .5 .5 --std .5 .5 .5 --weights FILE

Lerma and Lucas, "Grad-CAM++ is Equivalent to Grad-CAM With Positive Gradients" (2022,
https://arxiv.org/abs/2205.10838), compare three methods by what their maps leave of the probability of the right class,
on images where it exceeds 0.5, with gradients of the score before and after the softmax. The reason they give, that all
alphas are near 1/2, is looked at by the sign of the gradient: ``alpha = 1 / (2 + g sum A)`` is in (0, 1/2] where g > 0
and A >= 0, and only there it reaches the map. The extremes they saw have g < 0: -1398101.4 is -2^22 / 3 and 559240.56
is 2^23 / 15, what float32 makes of denominators that are 0 but for its last bits. Controls that know nothing of the
class, or of the network, stand in the same table.

Data: nothing, or a folder with photographs in ``val/<class>/*``; ``--pretrained`` downloads the library's weights.
Output: tables on the screen, and a run folder with ``results.json`` (the values of every image), ``report.html`` and
``figure_3.png`` to ``figure_6.png``, numbered as in the paper. An interrupted run goes on with ``--resume``; another
batch size or device changes nothing but rounding, which the most extreme alphas (g < 0) are made of.

What to expect, claim by claim: ``papers/gradcam_plus/README.md``. Time of one core: half a minute without data,
2.5 minutes for SqueezeNet, one for 100 photographs of MobileNet. Choose layers that end in a ReLU or ReLU6: before it
activations are signed, the printed alphas explode, and Grad-CAM+ and Grad-CAM++ show next to nothing.
"""

from __future__ import annotations

import common.threads  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.options import DataOptions, ModelOptions, RunOptions, device_option, option, parsed, require_both
from common.run import Run, in_chunks, joined
from common.subject import Subject, drawn_here, given, planted
from lightning_xai.report import Results
from papers.gradcam_plus.figures import draw
from papers.gradcam_plus.measures import CONFIDENT, measured_chunk
from papers.gradcam_plus.tables import tables

CHUNK = 25
"""Images between two points at which an interrupted run goes on."""


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    data: DataOptions = DataOptions(batch_size=25)
    model: ModelOptions = ModelOptions()
    run: RunOptions = RunOptions(Path("runs/gradcam_plus"))
    n_images: int = option(500, "images, taken evenly from the folder")
    n_drawn: int = option(5, "images in the figure of heat maps")
    device: str = device_option()

    def __post_init__(self) -> None:
        require_both(self.data, self.model, layer=True)
        if ".tar" in str(self.data.data):
            raise ValueError("--data expected a folder with val/<class>/*, got shards, whose images have no number.")
        if min(self.n_images, self.n_drawn, self.data.batch_size) < 1:
            raise ValueError("--n-images, --n-drawn and --batch-size expected at least 1.")


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    found = parsed(Settings, __doc__, argv)
    return replace(found, n_images=min(found.n_images, 30), n_drawn=2) if found.run.fast_dev_run else found


def prepared(settings: Settings) -> tuple[Subject, Any]:
    """A classifier and items (image, label): photographs of a folder, or images of which it is known what decides."""
    size, run = min(settings.data.batch_size, CHUNK), settings.run
    if settings.data.data:
        subject, data = given(settings.data, settings.model, seed=run.seed, device=settings.device, batch_size=size)
        return subject, data.val
    options: dict[str, Any] = {"layer": settings.model.layer, "device": settings.device, "batch_size": size}
    subject = drawn_here(run.run, run.seed, small=run.fast_dev_run, **options)
    found = planted(settings.n_images, run.seed + 1)
    return subject, list(zip(found.images, found.labels.tolist(), strict=True))


def chosen(total: int, n: int) -> list[int]:
    """Which images: folders are sorted by class, so that the first ones would be all fish."""
    return torch.linspace(0, total - 1, min(n, total)).round().long().tolist()


def main(argv: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    settings = parse(argv)
    run = Run(settings.run, settings, free=("batch_size", "device"))
    subject, images = prepared(settings)
    indices = chosen(len(images), settings.n_images)
    chunks = list(in_chunks(indices, CHUNK))
    found = joined(run.parts("images", chunks, lambda chunk: measured_chunk(subject, images, chunk)))
    pictures = draw(subject, images, found, indices, settings.n_drawn, run.folder)
    histogram_free = {name: value for name, value in found.items() if name != "histograms"}
    return run.finish(
        "Grad-CAM++ and Grad-CAM with positive gradients",
        summary(subject, found),
        tables(found, settings.run.seed),
        pictures,
        histogram_free,
    )


def summary(subject: Subject, found: dict[str, Any]) -> str:
    """What was done, and on what."""
    n = len(found["masked_scores"]["Fake-CAM"])
    least = min(found["alphas"]["pre-softmax"]["least_activation"])
    return (
        f"Maps of the right class at layer {subject.layer} for {len(found['scores'])} images, of which {n} have a "
        f"probability above {CONFIDENT} and count in the tables of masked images. Smallest activation: {least:.3g}."
    )


if __name__ == "__main__":
    main()
