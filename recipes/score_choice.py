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

Data: nothing, or photographs in ``val/<class>/*``, and for the pointing game a folder with boxes (boxed_images.py).
Explained are the predicted class, of boxed photographs the most probable class of the label, of drawn images the label.
Output: tables, and a run folder with ``results.json``, ``report.html``, ``maps_<i>.png`` (figure 2), ``saturation.png``
and ``agreement.png``. An interrupted run goes on with ``--resume``, on another device or with another batch size, too.

Expected (one seed, torch 2.15, x86-64; bootstrap 95 % intervals over images; dear path methods got few of them):

                                            drawn here           SqueezeNet 1.1       MobileNet 0.75
    images, of them for path methods        100, 100             140, 8               140, 8
    rank correlation, pre- and post-softmax
      Grad-CAM                              0.93 [0.88, 0.97]    0.52 [0.48, 0.56]    0.63 [0.58, 0.68]
      Grad-CAM+                             0.75 [0.70, 0.80]    0.94 [0.92, 0.94]    0.98 [0.97, 0.98]
      RSI Grad-CAM                          0.71 [0.65, 0.76]    0.87 [0.83, 0.91]    0.90 [0.81, 0.96]
      Integrated Gradients                  0.61 [0.57, 0.66]    0.55 [0.48, 0.62]    0.62 [0.51, 0.73]
    pre-softmax and centred, Grad-CAM       1.00 [1.00, 1.00]    0.98 [0.98, 0.98]    1.00 [1.00, 1.00]
    peak moves, pre- to post-softmax, %
      Grad-CAM                              0 [0, 0]             63 [54, 71]          69 [61, 77]
      Grad-CAM+                             0 [0, 0]             50 [41, 59]          34 [26, 41]
    cosine, post- and log-softmax
      Grad-CAM, Grad-CAM+, least            1 - 1e-12            1 - 1e-12            1 - 1e-12
      Grad-CAM++, least                     0.978                0.998                0.9997
      RSI Grad-CAM, median                  0.999                0.96                 0.99
      Integrated Gradients, median          0.77                 0.93                 0.94
    p rounded to 1 in float32, bfloat16     25 %, 82 %           0 %, 4 %             0 %, 5 %
    torch.softmax in float32: error > 1 %   35 %                 0 %                  0 %
    pointing game, post - pre, points
      Grad-CAM                              0 [0, 0]             0 [-3, 3]            -3 [-7, 1]
      RSI Grad-CAM                          -13 [-20, -7]
    time of one core                        1 min                3 min                3 min

A gradient of torch's softmax in float32 is not zero where the probability is rounded to 1: it lacks the part of the
class itself, keeps those of the others, and so sums to zero no longer. The library's scores keep all digits. On the
drawn images a quarter is of a class that the black image is taken for: along their paths the probability hardly moves,
maps of the post-softmax score shrink a thousandfold, and their peaks leave the object (100 % to 48 % for RSI Grad-CAM).
"""

from __future__ import annotations

import common.threads  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_xai as xai
from common.data.boxed import BoxedImages, most_probable_of
from common.data.images import eval_transform, image_data
from common.data.planted import CLASSES, planted_evidence
from common.networks import classifier_of, load_weights
from common.options import DataOptions, ModelOptions, RunOptions, add_options, built
from common.planted_network import STANDARD, small_network, standardized, trained
from common.run import Run, first_images
from lightning_xai.report import Picture, Results, Table
from lightning_xai.types import TargetRule
from papers.score_choice.examples import (
    equal_influence_paradox,
    loss_equations,
    saturation_by_margin,
    shift_paradox,
    two_trainings,
)
from papers.score_choice.maps import SCORES, Chunk, Subject, baseline_probabilities, measured
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


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxed", type=Path, help="folder with boxes.csv and label_to_imagenet.csv, with --data")
    add_options(parser, DataOptions(batch_size=8), ModelOptions())
    parser.add_argument("--steps", type=int, default=50, help="of the path methods")
    parser.add_argument("--n-images", type=int, default=100, help="images of --data, or images drawn here")
    parser.add_argument("--n-boxed", type=int, default=100, help="images of --boxed")
    parser.add_argument("--n-path", type=int, help="of them for path methods, of each; default: all drawn here, else 4")
    parser.add_argument("--n-drawn", type=int, default=3, help="images that are drawn, one figure each; at most 8")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    add_options(parser, RunOptions(Path("runs/score_choice")))
    args = parser.parse_args(argv)
    if args.data is not None and not args.model:
        parser.error("--data expected --model beside it.")
    if args.data is None and (args.model or args.weights or args.boxed):
        parser.error("--model, --weights and --boxed expected --data beside them.")
    if args.fast_dev_run:
        args.n_images, args.n_boxed, args.n_path, args.n_drawn, args.steps = 10, 10, 2, 1, 3
    if args.n_path is None:
        args.n_path = 4 if args.data else args.n_images
    return args


def chunks(images: Tensor, labels: Tensor, masks: Tensor | None, rule: TargetRule, n_path: int) -> list[Chunk]:
    """Images in chunks; the first n_path of all images are those for path methods."""
    return [
        Chunk(
            images[start : start + CHUNK],
            labels[start : start + CHUNK],
            rule,
            None if masks is None else masks[start : start + CHUNK],
            min(max(n_path - start, 0), CHUNK),
        )
        for start in range(0, len(images), CHUNK)
    ]


def drawn_here(args: argparse.Namespace, run: Run) -> tuple[Subject, dict[str, list[Chunk]], list[str]]:
    """A small network and images of which it is known what decides their class."""
    weights, model = run.folder / "network.safetensors", small_network().eval()
    if not weights.exists():
        save_file(trained(args.seed, 256 if args.fast_dev_run else 1536).state_dict(), weights)
    load_weights(model, weights)
    found = planted_evidence(torch.arange(args.n_images) % len(CLASSES), seed=args.seed + 1)
    images = chunks(standardized(found.images), found.labels, found.masks, xai.scores.label, args.n_path)
    standard = dict(zip(("mean", "std"), STANDARD, strict=True))
    return _subject(args, model, args.layer or "6", standard), {"drawn": images}, list(CLASSES)


def photographs(args: argparse.Namespace) -> tuple[Subject, dict[str, list[Chunk]], list[str]]:
    """A classifier and the photographs of folders."""
    data = image_data(built(DataOptions, args), built(ModelOptions, args), seed=args.seed)
    model = classifier_of(built(ModelOptions, args), len(data.classes)).eval()
    images, labels = first_images(data.val_dataloader(), args.n_images)
    sets = {"photographs": chunks(images, labels, None, xai.scores.predicted, args.n_path)}
    if args.boxed is not None:
        boxed = BoxedImages(args.boxed, eval_transform(args.image_size, data.mean, data.std))
        loader = DataLoader(boxed, batch_size=args.batch_size, num_workers=args.workers)
        rule = most_probable_of(boxed.classes)
        images, labels, masks = first_images(loader, args.n_boxed, 3)
        sets["boxed"] = chunks(images, labels, masks, rule, args.n_path)
    return _subject(args, model, args.layer, {"mean": data.mean, "std": data.std}), sets, data.classes


def _subject(args: argparse.Namespace, model: nn.Module, layer: str | None, standard: dict[str, Any]) -> Subject:
    return Subject(model.to(args.device), layer, standard, args.steps, args.batch_size)


def values_of(run: Run, subject: Subject, sets: dict[str, list[Chunk]], names: list[str], n_drawn: int) -> pd.DataFrame:
    """All that is measured of all images, chunk by chunk; maps of the first images are drawn where they are made."""
    frames: list[pd.DataFrame] = []
    first = next(iter(sets.values()))[0]
    baseline = np.array(run.part("baseline", lambda: baseline_probabilities(subject, first.images)))

    def computed(chunk: Chunk) -> dict[str, list[Any]]:
        values, maps = measured(subject, chunk)
        classes, p = numbers(values, "class").astype(int), numbers(values, "p")
        for i in range(min(n_drawn, chunk.n_path) if chunk is first else 0):
            title = f"{names[classes[i]]}, probability {p[i]:.3f}"
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


def reported(
    args: argparse.Namespace, run: Run, values: pd.DataFrame, trainings: dict[str, float], summary: str
) -> Results:
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
        agreement_table(values, "rank correlation", "Rank correlation of maps of two scores", args.seed),
        agreement_table(values, "peak moved", "Images whose peak moves, %", args.seed, scale=100, digits=1),
        equality_table(values),
    ]
    if (values["quantity"] == "hit").any():
        tables.append(pointing_table(values, args.seed))
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
    args = parse(argv)
    run = Run(built(RunOptions, args), vars(args), free=ANYTIME)
    subject, sets, names = photographs(args) if args.data else drawn_here(args, run)
    n_trained = 32 if args.fast_dev_run else 128
    trainings = run.part("two_trainings", lambda: two_trainings(args.seed, n_trained, SCORES))
    values = values_of(run, subject, sets, names, args.n_drawn)
    counts = " and ".join(f"{sum(len(one.images) for one in some)} images ({name})" for name, some in sets.items())
    summary = (
        f"{args.model or 'A small network trained here'}, {counts}; {args.n_path} of each for path methods with "
        f"{args.steps} steps. Explained: {', '.join(SCORES)}. After Lerma and Lucas, 2023."
    )
    return reported(args, run, values, trainings, summary)


if __name__ == "__main__":
    main()
