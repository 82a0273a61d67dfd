r"""Pre- or post-softmax scores: what each does to maps, gradients and the pointing game.

    python recipes/score_choice.py                      # a small network trained on images drawn here
    python recipes/score_choice.py --data DIR --boxed DIR2 --steps 20 --n-images 40 --n-path 4 \
        --model torchvision:squeezenet1_1 --layer features.12 --weights FILE
    python recipes/score_choice.py --data DIR --boxed DIR2 --steps 20 --n-images 40 --n-path 4 \
        --model timm.models.efficientnet:_gen_mobilenet_v1 --layer blocks.4 --mean .5 .5 .5 --std .5 .5 .5 \
        --model-options variant=mobilenetv1_100 channel_multiplier=0.75 pad_type=same bn_eps=1e-3 --weights FILE

Lerma and Lucas, "Pre or Post-Softmax Scores in Gradient-based Attribution Methods, What is Best?" (2023,
https://arxiv.org/abs/2306.13197): figure 2, both cases of section II.B, the equations, and the advice in the end. The
paper has no numbers; its equations are compared with arithmetic. ``centred`` is ``z_c - mean z``.

Data: nothing, or photographs in ``val/<class>/*``, and for the pointing game a folder with boxes (data/boxed.py).
Explained are the predicted class, of boxed photographs the most probable class of the label, of drawn images the label.
Output: tables, and a run folder with ``results.json``, ``report.html``, ``maps_<i>.png`` (figure 2), ``saturation.png``
and ``agreement.png``. An interrupted run goes on with ``--resume``, on another device or with another batch size, too.

What to expect, claim by claim: ``papers/score_choice/README.md``. Time of one core: 1 minute without data, 3 for each
network on photographs; path methods take most of it and get few of them.
"""

from __future__ import annotations

import common.threads  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

import lightning_xai as xai
from common.options import DataOptions, ModelOptions, RunOptions, device_option, option, parsed, require_both
from common.run import Run, first_images
from common.subject import Subject, boxed, drawn_here, given, planted
from lightning_xai.report import Picture, Results, Table
from lightning_xai.types import TargetRule
from papers.score_choice.examples import (
    equal_influence_paradox,
    loss_equations,
    saturation_by_margin,
    shift_paradox,
    two_trainings,
)
from papers.score_choice.maps import SCORES, Chunk, baseline_probabilities, measured
from papers.score_choice.report import (
    agreement_table,
    baseline_table,
    draw_agreement,
    draw_maps,
    draw_saturation,
    equality_table,
    magnitude_table,
    numbers,
    pointing_table,
    rounding_table,
    saturation_table,
    two_trainings_table,
)

CHUNK = 8
"""Images that are computed between two savings; what is found does not depend on it."""

ANYTIME = ("batch_size", "device", "workers")
"""Options that may change when a run is resumed."""


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    run: RunOptions = RunOptions(Path("runs/score_choice"))
    boxed: Path | None = option(None, "folder with boxes.csv and label_to_imagenet.csv, with --data")
    steps: int = option(50, "of the path methods")
    n_images: int = option(100, "images of --data, or images drawn here")
    n_boxed: int = option(100, "images of --boxed")
    n_path: int | None = option(None, "of them for path methods, of each; default: all drawn here, else 4")
    n_drawn: int = option(3, "images that are drawn, one figure each; at most 8")
    device: str = device_option()

    def __post_init__(self) -> None:
        require_both(self.data, self.model, others=(self.boxed,))


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    found = parsed(Settings, __doc__, argv)
    if found.run.fast_dev_run:
        found = replace(found, n_images=10, n_boxed=10, n_path=2, n_drawn=1, steps=3)
    return replace(found, n_path=(4 if found.data.data else found.n_images) if found.n_path is None else found.n_path)


def chunks(settings: Settings, images: Tensor, labels: Tensor, masks: Tensor | None, rule: TargetRule) -> list[Chunk]:
    """Images in chunks; the first of all images are those for path methods."""
    found = []
    for start in range(0, len(images), CHUNK):
        of = slice(start, start + CHUNK)
        n_path = min(max((settings.n_path or 0) - start, 0), CHUNK)
        evidence = None if masks is None else masks[of]
        found.append(Chunk(images[of], labels[of], rule, evidence, n_path, settings.steps))
    return found


def small_classifier(settings: Settings) -> tuple[Subject, dict[str, list[Chunk]]]:
    """A small network and images of which it is known what decides their class."""
    run, options = settings.run, settings.data
    compute: dict[str, Any] = {"device": settings.device, "batch_size": options.batch_size}
    subject = drawn_here(run.run, run.seed, small=run.fast_dev_run, layer=settings.model.layer, **compute)
    found = planted(settings.n_images, run.seed + 1)
    return subject, {"drawn": chunks(settings, found.images, found.labels, found.masks, xai.scores.label)}


def photographs(settings: Settings) -> tuple[Subject, dict[str, list[Chunk]]]:
    """A classifier and the photographs of folders."""
    subject, data = given(settings.data, settings.model, seed=settings.run.seed, device=settings.device)
    images, labels = first_images(data.val_dataloader(), settings.n_images)
    sets = {"photographs": chunks(settings, images, labels, None, xai.scores.predicted)}
    if settings.boxed is not None:
        found = boxed(settings.boxed, settings.data, subject)
        images, labels, masks = found.first(settings.n_boxed, settings.data)
        sets["boxed"] = chunks(settings, images, labels, masks, found.targets)
    return subject, sets


def values_of(run: Run, subject: Subject, sets: dict[str, list[Chunk]], n_drawn: int) -> pd.DataFrame:
    """All that is measured of all images, chunk by chunk; maps of the first images are drawn where they are made."""
    frames: list[pd.DataFrame] = []
    first = next(iter(sets.values()))[0]
    baseline = np.array(run.part("baseline", lambda: baseline_probabilities(subject, first.images)))

    def computed(chunk: Chunk) -> dict[str, list[Any]]:
        values, maps = measured(subject, chunk)
        classes, p = numbers(values, "class").astype(int), numbers(values, "p")
        for i in range(min(n_drawn, chunk.n_path) if chunk is first else 0):
            title = f"{subject.classes[classes[i]]}, probability {p[i]:.3f}"
            of_one = {key: one[i : i + 1] for key, one in maps.items()}
            draw_maps(chunk.images[i], of_one, title, subject.standard, run.folder / f"maps_{i}.png")
        return listed(values)

    n = 0
    for name, some in sets.items():
        for chunk, part in zip(some, run.parts(name, some, computed), strict=True):
            frame = pd.DataFrame(part)
            paths = frame[(frame["quantity"] == "class") & (frame["image"] < chunk.n_path)]
            starts = paths.assign(quantity="p at the baseline", value=baseline[paths["value"].astype(int)])
            frames += [one.assign(image=one["image"] + n) for one in (frame, starts)]
            n += len(chunk.images)
    return pd.concat(frames, ignore_index=True)


def listed(values: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns in a form that JSON takes: None where there is no value."""
    return {**values.to_dict("list"), "value": [None if one != one else one for one in values["value"]]}


def reported(run: Run, values: pd.DataFrame, trainings: dict[str, float], seed: int, summary: str) -> Results:
    """Tables, figures and ``results.json``."""
    tables: list[Table] = [
        shift_paradox(),
        equal_influence_paradox(),
        two_trainings_table(trainings),
        loss_equations(),
        saturation_by_margin(),
        saturation_table(values),
        rounding_table(values),
        magnitude_table(values),
        baseline_table(values),
        agreement_table(values, "rank correlation", "Rank correlation of maps of two scores", seed),
        agreement_table(values, "peak moved", "Images whose peak moves, %", seed, scale=100, digits=1),
        equality_table(values),
    ]
    if (values["quantity"] == "hit").any():
        tables.append(pointing_table(values, seed))
    pictures = [
        Picture(path.name, "Figure 2 of the paper: maps of one image by method and score, each on its own scale.")
        for path in sorted(run.folder.glob("maps_*.png"))
    ]
    pictures.append(draw_saturation(values, run.folder / "saturation.png"))
    pictures.append(draw_agreement(values, run.folder / "agreement.png"))
    title = "Pre- or post-softmax scores"
    return run.finish(title, summary, tables, pictures, {"images": listed(values), "two trainings": trainings})


def main(argv: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    settings = parse(argv)
    run, seed = Run(settings.run, settings, free=ANYTIME), settings.run.seed
    subject, sets = photographs(settings) if settings.data.data else small_classifier(settings)
    n_trained = 32 if settings.run.fast_dev_run else 128
    trainings = run.part("two_trainings", lambda: two_trainings(seed, n_trained, SCORES))
    values = values_of(run, subject, sets, settings.n_drawn)
    counts = " and ".join(f"{sum(len(one.images) for one in some)} images ({name})" for name, some in sets.items())
    summary = (
        f"{subject.name}, {counts}; {settings.n_path} of each for path methods with {settings.steps} steps. "
        f"Explained: {', '.join(SCORES)}. After Lerma and Lucas, 2023."
    )
    return reported(run, values, trainings, seed, summary)


if __name__ == "__main__":
    main()
