"""How well logit shifts are told from clean models: clean models x edits x strengths, with and without a reference.

    python recipes/integrity_roc.py                             # networks trained here on generated images
    python recipes/integrity_roc.py --data DIR                  # real weights, and networks trained on CIFAR-10
    python recipes/integrity_roc.py --data DIR --only real      # one group: small, tuned, real or photos; more later,
                                                                # with --resume

Data: nothing, or a folder with ``weights/cifar10_resnet20.safetensors``, ``cifar10_resnet44``,
``imagenet_squeezenet1_1`` and ``imagenet_mobilenetv1_075_fp16``, ``cifar10_train.npz``, ``cifar10_test.npz`` (JPEG
files end to end as ``jpeg``, ``offsets``, ``labels``) and photographs in ``imagenet/val/*/*.JPEG``.
Output: tables on the screen, and a run folder with ``results.json`` (every pair of model and edit) and ``report.html``.

Expected, with data, within half an hour on one core of a busy AMD EPYC (torch 2.15); an edit counts as seen where
the raw Grad-CAM's or HiResCAM's rank correlation with the clean map, before any ReLU, is under 0.9; the threshold is
the default, 0.1.

    37 clean checks of ResNet-20 (also tuned, rounded to bfloat16, with folded BatchNorms), ResNet-44, MobileNet,
    SqueezeNet's last features and small networks trained here with softmax and cross-entropy: no false alarm, suspicion
    2.5e-6 to 0.084 (the largest after 150 steps of AdamW from scratch; 4e-4 to 0.021 on the two of ImageNet).
    665 edits that are seen: all flagged, AUC 1.0000 for each kind.
    733 that are not: 22.9 % flagged, by strength 12.5 % at K = 0.003, 10.4 % at 0.01, 19.6 % at 0.03, 23.4 % at 0.1,
    50.0 % at 0.3, 83.3 % at 1. Since then random rows are recognised; of this only the group of small networks was run
    again: all 309 that are seen flagged, and of 299 that are not 4, of rows at K = 0.3, are told as "cannot tell".
    With a reference: all that are seen, and 95.2 % of the others. Those missed are of the network whose weights were
    rounded to bfloat16, for which the tolerance is wider; they lower a rank correlation by 0.033 at most.
    5 clean checks of small networks trained with sigmoids and of SqueezeNet's inner layer: "cannot tell", suspicion
    0.16 to 0.42. Of the 116 edits of these that are seen 89 % are flagged, 9 % "cannot tell", and two pass as clean: a
    shift that takes off what the sigmoids' training had put on. With a reference all are found.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms.v2.functional import center_crop, normalize, pil_to_tensor, resize

from common.data.cifar import CifarResNet, cifar10
from common.data.generated import GeneratedImages
from common.networks import create_classifier, load_weights
from common.options import RunOptions, add_options, built
from common.run import Run
from lightning_xai.integrity import Fingerprint, Threshold, Verdict, inspect_model
from lightning_xai.report import Results, Table
from papers.logit_shift.attacks import Attack, PositionShift, RandomShift, RowEdit, UniformShift, WorstCaseShift

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the worst case, instead of a strength
VISIBLE = 0.9  # below this rank correlation with the clean map, before any ReLU, an edit is seen
STEPS = {"small": 150, "tuned": 25}
PROBES = {"small": 32, "tuned": 16, "real": 16, "photos": 8}  # fewer where a pass is dear
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Subject:
    """A clean model with the probes and the layers at which it is checked."""

    name: str
    model: nn.Module
    images: Tensor
    layers: tuple[str, ...]


@dataclass
class Outcome:
    """One check of one model."""

    model: str
    layer: str
    edit: str
    strength: float
    suspicion: float
    verdict: str
    agreement: float  # with the clean model's raw maps, the smaller of Grad-CAM and HiResCAM
    zero_sum_agreement: float
    against_reference: str


class SmallNet(nn.Module):
    """Three convolutions with BatchNorm, mean pooling, a linear head."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.layers = nn.Sequential(*(self._layer(*pair) for pair in itertools.pairwise(widths)))
        self.head = nn.Linear(64, classes)

    @staticmethod
    def _layer(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,3,32,32) to logits (N,K)."""
        return self.head(self.layers(images).mean((2, 3)))


def generated(split: str, n: int) -> tuple[Tensor, Tensor]:
    """Generated images (n,3,32,32), standardised, and their labels (n,)."""
    drawn = GeneratedImages(n, split=split, size=32)
    return normalize(drawn.images / 255, *map(list, HALF)), drawn.labels


def photographs(data: Path, n: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Photographs (n,3,224,224) of different classes, standardised."""
    paths = sorted((data / "imagenet" / "val").glob("*/*.JPEG"))
    taken = paths[:: max(len(paths) // n, 1)][:n]
    images = [center_crop(resize(pil_to_tensor(Image.open(path).convert("RGB")), [256]), [224]) for path in taken]
    return normalize(torch.stack(images) / 255, list(mean), list(std))


def sigmoids(logits: Tensor, labels: Tensor) -> Tensor:
    """Each class against the rest."""
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, logits.shape[1]).float())


TRAININGS: dict[str, tuple[Loss, Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (F.cross_entropy, partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "SGD, weight decay": (F.cross_entropy, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)),
    "AdamW": (F.cross_entropy, partial(torch.optim.AdamW, lr=3e-3)),
    "label smoothing": (partial(F.cross_entropy, label_smoothing=0.1), partial(torch.optim.AdamW, lr=3e-3)),
    "sigmoids": (sigmoids, partial(torch.optim.AdamW, lr=3e-3)),
}


def trained(
    model: nn.Module, images: Tensor, labels: Tensor, training: str, *, steps: int, rate: float = 1.0
) -> nn.Module:
    """The model after some steps with batches of 64, in evaluation mode."""
    loss, make = TRAININGS[training]
    optimizer = make(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= rate
    model.train()
    for step in range(steps):
        start = step * 64 % (len(images) - 63)
        optimizer.zero_grad()
        loss(model(images[start : start + 64]), labels[start : start + 64]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def small(data: Path | None, steps: int) -> Iterator[Subject]:
    """Networks trained here from scratch, with two seeds for each training."""
    source: Callable[[str, int], tuple[Tensor, Tensor]] = generated if data is None else partial(cifar10, data)
    (images, labels), (probes, _) = (
        source("train", min(64 * steps, 4096)),
        source("test" if data else "val", PROBES["small"]),
    )
    for seed in (0, 1):
        for training in TRAININGS:
            torch.manual_seed(seed)
            model = trained(SmallNet(), images, labels, training, steps=steps)
            yield Subject(f"SmallNet, {training}, seed {seed}", model, probes, ("layers.2", "layers.1"))


def resnet(data: Path, n: int) -> nn.Module:
    """A ResNet with its weights, in evaluation mode."""
    model = CifarResNet(n)
    load_weights(model, data / "weights" / f"cifar10_resnet{6 * n + 2}.safetensors")
    return model.eval()


def tuned(data: Path) -> Iterator[Subject]:
    """ResNet-20, trained further in several ways."""
    images, labels = cifar10(data, "train", 64 * STEPS["tuned"])
    probes, _ = cifar10(data, "test", PROBES["tuned"])
    for training in TRAININGS:
        model = trained(resnet(data, 3), images, labels, training, steps=STEPS["tuned"], rate=0.1)
        yield Subject(f"ResNet-20 tuned, {training}", model, probes, ("layer3", "layer2"))


def folded(model: nn.Module) -> nn.Module:
    """A ResNet with every BatchNorm in the weights of the convolution before it."""
    for module in model.modules():
        for name in ("1", "2"):
            conv, norm = getattr(module, f"conv{name}", None), getattr(module, f"bn{name}", None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, f"conv{name}", fuse_conv_bn_eval(conv, norm))
                setattr(module, f"bn{name}", nn.Identity())
    return model


def real(data: Path) -> Iterator[Subject]:
    """ResNet-20 as it is, rounded to bfloat16, and with folded BatchNorms; ResNet-44 as it is."""
    probes, _ = cifar10(data, "test", PROBES["real"])
    changes: dict[str, Callable[[nn.Module], nn.Module]] = {
        "": lambda model: model,
        ", bfloat16": lambda model: model.bfloat16().float(),
        ", folded": folded,
    }
    for change, apply in changes.items():
        yield Subject(f"ResNet-20{change}", apply(resnet(data, 3)), probes, ("layer3", "layer2"))
    yield Subject("ResNet-44", resnet(data, 7), probes, ("layer3", "layer2"))


def photos(data: Path) -> Iterator[Subject]:
    """The classifiers of ImageNet, on photographs."""
    weights = data / "weights"
    squeezenet = create_classifier("torchvision:squeezenet1_1", weights=weights / "imagenet_squeezenet1_1.safetensors")
    yield Subject(
        "SqueezeNet", squeezenet.eval(), photographs(data, PROBES["photos"], *IMAGENET), ("features.12", "features.4")
    )
    options: dict[str, Any] = {
        "variant": "mobilenetv1_100",
        "channel_multiplier": 0.75,
        "pad_type": "same",
        "bn_eps": 1e-3,
    }
    mobilenet = create_classifier(
        "timm.models.efficientnet:_gen_mobilenet_v1",
        weights=weights / "imagenet_mobilenetv1_075_fp16.safetensors",
        **options,
    )
    yield Subject("MobileNet", mobilenet.eval(), photographs(data, PROBES["photos"], *HALF), ("blocks.4", "blocks.2"))


def edits(subject: Subject, layer: str) -> Iterator[tuple[str, float, Attack]]:
    """Every edit at a layer, by name and strength."""
    kinds: dict[str, Callable[[float], Attack]] = {
        "position": lambda strength: PositionShift(layer, (0, 0), strength),
        "uniform": lambda strength: UniformShift(layer, strength),
        "random": lambda strength: RandomShift(layer, strength),
        "rows": lambda strength: RowEdit(subject.images, strength),
    }
    for name, make in kinds.items():
        for strength in STRENGTHS:
            yield name, strength, make(strength)
    for share in SHARES:
        yield "worst case", share, WorstCaseShift(layer, subject.images, share)


def outcomes(subject: Subject) -> Iterator[Outcome]:
    """The clean model and all its edits, at each layer."""
    for layer in subject.layers:
        fingerprint = Fingerprint.of(subject.model, subject.images, layer=layer)
        yield _outcome(subject, fingerprint, "clean", 0.0, subject.model)
        for name, strength, attack in edits(subject, layer):
            with suppress(ValueError):  # rows that something non-linear follows cannot be edited
                yield _outcome(subject, fingerprint, name, strength, attack(subject.model))


def _outcome(subject: Subject, fingerprint: Fingerprint, name: str, strength: float, model: nn.Module) -> Outcome:
    layer = fingerprint.layer if fingerprint.layer in dict(model.named_modules()) else f"model.{fingerprint.layer}"
    inspection = inspect_model(model, subject.images, layer=layer)
    comparison = fingerprint.compare(model, subject.images, layer=layer)
    return Outcome(
        model=subject.name,
        layer=fingerprint.layer,
        edit=name,
        strength=strength,
        suspicion=inspection.suspicion,
        verdict=inspection.verdict.name,
        agreement=min(float(one.nanquantile(0.5)) for one in comparison.raw_agreement.values()),
        zero_sum_agreement=min(float(one.nanquantile(0.5)) for one in comparison.zero_sum_agreement.values()),
        against_reference=comparison.verdict.name,
    )


def area_under_curve(clean: list[float], edited: list[float]) -> float:
    """Probability that an edited model is more suspicious than a clean one, ties counted half."""
    first, second = torch.tensor(edited)[:, None], torch.tensor(clean)[None]
    return float(((first > second).double() + 0.5 * (first == second).double()).mean())


def tables(found: Sequence[Outcome]) -> list[Table]:
    """Of false alarms, of edits that users see, and of smaller ones."""
    clean = [one for one in found if one.edit == "clean"]
    untold = {(one.model, one.layer) for one in clean if one.verdict == Verdict.MAPS_DIFFER.name}
    edited = [one for one in found if one.edit != "clean"]
    return [
        _table(title, list(filter(chosen, clean)), list(filter(chosen, edited)))
        for title, chosen in {
            "Models that can be told without a reference": lambda one: (one.model, one.layer) not in untold,
            "Models that cannot, since their clean form shares a lot": lambda one: (one.model, one.layer) in untold,
        }.items()
        if any(map(chosen, clean))
    ]


def _table(title: str, clean: list[Outcome], edited: list[Outcome]) -> Table:
    suspicions = sorted(one.suspicion for one in clean)
    alarms = sum(one.verdict == Verdict.LOGIT_SHIFT.name for one in clean)
    told = f"{len(clean)} clean checks, {alarms} false alarms, suspicion {suspicions[0]:.2g} to {suspicions[-1]:.2g}"
    rows = []
    for seen in (True, False):
        these = [one for one in edited if (one.agreement < VISIBLE) == seen]
        for edit in dict.fromkeys(one.edit for one in these):
            rows.append([edit, *_rates([one for one in these if one.edit == edit], seen, suspicions)])
    unseen = [one for one in edited if one.agreement >= VISIBLE and one.edit != "worst case"]
    for strength in sorted({one.strength for one in unseen}):
        chosen = [one for one in unseen if one.strength == strength]
        rows.append([f"all at K = {strength:g}", *_rates(chosen, False, suspicions)])
    heads = ("edit", "seen", "n", "AUC", "flagged", "maps differ", "with reference")
    return Table(title, heads, rows, f"{told}, threshold {Threshold()}.")


def _rates(chosen: list[Outcome], seen: bool, clean: list[float]) -> tuple[str, ...]:
    def rate(verdicts: list[str], verdict: Verdict) -> str:
        return f"{verdicts.count(verdict.name) / len(verdicts):.1%}"

    alone, referred = [one.verdict for one in chosen], [one.against_reference for one in chosen]
    area = area_under_curve(clean, [one.suspicion for one in chosen])
    told = rate(alone, Verdict.LOGIT_SHIFT), rate(alone, Verdict.MAPS_DIFFER), rate(referred, Verdict.LOGIT_SHIFT)
    return "yes" if seen else "no", str(len(chosen)), f"{area:.4f}", *told


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with weights and images; without it, networks trained here")
    parser.add_argument("--only", choices=["small", "tuned", "real", "photos"], help="one group of models")
    add_options(parser, RunOptions(Path("runs/integrity_roc")))
    args = parser.parse_args(arguments)
    groups: dict[str, Iterator[Subject]] = {"small": small(args.data, 20 if args.fast_dev_run else STEPS["small"])}
    if args.data is not None:
        groups |= {"tuned": tuned(args.data), "real": real(args.data), "photos": photos(args.data)}
    elif args.only not in (None, "small"):
        parser.error(f"--only {args.only} expected --data")
    run = Run(built(RunOptions, args), vars(args), free=("only",))
    few = 1 if args.fast_dev_run else None
    for name, subjects in groups.items():
        if args.only in (None, name):
            run.part(
                name,
                lambda subjects=subjects: [  # type: ignore[misc]
                    asdict(one) for subject in islice(subjects, few) for one in outcomes(subject)
                ],
            )
    found = [Outcome(**one) for name in groups if run.has(name) for one in run.part(name, list)]
    summary = f"{len(found)} pairs of a network and an edit of its logits; seen: rank correlation under {VISIBLE}."
    return run.finish(
        "Logit shifts told from clean models", summary, tables(found), values={"outcomes": [*map(asdict, found)]}
    )


if __name__ == "__main__":
    main()
