"""Fine-tuning arms from one converged network, and what their explanations are worth: on the object, under masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lightning_xai as xai
from common.data.cifar import MEAN, STD, CifarResNet, cifar10
from common.data.generated import MEAN as DRAWN_MEAN
from common.data.generated import STD as DRAWN_STD
from common.data.generated import GeneratedImages
from lightning_xai import metrics
from lightning_xai.attribution import CenteredGaussian, Edges, Random, ScoreGradient, channel_max
from lightning_xai.scores import centered, log_softmax
from lightning_xai.trace import Capture, run

Loss = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""The loss of a step: ``(model, images (N,C,H,W), labels (N,), step) -> ()``."""

BATCH = 64
RATE = 0.01
"""Learning rate at the start of fine-tuning, a tenth of that of plain training; it falls to 0 on a cosine."""


@dataclass(frozen=True)
class Images:
    """Standardised images (N,3,H,W), labels (N,), and the pixels of the object (N,H,W) where they are known."""

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def first(self, n: int) -> Images:
        """The first n."""
        return Images(self.images[:n], self.labels[:n], None if self.masks is None else self.masks[:n])


@dataclass(frozen=True)
class Task:
    """A data set, its network and its scale.

    Attributes:
        name: Of its files.
        train: For training.
        validation: For the choice of strengths and temperatures.
        test: For what is reported.
        mean: By which images are standardised.
        std: By which images are standardised.
        network: Makes the network, untrained.
        layer: Layer of the CAM methods.
        inner: Layer of the term at an inner layer.
        augment: ``(images, generator) -> images``, for training.
        epochs: Of the plain training that all arms start from.
        steps: Of fine-tuning.
        explained: Test images for maps under masks.
        curves: Test images for insertion and deletion.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    mean: Sequence[float]
    std: Sequence[float]
    network: Callable[[], nn.Module]
    layer: str
    inner: str
    augment: Callable[[Tensor, torch.Generator], Tensor]
    epochs: int
    steps: int
    explained: int
    curves: int


def erased(images: Tensor, generator: torch.Generator, black: Tensor) -> Tensor:
    """Half of the images with parts in black, one in twenty black as a whole, so that the network has seen such images.

    Args:
        images: Standardised images (N,3,H,W).
        generator: Source of randomness.
        black: Standardised black, (3,1,1).
    """
    n, _, height, width = images.shape
    cells = torch.rand(n, 1, 8, 8, generator=generator)
    kept = torch.rand(n, 1, 1, 1, generator=generator) * 1.6 + 0.2  # above 1: the image stays whole
    kept = kept * (torch.rand(n, 1, 1, 1, generator=generator) >= 0.05)
    shown = F.interpolate((cells < kept).float(), (height, width))
    return torch.where(shown > 0, images, black)


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored in one case of two, and shifted by up to four pixels, one shift for each batch."""
    flipped = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, images.flip(3), images)
    dy, dx = torch.randint(9, (2,), generator=generator).tolist()
    side = images.shape[2]
    return F.pad(flipped, (4, 4, 4, 4))[:, :, dy : dy + side, dx : dx + side]


@cache
def task(name: str, data: Path | None, small: bool = False) -> Task:
    """The generated images, or CIFAR-10.

    Args:
        name: ``"generated"`` or ``"cifar10"``.
        data: Folder with CIFAR-10.
        small: A few images and steps, to try it.
    """
    if name == "generated":
        n_train, n_other = (128, 64) if small else (8192, 2048)
        black = -torch.tensor(DRAWN_MEAN)[:, None, None] / torch.tensor(DRAWN_STD)[:, None, None]
        train, validation = _drawn(n_train, "train", 0), _drawn(n_other, "val", 1)
        test = _drawn(n_other, "val", 2)
        return Task(
            name,
            train,
            validation,
            test,
            DRAWN_MEAN,
            DRAWN_STD,
            _small_resnet,
            "layer4",
            "layer2",
            lambda images, generator: erased(_flipped(images, generator), generator, black),
            epochs=1 if small else 24,
            steps=2 if small else 300,
            explained=32 if small else 512,
            curves=16 if small else 64,
        )
    images, labels = cifar10(data, "train", 256 if small else None)  # type: ignore[arg-type]
    cut = len(images) - (64 if small else 5000)
    tested = cifar10(data, "test", 64 if small else 5000)  # type: ignore[arg-type]
    return Task(
        name,
        Images(images[:cut], labels[:cut]),
        Images(images[cut:], labels[cut:]),
        Images(*tested),
        MEAN,
        STD,
        partial(CifarResNet, 3),
        "layer3",
        "layer2",
        moved,
        epochs=1 if small else 8,
        steps=2 if small else 200,
        explained=32 if small else 1024,
        curves=16 if small else 64,
    )


def _drawn(n: int, split: str, seed: int) -> Images:
    drawn = GeneratedImages(n, split=split, seed=seed)
    return Images((drawn.images / 255 - DRAWN_MEAN[0]) / DRAWN_STD[0], drawn.labels, drawn.masks)


def _small_resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=8, channels=(16, 32, 48, 64), stem_width=8, output_stride=8)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, images.flip(3), images)


# --- Training ---------------------------------------------------------------------------------------------------------


def batches(task: Task, seed: int, steps: int) -> Any:
    """Augmented batches in an order of the seed: the same for every arm."""
    generator = torch.Generator().manual_seed(seed)
    order: list[Tensor] = []
    for _ in range(steps):
        if not order or len(order[0]) < BATCH:
            order = list(torch.randperm(len(task.train.images), generator=generator).split(BATCH))
        rows = order.pop(0)
        yield task.augment(task.train.images[rows], generator), task.train.labels[rows]


def trained(network: nn.Module, task: Task, loss: Loss, seed: int, steps: int, rate: float, warm: int = 0) -> nn.Module:
    """SGD with momentum; the rate rises for some steps and falls to 0 on a cosine."""
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    network.train()
    for step, (images, labels) in enumerate(batches(task, seed, steps)):
        share = (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        optimizer.param_groups[0]["lr"] = rate * share
        optimizer.zero_grad()
        loss(network, images.contiguous(memory_format=torch.channels_last), labels, step).backward()
        optimizer.step()
    return network.eval()


def plain(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
    """Cross-entropy alone."""
    return F.cross_entropy(model(images), labels)


def start(task: Task, folder: Path, seed: int = 1000, given: Path | None = None) -> nn.Module:
    """The converged network that all arms start from; seed 1001 is the one whose maps are shown to every network.

    Args:
        task: Data and network.
        folder: Where its weights are kept.
        seed: Of weights and batches.
        given: Weights to begin with; None: from scratch.
    """
    torch.manual_seed(seed)
    network: Any = task.network()
    network.to(memory_format=torch.channels_last)
    path = folder / f"{task.name}_start_{seed}.safetensors"
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    if given is not None:
        network.load_state_dict(load_file(given))
    steps = task.epochs * (len(task.train.images) // BATCH)
    trained(network, task, plain, seed, steps, 0.02 if given else 0.1, steps // 10)
    folder.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, partial_path)
    partial_path.replace(path)
    return network


# --- Arms -------------------------------------------------------------------------------------------------------------


def term(strength: float, **options: Any) -> Loss:
    """The library's training term."""
    loss = xai.GuidedGradientLoss(weight=lambda step: strength, **options)
    return lambda model, images, labels, step: loss(model, images, labels, F.cross_entropy, step).loss


def squared_norm(gradients: Tensor, guided: Tensor) -> Tensor:
    """A penalty on the size of the gradient, which has no teacher (Drucker and LeCun 1992), (N,)."""
    return gradients.float().square().sum((1, 2, 3))


def masking_consistency(strength: float, *, salient: bool) -> Loss:
    """Saliency-guided training (Ismail et al. 2021): the output is to stay when the least salient half is noise.

    With ``salient=False`` the half is drawn at random: the control.
    """

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        leaf = images.detach().requires_grad_()
        logits = model(leaf)
        size = torch.rand_like(images[:, 0])
        if salient:
            (gradient,) = torch.autograd.grad(pick(logits, labels).sum(), leaf, retain_graph=True)
            size = gradient.abs().sum(1)
        hidden = size < size.flatten(1).median(1).values[:, None, None]
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        noise = low + (high - low) * torch.rand_like(images)
        masked = model(torch.where(hidden[:, None], noise, images))
        divergence = F.kl_div(masked.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean")
        return F.cross_entropy(logits, labels) + strength * divergence

    return loss


def pick(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of the labels, (N,)."""
    return logits.gather(1, labels[:, None])[:, 0]


def adversarial(strength: float, std: Sequence[float]) -> Loss:
    """Half of the loss on images moved by one step against the class (Goodfellow et al. 2015), in 1/255 of a pixel."""
    step_size = strength / 255 / torch.tensor(std)[:, None, None]

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        leaf = images.detach().requires_grad_()
        given = F.cross_entropy(model(leaf), labels)
        (gradient,) = torch.autograd.grad(given, leaf, retain_graph=True)
        return (given + F.cross_entropy(model(images + step_size * gradient.sign()), labels)) / 2

    return loss


def mirror_consistency(strength: float, layer: str) -> Loss:
    """The Grad-CAM of the mirrored image is to be the mirrored Grad-CAM: one minus their cosine."""
    method = xai.GradCAM(layer, score=centered, relu=False)

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        both = torch.cat([images, images.flip(3)])
        maps = xai.explain(model, both, labels.repeat(2), attributions=method, create_graph=True)
        here, there = maps.chunk(2)
        apart = 1 - F.cosine_similarity(here.flatten(1), there.flip(2).flatten(1)).mean()
        return F.cross_entropy(model(images), labels) + strength * apart

    return loss


def smooth_teacher(strength: float, level: float = 0.3, n: int = 2) -> Loss:
    """The gradient is to resemble its own mean over noisy copies of the image, as in SmoothGrad."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        def gradient(points: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
            leaf = points.detach().requires_grad_()
            value = F.cross_entropy(model(leaf), labels, reduction="sum")
            return torch.autograd.grad(value, leaf, create_graph=graph)[0], value

        smooth = sum(gradient(images + level * torch.randn_like(images), False)[0] for _ in range(n))
        own, value = gradient(images, True)
        apart = 1 - F.cosine_similarity(own.flatten(1), smooth.flatten(1), eps=1e-20).mean()  # type: ignore[union-attr]
        return value / len(images) + strength * apart

    return loss


STRENGTHS = (0.1, 0.32, 1.0, 3.2, 10.0)
"""Two decades; the arms are compared at the largest that keeps the accuracy."""
PAPER = "paper (cosine, loss, 0.0075)"
TEACHERS = {
    "-loss": xai.regularization.negative_loss_teacher,
    "loss": xai.regularization.loss_teacher,
    "score": xai.regularization.class_score_teacher,
}
ERRORS = {
    "sigmoid": xai.regularization.SigmoidMaskingLoss,
    "centred sigmoid": xai.regularization.CenteredSigmoidMaskingLoss,
    "histogram": xai.regularization.HistogramIntersectionLoss,
    "l1": xai.regularization.L1DistanceLoss,
    "l2": xai.regularization.L2DistanceLoss,
}


def arms(task: Task) -> dict[str, Callable[[float], Loss]]:
    """Every arm by name, as a function of its strength; those of the paper first."""
    found: dict[str, Callable[[float], Loss]] = {
        f"cosine, {teacher}, BN {mode}": partial(term, teacher=function, batch_norm=mode)
        for mode in ("training", "evaluation")
        for teacher, function in TEACHERS.items()
    }
    found["inner layer"] = partial(term, layer=task.inner)
    found["gradient norm"] = partial(term, error=squared_norm)
    found |= {error: partial(term, error=kind()) for error, kind in ERRORS.items()}
    found["saliency guided"] = partial(masking_consistency, salient=True)
    found["random masks"] = partial(masking_consistency, salient=False)
    found["adversarial"] = partial(adversarial, std=task.std)
    found["smooth teacher"] = smooth_teacher
    found["mirrored CAM"] = partial(mirror_consistency, layer=task.layer)
    return found


# --- What is measured -------------------------------------------------------------------------------------------------


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N,K), float64."""
    with torch.no_grad():
        return torch.cat([network(some).double() for some in images.split(256)])


def temperature(logits: Tensor, labels: Tensor, wanted: float) -> float:
    """By what logits are divided for the labels' mean log-probability to be the wanted one, by bisection in log T.

    Above the network's best the mean falls again: the answer is on the side of the network's own temperature.
    """
    low, high = math.log(0.2), math.log(20.0)

    def value(t: float) -> float:
        return log_softmax(logits / math.exp(t), labels).mean().item()

    grid = torch.linspace(low, high, 200).tolist()
    best = max(grid, key=value)
    a, b = (best, high) if best <= 0 else (low, best)  # an overconfident network is cooled, another one warmed
    if value(best) < wanted:
        return math.exp(best)
    for _ in range(60):
        middle = (a + b) / 2
        rising = value(middle) < wanted
        a, b = (a, middle) if rising == (best <= 0) else (middle, b)
    return math.exp((a + b) / 2)


def look(network: nn.Module, part: Images) -> dict[str, float]:
    """How input gradients look: alignment with guided gradients, variation, roughness."""
    sums: dict[str, list[Tensor]] = {"alignment": [], "variation": [], "roughness": []}
    for images, labels in zip(part.images.split(128), part.labels.split(128), strict=True):
        trace = run(network, images, Capture(image_gradient=True))
        with trace.computing():
            gradient = trace.image_gradient(centered, labels)
            guided = trace.image_gradient(centered, labels, rectifiers="relu")
        sums["alignment"].append(metrics.gradient_alignment(gradient, guided))
        sums["variation"].append(metrics.gradient_variation(gradient))
        sums["roughness"].append(metrics.gradient_roughness(gradient))
    return {name: torch.cat(values).nanmean().item() for name, values in sums.items()}


def maps_of(network: nn.Module, part: Images, methods: Mapping[str, xai.Attribution]) -> dict[str, Tensor]:
    """Maps (N,H,W) of the labels by method."""
    chunks = zip(part.images.split(128), part.labels.split(128), strict=True)
    found = [xai.explain(network, images, labels, attributions=methods) for images, labels in chunks]
    return {name: torch.cat([one[name] for one in found]) for name in methods}


def on_object(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Share of the positive energy on the object, whether the peak is there, and the area under the ROC of pixels."""
    positive, inside = maps.relu().flatten(1).double(), masks.flatten(1)
    energy = (positive * inside).sum(1) / positive.sum(1)
    peak = inside.gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0].double()
    values = maps.flatten(1).contiguous()
    ordered = values.sort(1).values
    ranks = (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)).double() / 2
    ones, n = inside.sum(1).double(), inside.shape[1]
    area = ((ranks * inside).sum(1) - ones * ones / 2) / (ones * (n - ones))
    return {
        "energy": 100 * energy.nanmean().item(),
        "pointing": 100 * peak.mean().item(),
        "AUROC": 100 * area.mean().item(),
    }


def truth(network: nn.Module, task: Task) -> dict[str, dict[str, float]]:
    """Every method against the pixels of the object, on test images."""
    options: dict[str, Any] = {"score": centered}
    methods: dict[str, xai.Attribution] = {
        "Grad-CAM": xai.GradCAM(task.layer, **options),
        "Grad-CAM++": xai.GradCAMPlusPlus(task.layer, **options),
        "input gradient": xai.InputGradient(**options, reduce=channel_max),
        "input x gradient": xai.InputXGradient(**options),
        "guided gradient": xai.GuidedGradient(**options, reduce=channel_max),
        "LRP": xai.LRP(seed=ScoreGradient(centered)),
    }
    part = task.test.first(task.explained)
    assert part.masks is not None
    found = {name: on_object(maps, part.masks) for name, maps in maps_of(network, part, methods).items()}
    few = part.first(task.explained // 8)
    smooth = xai.SmoothGrad(**options, n_samples=8, reduce=channel_max)
    found["SmoothGrad"] = on_object(maps_of(network, few, {"s": smooth})["s"], few.masks)  # type: ignore[arg-type]
    fixed = {"gaussian": CenteredGaussian(), "edges": Edges(), "random": Random()}
    return found | {n: on_object(m, part.masks) for n, m in maps_of(network, part, fixed).items()}


CURVED = ("Grad-CAM", "another network's Grad-CAM", "gaussian")
"""Maps whose insertion and deletion are measured, which cost 16 passes each."""


def masked(network: nn.Module, task: Task, other: nn.Module, heat: float) -> dict[str, dict[str, float]]:
    """Confidence metrics of maps and of fixed maps, as they are and at equal confidence, and areas of curves."""
    part = task.test.first(task.explained)
    options: dict[str, Any] = {"score": centered}
    methods = {"Grad-CAM": xai.GradCAM(task.layer, **options), "Grad-CAM++": xai.GradCAMPlusPlus(task.layer, **options)}
    maps = maps_of(network, part, methods)
    maps["another network's Grad-CAM"] = maps_of(other, part, {"other": xai.GradCAM(task.layer, **options)})["other"]
    maps |= maps_of(network, part, {"gaussian": CenteredGaussian(), "edges": Edges(), "random": Random()})
    maps["shuffled Grad-CAM"] = maps["Grad-CAM"].roll(1, 0)  # the map of another image
    logits = logits_of(network, part.images)
    found: dict[str, dict[str, float]] = {}
    for name, values in maps.items():
        hidden = _masked_logits(network, task, part.images, values)
        found[name] = {}
        for suffix, t in (("", 1.0), (" at equal confidence", heat)):
            before, after = log_softmax(logits / t, part.labels), log_softmax(hidden / t, part.labels)
            measures = {
                "AD": metrics.average_drop,
                "AI": metrics.average_increase,
                "AG": metrics.average_gain,
            }
            found[name] |= {key + suffix: f(before, after).double().mean().item() for key, f in measures.items()}
        if name in CURVED:
            found[name] |= _areas(network, task, part.first(task.curves), values[: task.curves])
    return found


def _masked_logits(network: nn.Module, task: Task, images: Tensor, maps: Tensor) -> Tensor:
    black = xai.baselines.black(images, task.mean, task.std)
    return logits_of(network, metrics.masked_images(images, maps, black))


def _areas(network: nn.Module, task: Task, part: Images, maps: Tensor) -> dict[str, float]:
    black = xai.baselines.black(part.images, task.mean, task.std)
    with torch.no_grad():
        curves = metrics.perturbation_curves(network, part.images, maps, part.labels, baseline=black, steps=8)
    return {
        "insertion": 100 * metrics.curve_area(curves.fractions, curves.insertion_curve).mean().item(),
        "deletion": 100 * metrics.curve_area(curves.fractions, curves.deletion_curve).mean().item(),
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def finetuned(task: Task, folder: Path, arm: str, strength: float, seed: int) -> nn.Module:
    """The start, trained further with one arm."""
    network = copy.deepcopy(start(task, folder))
    fixed = {"plain": plain, PAPER: term(7.5e-3, teacher=TEACHERS["loss"])}
    loss = fixed[arm] if arm in fixed else arms(task)[arm](strength)
    torch.manual_seed(seed)  # of noise in the losses
    return trained(network, task, loss, seed, task.steps, RATE)


def measured(network: nn.Module, task: Task, other: nn.Module, wanted: float | None) -> dict[str, Any]:
    """All that is reported of one network.

    Args:
        network: The network.
        task: Data.
        other: The network whose maps are shown to every network.
        wanted: Mean log-probability of the labels of validation images under plain training; None for the network's.
    """
    validation, tested = logits_of(network, task.validation.images), logits_of(network, task.test.images)
    own = log_softmax(validation, task.validation.labels).mean().item()
    heat = 1.0 if wanted is None else temperature(validation, task.validation.labels, wanted)
    return {
        "validation accuracy": accuracy(validation, task.validation.labels),
        "accuracy": accuracy(tested, task.test.labels),
        "mean log-probability": own,
        "temperature": heat,
        "look": look(network, task.test.first(512)),
        "maps": masked(network, task, other, heat),
        "truth": {} if task.test.masks is None else truth(network, task),
    }
