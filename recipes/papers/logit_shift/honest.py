"""Honest classifiers: trained here, heads of many forms on the features of one, tuned further, and given ones."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.transforms.v2.functional import normalize

from common.data.cifar import MEAN, STD, CifarResNet, cifar10
from common.data.generated import GeneratedImages
from common.options import DataOptions, ModelOptions
from common.subject import Subject, given
from lightning_xai.networks import load_weights
from lightning_xai.trace import tapped
from papers.logit_shift.red_team import Edited

CLASSES = (2, 3, 10, 100)
PROBED = {2: 130, 3: 80, 10: 80, 100: 80}  # linear probes by number of classes, each with another form of head
TRAINED = 8  # small networks for each number of classes, checked at two layers each
TUNED = 1
HALF = (0.5, 0.5, 0.5)

Images = tuple[Tensor, Tensor]
"""Images (n,C,H,W) and their labels (n,)."""


class Honest(NamedTuple):
    """A classifier that nobody edited, with the images and the layers at which it is checked."""

    subject: Subject
    kind: str
    images: Tensor
    layers: tuple[str, ...]


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


def sigmoids(logits: Tensor, labels: Tensor) -> Tensor:
    """Each class against the rest."""
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, logits.shape[1]).float())


TRAININGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (F.cross_entropy, partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "SGD, weight decay": (F.cross_entropy, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)),
    "AdamW": (F.cross_entropy, partial(torch.optim.AdamW, lr=3e-3)),
    "label smoothing": (partial(F.cross_entropy, label_smoothing=0.1), partial(torch.optim.AdamW, lr=3e-3)),
    "sigmoids": (sigmoids, partial(torch.optim.AdamW, lr=3e-3)),
}


def trained(model: nn.Module, images: Images, training: str, *, steps: int, rate: float = 1.0) -> nn.Module:
    """The model after some steps with batches of 64, in evaluation mode."""
    loss, make = TRAININGS[training]
    optimizer = make(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= rate
    model.train()
    for step in range(steps):
        start = step * 64 % max(len(images[0]) - 63, 1)
        x, y = (one[start : start + 64] for one in images)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def source(data: Path | None, split: str, n: int) -> Images:
    """Photographs of CIFAR-10, or images drawn here."""
    if data is not None:
        return cifar10(data, split, n)
    drawn = GeneratedImages(n, split="train" if split == "train" else "val", size=32)
    return normalize(drawn.images / 255, list(MEAN), list(STD)), drawn.labels


def task(images: Images, classes: int, seed: int) -> Images:
    """Four in five of the images, of so many classes: some of the ten, all, or each in ten tints."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(10, generator=generator)[: min(classes, 10)]
    kept = torch.randperm(len(images[0]), generator=generator)[: len(images[0]) * 4 // 5]
    x, y = images[0][kept], images[1][kept]
    if classes > 10:
        return tinted((x, y), generator)
    inside = torch.isin(y, chosen)
    place = torch.zeros(10, dtype=torch.long).scatter(0, chosen, torch.arange(len(chosen)))
    return x[inside], place[y[inside]]


def tinted(images: Images, generator: torch.Generator) -> Images:
    """A hundred classes: each of ten in ten tints."""
    tint = torch.randint(10, (len(images[0]),), generator=generator)
    tints = 0.8 * torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)[:20:2]
    return images[0] + tints[tint, :, None, None], images[1] * 10 + tint


def small(data: Path | None, steps: int = 80) -> Iterator[Honest]:
    """Networks trained here from scratch."""
    every, shown = source(data, "train", 4096 if steps > 50 else 640), source(data, "test", 400)
    for classes, seed in itertools.product(CLASSES, range(TRAINED)):
        torch.manual_seed(seed)
        training = list(TRAININGS)[seed % len(TRAININGS)]
        model = trained(SmallNet(classes), task(every, classes, seed), training, steps=steps)
        kind = "trained for sigmoids" if training == "sigmoids" else "trained"
        subject = Subject(model, MEAN, STD, name=f"SmallNet, {training}, {seed}")
        yield Honest(subject, kind, task(shown, classes, seed)[0][:32], ("layers.2", "layers.1"))


def on_features(head: nn.Module) -> nn.Sequential:
    """A head on the activations (N,64,8,8) of a frozen network, which stand for images."""
    return nn.Sequential(OrderedDict(layer=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head))


def probes(data: Path) -> Iterator[Honest]:
    """Linear probes on the features of ResNet-20, and other forms of heads in turn."""
    net = resnet(data, 3)
    raw = {split: cifar10(data, split, n) for split, n in (("train", 2500), ("test", 1500))}
    more = {split: tinted(one, torch.Generator().manual_seed(0)) for split, one in raw.items()}
    few, many = ({split: (features(net, x), y) for split, (x, y) in one.items()} for one in (raw, more))
    for classes in CLASSES:
        for seed in range(PROBED[classes]):
            inside, shown = (_drawn(few if classes <= 10 else many, split, classes, seed) for split in few)
            torch.manual_seed(seed)
            training, steps = list(TRAININGS)[seed % 4], (50, 150)[seed // 4 % 2]
            linear = trained(on_features(nn.Linear(64, classes)), inside, training, steps=steps)
            subject = Subject(linear, (), (), name=f"probe, {training}, {steps}, {seed}")
            yield Honest(subject, "probe", shown[0][:32], ("layer",))
            kind, other = other_head(net, linear, inside, classes, seed)
            yield Honest(Subject(other, (), (), name=f"{kind}, {seed}"), kind, shown[0][:32], ("model.layer",))


def _drawn(images: dict[str, Images], split: str, classes: int, seed: int) -> Images:
    """A task of features; those of a hundred classes have their tints already."""
    if classes <= 10:
        return task(images[split], classes, seed)
    kept = torch.randperm(len(images[split][0]), generator=torch.Generator().manual_seed(seed))
    return tuple(one[kept[: len(kept) * 4 // 5]] for one in images[split])  # type: ignore[return-value]


def features(net: CifarResNet, images: Tensor) -> Tensor:
    """Activations (N,64,8,8) before the pooling."""
    with torch.no_grad(), tapped(net.layer3) as outputs:
        for batch in images.split(250):
            net(batch)
    return torch.cat(outputs)


def other_head(net: CifarResNet, linear: nn.Module, inside: Images, classes: int, seed: int) -> tuple[str, nn.Module]:
    """One of eight forms of honest heads, and what it is called."""

    def fitted(head: nn.Module, training: str = "AdamW") -> nn.Module:
        return trained(on_features(head), inside, training, steps=150, rate=1.0 if training == "sigmoids" else 3.0)

    def restricted() -> nn.Module:
        head = nn.Linear(64, classes)
        head.weight.data = net.linear.weight.data[torch.arange(classes) % 10]
        return on_features(head)

    kinds: list[tuple[str, Callable[[], nn.Module]]] = [
        ("log-softmax", lambda: Edited(linear, "layer", lambda z, _: z.log_softmax(1))),
        ("reference class", lambda: Edited(linear, "layer", lambda z, _: z - z[:, :1])),
        ("cosine", lambda: fitted(Cosine(classes))),
        ("prototypes", lambda: fitted(Prototypes(classes))),
        ("sigmoids", lambda: fitted(nn.Linear(64, classes), "sigmoids")),
        ("untrained", lambda: on_features(nn.Linear(64, classes))),
        ("restricted", restricted) if classes < 10 else ("bfloat16", lambda: copy.deepcopy(linear).bfloat16().float()),
        ("temperature", lambda: Edited(linear, "layer", lambda z, _: z / 4)),
    ]
    name, make = kinds[seed % len(kinds)]
    model = make()
    if not isinstance(model, Edited):
        model = Edited(model, "layer", lambda z, _: z)  # so that the layer has one name
    return name, model.eval().requires_grad_(False)


def resnet(data: Path, n: int) -> CifarResNet:
    """A ResNet with its weights, in evaluation mode."""
    model = CifarResNet(n)
    load_weights(model, data / "weights" / f"cifar10_resnet{6 * n + 2}.safetensors")
    return model.eval()


def tuned(data: Path) -> Iterator[Honest]:
    """ResNet-20 with a new head, all of it trained further."""
    train, test = (cifar10(data, split, n) for split, n in (("train", 1600), ("test", 300)))
    for classes, seed in itertools.product(CLASSES, range(TUNED)):
        torch.manual_seed(seed)
        model, training = resnet(data, 3), list(TRAININGS)[seed % 3]
        model.linear = nn.Linear(64, classes)
        trained(model, task(train, classes, seed + 50), training, steps=25, rate=0.1)
        subject = Subject(model, MEAN, STD, name=f"ResNet-20 tuned, {training}")
        yield Honest(subject, "tuned", task(test, classes, seed + 50)[0][:24], ("layer3", "layer2"))


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


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "": lambda model: model,
    ", bfloat16": lambda model: model.bfloat16().float(),
    ", folded": folded,
    ", pruned": pruned,
    ", 8 bits": quantised,
}


def real(data: Path, n: int = 16) -> Iterator[Honest]:
    """ResNet-20 and ResNet-44 as they are, then ResNet-20 with harmless changes; on n images of CIFAR-10."""
    images, _ = cifar10(data, "test", n)
    for depth, change in [(3, ""), (7, ""), *((3, one) for one in CHANGES if one)]:
        model = CHANGES[change](resnet(data, depth))
        subject = Subject(model, MEAN, STD, name=f"ResNet-{6 * depth + 2}{change}")
        yield Honest(subject, "given", images, ("layer3", "layer2"))


def photos(data: Path, n: int = 8) -> Iterator[Honest]:
    """The classifiers of ImageNet, on n photographs of different classes."""
    options = ("variant=mobilenetv1_100", "channel_multiplier=0.75", "pad_type=same", "bn_eps=1e-3")
    networks = {
        "SqueezeNet": (
            ModelOptions("torchvision:squeezenet1_1", weights=data / "weights/imagenet_squeezenet1_1.safetensors"),
            ("features.12", "features.4"),
        ),
        "MobileNet": (
            ModelOptions(
                "timm.models.efficientnet:_gen_mobilenet_v1",
                options,
                data / "weights/imagenet_mobilenetv1_075_fp16.safetensors",
                mean=HALF,
                std=HALF,
            ),
            ("blocks.4", "blocks.2"),
        ),
    }
    for name, (model, layers) in networks.items():
        subject, found = given(DataOptions(str(data / "imagenet")), model)
        rows = range(0, len(found.val), max(len(found.val) // n, 1))  # type: ignore[arg-type]
        images = torch.stack([found.val[row][0] for row in rows[:n]])
        yield Honest(replace(subject, name=name), "given", images, layers)
