r"""A number added to all logits changes no prediction and nearly every raw-logit map: figures, table and detectors.

    python recipes/logit_shift.py                       # a small network trained on images drawn here, a minute
    python recipes/logit_shift.py --data DIR --model torchvision:squeezenet1_1 --layer features.12 --weights FILE
    python recipes/logit_shift.py --data DIR --model timm.models.efficientnet:_gen_mobilenet_v1 --layer blocks.4 \
        --model-options variant=mobilenetv1_100 channel_multiplier=0.75 pad_type=same bn_eps=1e-3 \
        --mean .5 .5 .5 --std .5 .5 .5 --weights FILE

Figures 3 to 5 of Lerma and Lucas, "A vulnerability of attribution methods using pre-softmax scores" (2023,
https://arxiv.org/abs/2307.03305): ``t = K sum_k A_k(i,j)`` is added to all logits of a trained classifier, ``K = 10``.
The paper expects Grad-CAM's raw map to go to the corner ``(i,j)``. Its equations say otherwise: gradients are averaged
over positions, so that the map turns into the sum of the activations wherever the corner is. HiResCAM's peak does go
there. Both are shown. Centred and post-softmax scores do not see ``t``, ``score(z + t) = score(z)``, nor do their
gradients: what is made of these is immune, by proof; the rest is measured, before any ReLU, in float64.

Data: nothing, or a folder with photographs in ``val/<class>/*``; ``--pretrained`` downloads the library's weights.
Output: three tables on the screen, and a run folder with ``report.html``, ``results.json``, ``maps.png`` (figures 3 and
5) and ``second_class.png`` (figure 4: raw maps of the altered network are the same for every class).

Expected (one thread of a 2-core x86-64 that others use too, torch 2.15; photographs of ImageNet):

                                        drawn here    SqueezeNet 1.1      MobileNet 0.75
    images                              100           100                 40
    largest t                           41            2.7e4               1.0e4
    softmax, float64                    7e-16         4e-13               2e-13
    softmax, float32                    2e-7          2e-4, 0.11 eps |t|  7e-5, 0.07 eps |t|
    Grad-CAM's correlation with sum A   0.987         0.99999             0.99999
    Grad-CAM's peak at the corner       0-23 %        0 %                 0 %
    HiResCAM's peak at the corner       91-100 %      100 %               100 %
    centred maps, float64               0             3e-11               8e-12
    suspicion of the clean network      0.005         0.024               0.001
    of the altered one                  1.77          1.00                1.00
    located at layer and position, repaired: raw maps are the clean network's centred ones, on all three
    time                                1 min         10 min              7 min

Not all maps move alike: raw HiResCAM keeps a rank correlation of 0.97 on SqueezeNet while its peak is at the corner on
all photographs, and Grad-CAM+, whose weights are positive already, one of 0.91. SqueezeNet's rows are not edited: a
ReLU follows them.
"""

from __future__ import annotations

import common.threads  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightning_xai as xai
from common.data.images import image_data
from common.data.planted import CLASSES, planted_evidence
from common.networks import model_options
from common.options import DataOptions, ModelOptions, RunOptions, add_options, built
from common.planted_network import STANDARD, Standard, standardized, trained
from common.run import Run, first_images
from lightning_xai.baselines import to_pixels
from lightning_xai.networks import create_classifier
from lightning_xai.report import Cell, Picture, Results, Table
from lightning_xai.visualization import Panel, overlay
from papers.logit_shift.attacks import PositionShift
from papers.logit_shift.maps import MOVED, SCORES, Subject, attacks_on, layer_in, paper_numbers
from papers.logit_shift.maps import sensitivity as sensitivity_of
from papers.logit_shift.maps import verdicts as verdicts_of


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, DataOptions(batch_size=16), ModelOptions())
    parser.add_argument("--position", type=int, nargs=2, default=(0, 0), help="row and column that t is taken from")
    parser.add_argument("--strength", type=float, default=10.0, help="K; 10 in the paper")
    parser.add_argument("--n-images", type=int, default=100, help="images for the paper's numbers")
    parser.add_argument("--n-compared", type=int, default=16, help="images for the table of methods")
    parser.add_argument("--n-drawn", type=int, default=6, help="images in the figures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    add_options(parser, RunOptions(Path("runs/logit_shift")))
    args = parser.parse_args(argv)
    if args.data is not None and not (args.model and args.layer):
        parser.error("--data expected --model and --layer beside it.")
    if args.data is None and (args.model or args.weights):
        parser.error("--model and --weights expected --data beside them.")
    if args.fast_dev_run:
        args.n_images, args.n_compared, args.n_drawn = 8, 4, 2
    return args


def prepared(args: argparse.Namespace) -> tuple[Subject, list[str], Standard]:
    """The classifier with its images, the names of the classes, and mean and deviation of the images."""
    if args.data is None:
        drawn = planted_evidence(torch.arange(args.n_images) % len(CLASSES), seed=args.seed + 1)
        model, layer = trained(args.seed, 256 if args.fast_dev_run else 1536), args.layer or "6"
        names, images = list(CLASSES), standardized(drawn.images)
        standard: Standard = STANDARD
    else:
        options = model_options(args.model_options)
        model = create_classifier(args.model, pretrained=args.pretrained, weights=args.weights, **options).eval()
        data, layer = image_data(built(DataOptions, args), built(ModelOptions, args), seed=args.seed), args.layer
        names, standard = data.classes, (data.mean, data.std)
        (images,) = first_images(data.test_dataloader(), args.n_images, 1)
    # Real arithmetic is what proofs are about: in float32 a shift of some thousands costs four digits.
    return (
        Subject(model.double().to(args.device), images.double().to(args.device), layer, args.batch_size),
        names,
        standard,
    )


def draw(subject: Subject, names: list[str], standard: Standard, edit: PositionShift, folder: Path) -> list[Picture]:
    """The paper's figures: ``maps.png`` (3 and 5) of the predicted class, ``second_class.png`` (4) of the next one."""
    pixels = to_pixels(subject.images, *standard)
    models = {"clean": subject.model, "altered": edit(subject.model)}
    maps: dict[str, dict[str, Tensor]] = {}
    for rank, targets in {"predicted": None, "second": xai.scores.second_best}.items():
        for state, model in models.items():
            methods = _drawn_methods(layer_in(model, subject.layer), state)
            found = xai.explain(model, subject.images, targets, attributions=methods)
            maps.setdefault(rank, {}).update({name: overlay(pixels, one).cpu() for name, one in found.items()})
    facts = _facts(subject, names)
    columns = [f"{method}\n{score}, {state}" for method in _DRAWN for score in _SHOWN for state in models]
    title = f"Maps of the predicted class; altered: t = {edit.strength:g} sum_k A_k{edit.position} on all logits"
    Panel(pixels.cpu(), {one: maps["predicted"][one] for one in columns}, facts).figure(title).savefig(
        folder / "maps.png"
    )
    first, chosen = columns[1], columns[: len(_SHOWN) * len(models)]
    pictures = {f"{first}, predicted class": maps["predicted"][first]}
    pictures |= {f"{one}, second class": maps["second"][one] for one in chosen}
    second = "Maps of the second class beside one of the predicted class"
    Panel(pixels.cpu(), pictures, facts).figure(second).savefig(folder / "second_class.png")
    raw = "raw maps of the altered network are the same for every class"
    return [Picture("maps.png", f"{title}."), Picture("second_class.png", f"{second}: {raw}.")]


_DRAWN = {"Grad-CAM": xai.GradCAM, "HiResCAM": xai.HiResCAM}
_SHOWN = ("raw logit", "post-softmax")


def _drawn_methods(layer: str, state: str) -> dict[str, xai.Attribution]:
    return {
        f"{name}\n{score}, {state}": method(layer, score=SCORES[score])
        for name, method in _DRAWN.items()
        for score in _SHOWN
    }


def _facts(subject: Subject, names: list[str]) -> dict[str, list[Any]]:
    with torch.no_grad():
        best = subject.model(subject.images).softmax(1).topk(2)
    first, second = ([names[i] for i in column] for column in best.indices.T.tolist())
    return {"prediction": first, "probability": best.values[:, 0].tolist(), "second": second}


def say(text: str) -> None:
    """Print at once: with large networks on a CPU each part takes minutes."""
    print(text, flush=True)


def numbers_table(numbers: dict[str, dict[str, float]], strength: float) -> Table:
    """The paper's edit, by the position that t is taken from."""
    rows = [[name, *(f"{one[name]:.3g}" for one in numbers.values())] for name in next(iter(numbers.values()))]
    return Table(f"The paper's edit, K = {strength:g}", ["", *numbers], rows)


def sensitivity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Every method with every score under every edit."""
    edits = list(dict.fromkeys(row["edit"] for row in rows))
    least = min(row["agreement"] for row in rows if row["proved"])
    found: dict[tuple[str, str], list[Cell]] = {}
    for row in rows:
        found.setdefault((row["method"], row["score"]), []).append(_cell(row))
    return Table(
        "Rank correlation with the clean map, and share of images whose peak moves",
        ["method", "score", *edits],
        [[*names, *cells] for names, cells in found.items()],
        f"immune: proved, see the head of the script; the least of these correlations, measured: {least:.7f}",
    )


def _cell(row: dict[str, Any]) -> str:
    if row["proved"]:
        return "immune"
    moved = "moved " if row["agreement"] < MOVED or row["peaks"] > 0.5 else ""
    return f"{moved}{row['agreement']:.2f}, {row['peaks']:.0%}"


def verdicts_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What the detectors say of each model, altered and repaired."""
    keys = ["model", "alone", "at layer", "at image", "with reference", "located", "repair"]
    return Table(
        "Verdicts; at layer and at image: suspicion; repair: correlation of raw maps with the clean centred ones",
        keys,
        [[row.get(key) for key in keys] for row in rows],
        digits=4,
    )


def main(argv: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    args = parse(argv)
    run = Run(built(RunOptions, args), vars(args), free=("batch_size", "device"))
    subject, names, standard = prepared(args)
    position = tuple(args.position)
    few = Subject(subject.model, subject.images[: args.n_compared], subject.layer, args.batch_size)
    drawn = Subject(subject.model, subject.images[: args.n_drawn], subject.layer, args.batch_size)
    opposite = tuple(-1 - one for one in position)
    edit = PositionShift(subject.layer, position, args.strength)
    pictures = draw(drawn, names, standard, edit, run.folder)
    altered = attacks_on(subject, position, args.strength)
    say(f"Figures drawn; edits: {', '.join(altered)}. Next, {len(subject.images)} images under the paper's edit.")
    places = (position, opposite)
    numbers = run.part(
        "numbers", lambda: {str(place): paper_numbers(subject, place, args.strength) for place in places}
    )
    say(f"Next, all methods on {len(few.images)} images.")
    sensitivity = run.part("sensitivity", lambda: sensitivity_of(few, altered))
    say("Next, the detectors; tracing a shift back through all layers takes most of the time.")
    verdicts = run.part("verdicts", lambda: verdicts_of(subject, altered))
    kind = "photographs" if args.data else "generated images"
    return run.finish(
        "Logit shifts",
        f"{args.model or 'A small network trained here'} before and after a number is added to all its logits, on "
        f"{len(subject.images)} {kind}, of which {len(few.images)} for the table of methods. "
        "After Lerma and Lucas, 2023.",
        [numbers_table(numbers, args.strength), sensitivity_table(sensitivity), verdicts_table(verdicts)],
        pictures,
        {"numbers": numbers, "sensitivity": sensitivity, "verdicts": verdicts, "images": len(subject.images)},
    )


if __name__ == "__main__":
    main()
