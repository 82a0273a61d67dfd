"""How often honest models are accused by the check of their logits, and which edits it finds: measured, not defined.

    python recipes/integrity_roc.py                     # networks trained here on generated images
    python recipes/integrity_roc.py --data DIR          # linear probes, tuned and given weights, ImageNet's too
    python recipes/integrity_roc.py --data DIR --only probes    # one group; more later, with --resume

Data: nothing, or a folder with ``weights/cifar10_resnet20.safetensors``, ``cifar10_resnet44``,
``imagenet_squeezenet1_1`` and ``imagenet_mobilenetv1_075_fp16``, ``cifar10_train.npz``, ``cifar10_test.npz`` (JPEG
files end to end as ``jpeg``, ``offsets``, ``labels``) and photographs in ``imagenet/val/*/*.JPEG``.
Output: tables on the screen, and a run folder with ``results.json`` (every check) and ``report.html``.

Two kinds of statements are kept apart. By definition: a model is called clean where raw and centred maps have a rank
correlation of at least 0.975 on every probe, so that no edit of a model that was clean moved a map under 0.9 and is
called clean; the column "moved, called clean" tests the program. Measured: how often an honest model is accused (a
logit shift or a false gradient), by number of classes with 95 % intervals (Clopper and Pearson), and how often an edit
that moved a map is. What is neither clean nor accused is told as "maps differ".

No run of all checks has been committed yet: the rate of false alarms is not known to better than some 2 %.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections import Counter, OrderedDict
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
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchmetrics.functional.classification import binary_auroc
from torchvision.transforms.v2.functional import center_crop, normalize, pil_to_tensor, resize

from common.data.cifar import CifarResNet, cifar10
from common.data.generated import GeneratedImages
from common.networks import create_classifier, load_weights
from common.options import RunOptions, add_options, built
from common.run import Run
from lightning_xai import GradCAM, HiResCAM, explain
from lightning_xai.integrity import Fingerprint, OneClassError, Verdict, inspect_model
from lightning_xai.ranks import rank_correlation
from lightning_xai.report import Results, Table
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import find_layer, tapped
from papers.logit_shift.attacks import (
    Attack,
    PositionShift,
    RandomShift,
    RowEdit,
    UniformShift,
    WorstCaseShift,
)

CLASSES = (2, 3, 10, 100)
PROBED = {2: 64, 3: 36, 10: 34, 100: 22}  # linear probes by number of classes; each comes with another form of head
TRAINED = {2: 12, 3: 9, 10: 9, 100: 6}  # small networks, two layers each
TUNED = {2: 3, 3: 2, 10: 1, 100: 1}
MOVED = 0.1  # one minus the rank correlation with the honest raw map, before any ReLU, above which an edit moved it
ATTACKED = 5  # one honest model in so many is attacked, too
STEPS = {"small": 120, "tuned": 25}
PROBE_STEPS = 50, 150
PROBES = {"small": 32, "tuned": 24, "real": 16, "photos": 8, "probes": 32}  # fewer where a pass is dear
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Subject:
    """An honest model with the probes and the layers at which it is checked."""

    name: str
    kind: str
    model: nn.Module
    images: Tensor
    layers: tuple[str, ...]


@dataclass
class Check:
    """One check of one model."""

    model: str
    kind: str
    classes: int
    layer: str
    edit: str  # empty for the honest model
    verdict: str
    suspicion: float
    worst: float  # disagreement of raw and centred maps, of any probe
    stands_apart: str | None
    moved: float | None = None  # one minus the rank correlation with the honest model's raw map, of any probe
    was_clean: bool | None = None
    against_reference: str | None = None


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


def task(images: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images and labels of so many classes: some of the ten, all, or each in ten tints."""
    generator = torch.Generator().manual_seed(seed)
    if classes > 10:
        tint = torch.randint(10, (len(images),), generator=generator)
        tints = 0.8 * torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)[::3]
        return images + tints[tint % len(tints), :, None, None], labels * 10 + tint
    chosen = torch.randperm(10, generator=generator)[:classes]
    kept = torch.isin(labels, chosen)
    place = torch.zeros(10, dtype=torch.long).scatter(0, chosen, torch.arange(classes))
    return images[kept], place[labels[kept]]


def small(data: Path | None, steps: int) -> Iterator[Subject]:
    """Networks trained here from scratch."""
    source: Callable[[str, int], tuple[Tensor, Tensor]] = generated if data is None else partial(cifar10, data)
    every, shown = source("train", 4096 if steps > 50 else 640), source("test" if data else "val", 400)
    for classes in CLASSES:
        for seed in range(TRAINED[classes]):
            images, labels = task(*every, classes, seed)
            probes, _ = task(*shown, classes, seed)
            torch.manual_seed(seed)
            training = list(TRAININGS)[seed % len(TRAININGS)]
            model = trained(SmallNet(classes), images, labels, training, steps=steps)
            kind = "trained for sigmoids" if training == "sigmoids" else "trained"
            yield Subject(
                f"SmallNet, {training}, {seed}", kind, model, probes[: PROBES["small"]], ("layers.2", "layers.1")
            )


def probed(head: nn.Module) -> nn.Sequential:
    """A head on the activations (N,64,8,8) of a frozen network, which stand for images."""
    return nn.Sequential(OrderedDict(layer=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head))


class Cosine(nn.Module):
    """Ten times the cosine of features and rows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(classes, 64))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N,K)."""
        return 10 * F.normalize(features, dim=1) @ F.normalize(self.rows, dim=1).T


class Prototypes(Cosine):
    """Negative squared distances of features and rows."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N,K)."""
        return -torch.cdist(features, self.rows).square()


class Behind(nn.Module):
    """A network, and an edit of its logits (N,K) and the activations (N,D,h,w) of a layer."""

    def __init__(self, model: nn.Module, layer: str, edit: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.layer, self.edit = copy.deepcopy(model), layer, edit
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The edited logits."""
        with tapped(find_layer(self.model, self.layer)) as outputs:
            logits = self.model(images)
        return self.edit(logits, outputs[-1])


def probes(data: Path) -> Iterator[Subject]:
    """Linear probes on the features of ResNet-20, and other forms of heads in turn."""
    net = resnet(data, 3)
    train, test = (cifar10(data, split, n) for split, n in (("train", 2500), ("test", 1500)))

    def features(images: Tensor) -> Tensor:
        with torch.no_grad(), tapped(net.layer3) as outputs:
            for batch in images.split(250):
                net(batch)
        return torch.cat(outputs)

    known = {split: features(images) for split, (images, _) in (("train", train), ("test", test))}
    for classes in CLASSES:
        if classes > 10:
            (tinted, labels), (shown, _) = task(*train, classes, 0), task(*test, classes, 0)
            inside, shown = (features(tinted), labels), features(shown)
        for seed in range(PROBED[classes]):
            if classes <= 10:
                inside, (shown, _) = (
                    task(known["train"], train[1], classes, seed),
                    task(known["test"], test[1], classes, seed),
                )
            torch.manual_seed(seed)
            training, steps = list(TRAININGS)[seed % 4], PROBE_STEPS[seed // 4 % 2]
            linear = trained(probed(nn.Linear(64, classes)), *inside, training, steps=steps)
            images = shown[: PROBES["probes"]]
            yield Subject(f"probe, {training}, {steps}, {seed}", "probe", linear, images, ("layer",))
            yield Subject(f"{seed}", *_other_head(net, linear, inside, classes, seed), images, ("model.layer",))


def _other_head(
    net: CifarResNet, linear: nn.Module, inside: tuple[Tensor, Tensor], classes: int, seed: int
) -> tuple[str, nn.Module]:
    """One of eight forms of honest heads, by its name; each behind nothing, so that layers have one name."""

    def fitted(head: nn.Module, training: str = "AdamW") -> nn.Module:
        return trained(probed(head), *inside, training, steps=150, rate=1.0 if training == "sigmoids" else 3.0)

    def rows() -> nn.Module:
        head = nn.Linear(64, classes)
        head.weight.data = net.linear.weight.data[torch.arange(classes) % 10]
        return probed(head)

    kinds: list[tuple[str, Callable[[], nn.Module]]] = [
        ("log-softmax", lambda: Behind(linear, "layer", lambda z, _: z.log_softmax(1))),
        ("reference class", lambda: Behind(linear, "layer", lambda z, _: z - z[:, :1])),
        ("cosine", lambda: fitted(Cosine(classes))),
        ("prototypes", lambda: fitted(Prototypes(classes))),
        ("sigmoids", lambda: fitted(nn.Linear(64, classes), "sigmoids")),
        ("untrained", lambda: probed(nn.Linear(64, classes))),
        ("restricted" if classes < 10 else "bfloat16", rows if classes < 10 else lambda: linear.bfloat16().float()),
        ("temperature", lambda: Behind(linear, "layer", lambda z, _: z / 4)),
    ]
    name, make = kinds[seed % len(kinds)]
    model = make()
    if not isinstance(model, Behind):
        model = Behind(model, "layer", lambda z, _: z)
    return name, model.eval().requires_grad_(False)


def resnet(data: Path, n: int) -> CifarResNet:
    """A ResNet with its weights, in evaluation mode."""
    model = CifarResNet(n)
    load_weights(model, data / "weights" / f"cifar10_resnet{6 * n + 2}.safetensors")
    return model.eval()


def tuned(data: Path) -> Iterator[Subject]:
    """ResNet-20 with a new head, all of it trained further."""
    train, test = (cifar10(data, split, n) for split, n in (("train", 1600), ("test", 300)))
    for classes in CLASSES:
        for seed in range(TUNED[classes]):
            images, labels = task(*train, classes, seed + 50)
            shown, _ = task(*test, classes, seed + 50)
            torch.manual_seed(seed)
            model, training = resnet(data, 3), list(TRAININGS)[seed % 3]
            model.linear = nn.Linear(64, classes)
            trained(model, images, labels, training, steps=STEPS["tuned"], rate=0.1)
            yield Subject(
                f"ResNet-20 tuned, {training}", "tuned", model, shown[: PROBES["tuned"]], ("layer3", "layer2")
            )


def folded(model: nn.Module) -> nn.Module:
    """A ResNet with every BatchNorm in the weights of the convolution before it."""
    for module in model.modules():
        for name in ("1", "2"):
            conv, norm = getattr(module, f"conv{name}", None), getattr(module, f"bn{name}", None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, f"conv{name}", fuse_conv_bn_eval(conv, norm))
                setattr(module, f"bn{name}", nn.Identity())
    return model


def pruned(model: nn.Module) -> nn.Module:
    """Half of each layer's weights set to zero, the smallest ones."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data[parameter.abs() < parameter.abs().median()] = 0
    return model


def quantised(model: nn.Module) -> nn.Module:
    """Each layer's weights rounded to 255 steps."""
    for parameter in model.parameters():
        step = parameter.abs().max() / 127
        parameter.data = (parameter / step).round() * step
    return model


def real(data: Path) -> Iterator[Subject]:
    """ResNet-20 as it is, rounded to bfloat16, and with folded BatchNorms; ResNet-44 as it is."""
    probes, _ = cifar10(data, "test", PROBES["real"])
    changes: dict[str, Callable[[nn.Module], nn.Module]] = {
        "": lambda model: model,
        ", bfloat16": lambda model: model.bfloat16().float(),
        ", folded": folded,
        ", pruned": pruned,
        ", 8 bits": quantised,
    }
    for change, apply in changes.items():
        yield Subject(f"ResNet-20{change}", "given", apply(resnet(data, 3)), probes, ("layer3", "layer2"))
    yield Subject("ResNet-44", "given", resnet(data, 7), probes, ("layer3", "layer2"))


def photos(data: Path) -> Iterator[Subject]:
    """The classifiers of ImageNet, on photographs."""
    weights = data / "weights"
    squeezenet = create_classifier("torchvision:squeezenet1_1", weights=weights / "imagenet_squeezenet1_1.safetensors")
    yield Subject(
        "SqueezeNet",
        "given",
        squeezenet.eval(),
        photographs(data, PROBES["photos"], *IMAGENET),
        ("features.12", "features.4"),
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
    yield Subject(
        "MobileNet", "given", mobilenet.eval(), photographs(data, PROBES["photos"], *HALF), ("blocks.4", "blocks.2")
    )


class OneClassLie(torch.autograd.Function):
    """The identity, whose gradient is another class's wherever one class is explained."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        """The logits."""
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The neighbour's where one class alone has any."""
        one = (gradient != 0).sum(1, keepdim=True) == 1
        return torch.where(one, gradient.roll(1, 1), gradient)


def edits(subject: Subject, layer: str) -> Iterator[tuple[str, nn.Module]]:
    """The red team's: shifts, disguised ones, partial ones, and lies in the backward pass."""
    model = subject.model
    size = lambda a: a.mean((2, 3)).sum(1, keepdim=True)  # noqa: E731
    attacks: dict[str, Attack] = {
        "position, K = 10": PositionShift(layer),
        "position, K = 0.1": PositionShift(layer, strength=0.1),
        "uniform, K = 1": UniformShift(layer, 1.0),
        "random, K = 0.1": RandomShift(layer, 0.1),
        "rows, K = 1": RowEdit(subject.images, 1.0),
        "rows, K = 10": RowEdit(subject.images, 10.0),
        "worst case, share 0.3": WorstCaseShift(layer, subject.images, 0.3),
    }
    for name, attack in attacks.items():
        with suppress(ValueError):  # rows that something non-linear follows cannot be edited
            yield name, attack(model)
    behind: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "on 4 of 10 classes": lambda z, a: z + 10 * size(a) * (z.argmax(1, keepdim=True) < 0.4 * z.shape[1]),
        "mean logit, s = 2.8": lambda z, a: z - 2.8 * z.mean(1, keepdim=True),
        "mean logit, s = 10": lambda z, a: z - 10 * z.mean(1, keepdim=True),
        "disguised as sigmoids": lambda z, a: z.log_softmax(1) + 0.7 + 0.3 * torch.sin(100 * size(a)),
        "disguised as rectified": lambda z, a: z - z.amin(1, keepdim=True),
        "off unlikely classes": lambda z, a: z - 10 * size(a) * (z.softmax(1) < 1e-3),
        "one-class lie": lambda z, a: OneClassLie.apply(z),
    }
    for name, edit in behind.items():
        yield name, Behind(model, layer, edit)


def raw_maps(subject: Subject, model: nn.Module, layer: str) -> dict[str, Tensor]:
    """Grad-CAM and HiResCAM of the raw logit and the honest model's classes, before any ReLU."""
    methods = {"Grad-CAM": GradCAM(layer, relu=False), "HiResCAM": HiResCAM(layer, relu=False)}
    return explain(model, subject.images, attributions=methods, score=pre_softmax)


def checks(subject: Subject, attacked: bool) -> list[Check]:
    """The honest model at each layer, and at the first one all its edits."""
    found = [_check(subject, layer, "", subject.model) for layer in subject.layers]
    layer = subject.layers[0]
    if not attacked:
        return found
    fingerprint = Fingerprint.of(subject.model, subject.images, layer=layer)
    before = raw_maps(subject, subject.model, layer)
    for name, model in edits(subject, layer):
        here = layer if layer in dict(model.named_modules()) else f"model.{layer}"
        one, after = _check(subject, here, name, model), raw_maps(subject, model, here)
        one.moved = max(float(1 - rank_correlation(before[name], after[name]).nan_to_num(0).min()) for name in before)
        one.was_clean = found[0].verdict == Verdict.CLEAN.name
        one.against_reference = fingerprint.compare(model, subject.images, layer=here).verdict.name
        found.append(one)
    return found


def _check(subject: Subject, layer: str, edit: str, model: nn.Module) -> Check:
    inspection = inspect_model(model, subject.images, layer=layer)
    with torch.no_grad():
        classes = model(subject.images[:1]).shape[1]
    return Check(
        model=subject.name,
        kind=subject.kind,
        classes=classes,
        layer=layer,
        edit=edit,
        verdict=inspection.verdict.name,
        suspicion=inspection.suspicion,
        worst=float(inspection.worst.max()),
        stands_apart=inspection.stands_apart,
    )


def rate(hits: int, n: int) -> str:
    """A share in percent, with the interval of Clopper and Pearson, which is exact for independent trials."""
    low, high = binomtest(hits, n).proportion_ci(method="exact")
    return f"{hits / n:.1%} [{low:.1%}, {high:.1%}]"


def tables(found: Sequence[Check]) -> list[Table]:
    """Of false alarms by number of classes and by kind, and of what became of each edit."""
    honest, edited = [one for one in found if not one.edit], [one for one in found if one.edit]
    heads = ("", "checks", "accused", "maps differ", "clean", "largest suspicion")
    by_classes = {
        f"{k} classes": [one for one in honest if one.classes == k] for k in sorted({c.classes for c in honest})
    }
    by_kind = {kind: [one for one in honest if one.kind == kind] for kind in dict.fromkeys(c.kind for c in honest)}
    return [
        Table(
            "Honest models, by number of classes",
            heads,
            [_honest(*row) for row in (by_classes | {"all": honest}).items()],
        ),
        Table("Honest models, by kind", heads, [_honest(*row) for row in by_kind.items()]),
        *([_edits(edited, honest)] if edited else []),
    ]


def _honest(name: str, chosen: list[Check]) -> list[str]:
    counted = Counter(one.verdict for one in chosen)
    accused = sum(Verdict[one.verdict].alarms for one in chosen)
    largest = max(one.suspicion for one in chosen)
    return [
        name,
        str(len(chosen)),
        rate(accused, len(chosen)),
        str(counted[Verdict.MAPS_DIFFER.name]),
        str(counted[Verdict.CLEAN.name]),
        f"{largest:.3f}",
    ]


def _edits(edited: list[Check], honest: list[Check]) -> Table:
    rows = []
    for name in dict.fromkeys(one.edit for one in edited):
        these = [one for one in edited if one.edit == name]
        moved = [one for one in these if one.moved is not None and one.moved > MOVED]
        scores = torch.tensor([one.suspicion for one in (*these, *honest)])
        labels = torch.tensor([1] * len(these) + [0] * len(honest))
        rows.append(
            [
                name,
                str(len(these)),
                str(len(moved)),
                str(sum(one.verdict == Verdict.CLEAN.name and bool(one.was_clean) for one in moved)),
                str(sum(one.verdict == Verdict.CLEAN.name and not one.was_clean for one in moved)),
                str(sum(one.verdict == Verdict.MAPS_DIFFER.name for one in moved)),
                rate(sum(Verdict[one.verdict].alarms for one in moved), len(moved)) if moved else "",
                f"{binary_auroc(scores, labels).item():.3f}",
                rate(sum(one.against_reference != Verdict.UNCHANGED.name for one in these), len(these)),
            ]
        )
    heads = (
        "edit",
        "n",
        "moved a map",
        "moved, called clean (0 by definition)",
        "moved towards the centred map",
        "moved, maps differ",
        "moved, accused",
        "AUC of the suspicion",
        "told with a reference",
    )
    return Table("Edits: what is found of those that moved a raw map of any probe under 0.9", heads, rows)


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with weights and images; without it, networks trained here")
    parser.add_argument("--only", choices=["small", "probes", "tuned", "real", "photos"], help="one group of models")
    add_options(parser, RunOptions(Path("runs/integrity_roc")))
    args = parser.parse_args(arguments)
    groups: dict[str, Iterator[Subject]] = {"small": small(args.data, 20 if args.fast_dev_run else STEPS["small"])}
    if args.data is not None:
        groups |= {
            "probes": probes(args.data),
            "tuned": tuned(args.data),
            "real": real(args.data),
            "photos": photos(args.data),
        }
    elif args.only not in (None, "small"):
        parser.error(f"--only {args.only} expected --data")
    run = Run(built(RunOptions, args), vars(args), free=("only",))
    few = 1 if args.fast_dev_run else None
    for name, subjects in groups.items():
        if args.only in (None, name):
            run.part(name, lambda subjects=subjects: _rows(islice(subjects, few)))  # type: ignore[misc]
    found = [Check(**one) for name in groups if run.has(name) for one in run.part(name, list)]
    honest = sum(not one.edit for one in found)
    summary = f"{honest} checks of honest models, {len(found) - honest} of edited ones."
    return run.finish("Honest and edited logits", summary, tables(found), values={"checks": [*map(asdict, found)]})


def _rows(subjects: Iterator[Subject]) -> list[dict[str, Any]]:
    found: list[Check] = []
    for i, subject in enumerate(subjects):
        with suppress(OneClassError):  # a network that prefers one class is not checked, as no user's is
            found += checks(subject, attacked=i % ATTACKED == 0)
    return [asdict(one) for one in found]


if __name__ == "__main__":
    main()
