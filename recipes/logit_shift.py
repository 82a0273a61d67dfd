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

What to expect, claim by claim: ``papers/logit_shift/README.md``. Time of one core: 1 minute without data, 10 for
SqueezeNet, 7 for MobileNet. SqueezeNet's rows are not edited: a ReLU follows them.
"""

from __future__ import annotations

import common.threads  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import lightning_xai as xai
from common.options import DataOptions, ModelOptions, RunOptions, device_option, option, parsed, require_both
from common.run import Run, first_images
from common.subject import drawn_here, given, planted
from lightning_xai.baselines import to_pixels
from lightning_xai.report import Cell, Picture, Results, Table
from lightning_xai.visualization import Panel, overlay
from papers.logit_shift.attacks import PositionShift
from papers.logit_shift.maps import MOVED, SCORES, Explained, attacks_on, layer_in, paper_numbers
from papers.logit_shift.maps import sensitivity as sensitivity_of
from papers.logit_shift.maps import verdicts as verdicts_of


@dataclass(frozen=True)
class Settings:
    """The experiment."""

    data: DataOptions = DataOptions(batch_size=16)
    model: ModelOptions = ModelOptions()
    run: RunOptions = RunOptions(Path("runs/logit_shift"))
    position: tuple[int, int] = option((0, 0), "row and column that t is taken from")
    strength: float = option(10.0, "K; 10 in the paper")
    n_images: int = option(100, "images for the paper's numbers")
    n_compared: int = option(16, "images for the table of methods")
    n_drawn: int = option(6, "images in the figures")
    device: str = device_option()

    def __post_init__(self) -> None:
        require_both(self.data, self.model, layer=True)


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    found = parsed(Settings, __doc__, argv)
    return replace(found, n_images=8, n_compared=4, n_drawn=2) if found.run.fast_dev_run else found


def prepared(settings: Settings) -> Explained:
    """The classifier with its images, in float64."""
    run, n = settings.run, settings.n_images
    compute: dict[str, Any] = {"device": settings.device, "batch_size": settings.data.batch_size}
    if settings.data.data is None:
        subject = drawn_here(run.run, run.seed, small=run.fast_dev_run, layer=settings.model.layer, **compute)
        images = planted(n, run.seed + 1).images
    else:
        subject, data = given(settings.data, settings.model, seed=run.seed, **compute)
        (images,) = first_images(data.test_dataloader(), n, 1)
    # Real arithmetic is what proofs are about: in float32 a shift of some thousands costs four digits.
    fields = vars(subject) | {"network": subject.network.double()}
    return Explained(**fields, images=images.double().to(settings.device))


def draw(subject: Explained, edit: PositionShift, folder: Path) -> list[Picture]:
    """The paper's figures: ``maps.png`` (3 and 5) of the predicted class, ``second_class.png`` (4) of the next one."""
    pixels = to_pixels(subject.images, subject.mean, subject.std)
    models = {"clean": subject.network, "altered": edit(subject.network)}
    maps: dict[str, dict[str, Tensor]] = {}
    for rank, targets in {"predicted": None, "second": xai.scores.second_best}.items():
        for state, model in models.items():
            methods = _drawn_methods(layer_in(model, subject.layer), state)
            found = xai.explain(model, subject.images, targets, attributions=methods)
            maps.setdefault(rank, {}).update({name: overlay(pixels, one).cpu() for name, one in found.items()})
    facts = _facts(subject)
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


def _facts(subject: Explained) -> dict[str, list[Any]]:
    best = subject.predict(subject.images).softmax(1).topk(2)
    first, second = ([subject.classes[i] for i in column] for column in best.indices.T.tolist())
    return {"prediction": first, "probability": best.values[:, 0].tolist(), "second": second}


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
    settings = parse(argv)
    run = Run(settings.run, settings, free=("batch_size", "device"))
    subject, position, strength = prepared(settings), settings.position, settings.strength
    few, drawn = (replace(subject, images=subject.images[:n]) for n in (settings.n_compared, settings.n_drawn))
    pictures = draw(drawn, PositionShift(subject.layer, position, strength), run.folder)
    altered = attacks_on(subject, position, strength)
    # said at once: with large networks on a CPU each part takes minutes
    images = f"{len(subject.images)} images under the paper's edit"
    print(f"Figures drawn; edits: {', '.join(altered)}. Next, {images}.", flush=True)
    places = (position, (-1 - position[0], -1 - position[1]))
    numbers = run.part("numbers", lambda: {str(place): paper_numbers(subject, place, strength) for place in places})
    print(f"Next, all methods on {len(few.images)} images.", flush=True)
    sensitivity = run.part("sensitivity", lambda: sensitivity_of(few, altered))
    print("Next, the detectors; tracing a shift back through all layers takes most of the time.", flush=True)
    verdicts = run.part("verdicts", lambda: verdicts_of(subject, altered))
    kind = "photographs" if settings.data.data else "generated images"
    return run.finish(
        "Logit shifts",
        f"{subject.name} before and after a number is added to all its logits, on {len(subject.images)} {kind}, of "
        f"which {len(few.images)} for the table of methods. After Lerma and Lucas, 2023.",
        [numbers_table(numbers, strength), sensitivity_table(sensitivity), verdicts_table(verdicts)],
        pictures,
        {"numbers": numbers, "sensitivity": sensitivity, "verdicts": verdicts, "images": len(subject.images)},
    )


if __name__ == "__main__":
    main()
