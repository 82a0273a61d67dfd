"""What the explanations of a network are worth: on the pixels of the object, and under masks at equal confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import lightning_xai as xai
from lightning_xai import metrics
from lightning_xai.attribution import CenteredGaussian, Edges, Random, ScoreGradient, channel_max
from lightning_xai.scores import centered, log_softmax
from lightning_xai.trace import Capture, run
from papers.interpretable_gradients.tasks import Images, Task


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


def masked(network: nn.Module, task: Task, other: nn.Module | None, heat: float) -> dict[str, dict[str, float]]:
    """Confidence metrics of maps and of fixed maps, as they are and at equal confidence, and areas of curves."""
    part = task.test.first(task.explained)
    options: dict[str, Any] = {"score": centered}
    methods = {"Grad-CAM": xai.GradCAM(task.layer, **options), "Grad-CAM++": xai.GradCAMPlusPlus(task.layer, **options)}
    maps = maps_of(network, part, methods)
    if other is not None:
        maps |= maps_of(other, part, {"another network's Grad-CAM": xai.GradCAM(task.layer, **options)})
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


def measured(network: nn.Module, task: Task, other: nn.Module | None, wanted: float | None) -> dict[str, Any]:
    """All that is reported of one network.

    Args:
        network: The network.
        task: Data.
        other: A network whose maps are shown to every network; None: without.
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
