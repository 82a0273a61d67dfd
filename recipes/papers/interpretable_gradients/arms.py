"""What networks are fine-tuned with from one converged start: the training term, controls, steps beyond the paper."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import lightning_xai as xai
from common.networks import save_weights
from common.training import Loss, plain, with_term
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import running_statistics_kept
from papers.interpretable_gradients.tasks import Augment, Images, Task
from papers.interpretable_gradients.term import ERRORS, TEACHERS

Batch = tuple[Tensor, Tensor]
Weight = float | Callable[[int], float]
"""A number, or a schedule over the steps."""

BATCH = 64
RATE = 0.01
"""Learning rate at the start of fine-tuning, a tenth of that of plain training; it falls to 0 on a cosine."""


def batches(data: Images, augment: Augment, seed: int, steps: int, size: int = BATCH) -> Iterator[Batch]:
    """Augmented images and labels, in an order of the seed: the same for every arm."""
    generator = torch.Generator().manual_seed(seed)
    order: list[Tensor] = []
    for _ in range(steps):
        if not order or len(order[0]) < size:
            order = list(torch.randperm(len(data.images), generator=generator).split(size))
        rows = order.pop(0)
        yield augment(data.images[rows], generator), data.labels[rows]


def trained(
    network: nn.Module, given: Iterator[Batch], loss: Loss, steps: int, rate: float, warm: int = 0
) -> nn.Module:
    """SGD with momentum; the rate rises for some steps and falls to 0 on a cosine."""
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    network.train()
    for step, (images, labels) in enumerate(given):
        share = (step + 1) / (warm + 1) if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        optimizer.param_groups[0]["lr"] = rate * share
        optimizer.zero_grad()
        loss(network, images.contiguous(memory_format=torch.channels_last), labels, step).backward()
        optimizer.step()
    return network.eval()


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
    order = batches(task.train, task.augment, seed, steps)
    trained(network, order, plain, steps, 0.02 if given else 0.1, steps // 10)
    save_weights(network, path)
    return network


def term(strength: Weight, **options: Any) -> Loss:
    """The library's training term."""
    return with_term(xai.GuidedGradientLoss(weight=strength, **options))


def masking_consistency(strength: float, *, salient: bool) -> Loss:
    """Saliency-guided training (Ismail et al. 2021): the output is to stay when the least salient half is noise.

    With ``salient=False`` the half is drawn at random: the control.
    """

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        leaf = images.detach().requires_grad_()
        logits = model(leaf)
        size = torch.rand_like(images[:, 0])
        if salient:
            (gradient,) = torch.autograd.grad(pre_softmax(logits, labels).sum(), leaf, retain_graph=True)
            size = gradient.abs().sum(1)
        hidden = size < size.flatten(1).median(1).values[:, None, None]
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        noise = low + (high - low) * torch.rand_like(images)
        with running_statistics_kept(model):
            masked = model(torch.where(hidden[:, None], noise, images))
        divergence = F.kl_div(masked.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean")
        return F.cross_entropy(logits, labels) + strength * divergence

    return loss


def adversarial(strength: float, std: Sequence[float]) -> Loss:
    """Half of the loss on images moved by one step against the class (Goodfellow et al. 2015), in 1/255 of a pixel."""
    step_size = strength / 255 / torch.tensor(std)[:, None, None]

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        leaf = images.detach().requires_grad_()
        given = F.cross_entropy(model(leaf), labels)
        (gradient,) = torch.autograd.grad(given, leaf, retain_graph=True)
        return (given + F.cross_entropy(model(images + step_size * gradient.sign()), labels)) / 2

    return loss


def mirrored(strength: Weight, layer: str) -> Loss:
    """The Grad-CAM of the mirrored image is to be the mirrored Grad-CAM."""
    method = xai.GradCAM(layer, relu=False)

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        apart = xai.regularization.mirror_consistency(model, images, labels, attribution=method)
        weight = strength(step) if callable(strength) else strength
        return F.cross_entropy(model(images), labels) + weight * apart

    return loss


def smooth_teacher(strength: float, level: float = 0.3, n: int = 2) -> Loss:
    """The gradient is to resemble its own mean over noisy copies of the image, as in SmoothGrad."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensor:
        def gradient(points: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
            leaf = points.detach().requires_grad_()
            value = F.cross_entropy(model(leaf), labels, reduction="sum")
            return torch.autograd.grad(value, leaf, create_graph=graph)[0], value

        with running_statistics_kept(model):
            smooth = sum(gradient(images + level * torch.randn_like(images), False)[0] for _ in range(n))
        own, value = gradient(images, True)
        apart = 1 - F.cosine_similarity(own.flatten(1), smooth.flatten(1), eps=1e-20).mean()  # type: ignore[union-attr]
        return value / len(images) + strength * apart

    return loss


STRENGTHS = (0.01, 0.032, 0.1, 0.32, 1.0, 3.2, 10.0)
"""Three decades; the arms are compared at the largest that keeps the accuracy."""
PAPER = "paper (cosine, loss, 0.0075)"


def arms(task: Task) -> dict[str, Callable[..., Loss]]:
    """Every arm by name, as a function of its strength; those of the paper first."""
    found: dict[str, Callable[..., Loss]] = {
        f"cosine, {teacher}, BN {mode}": partial(term, teacher=function, batch_norm=mode)
        for mode in ("training", "evaluation")
        for teacher, function in TEACHERS.items()
    }
    found["inner layer"] = partial(term, layer=task.inner)
    found |= {name: partial(term, error=make()) for name, make in ERRORS.items() if name != "cosine"}
    found["saliency guided"] = partial(masking_consistency, salient=True)
    found["random masks"] = partial(masking_consistency, salient=False)
    found["adversarial"] = partial(adversarial, std=task.std)
    found["smooth teacher"] = smooth_teacher
    found["mirrored CAM"] = partial(mirrored, layer=task.layer)
    return found


def finetuned(task: Task, folder: Path, arm: str, strength: float, seed: int) -> nn.Module:
    """The start, trained further with one arm."""
    network = copy.deepcopy(start(task, folder))
    torch.manual_seed(seed)  # of noise in the losses
    loss = loss_of(task, arm, strength)
    return trained(network, batches(task.train, task.augment, seed, task.steps), loss, task.steps, RATE)


def loss_of(task: Task, arm: str, strength: Weight) -> Loss:
    """The loss of an arm, of plain training, or of the paper's setting."""
    if arm == "plain":
        return plain
    return term(strength, teacher=TEACHERS["loss"]) if arm == PAPER else arms(task)[arm](strength)


def file_name(arm: str, strength: float) -> str:
    """An arm at a strength, with what stands in names of files on every system."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in f"{arm}_{strength:g}")
