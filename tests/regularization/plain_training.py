"""Training with the term written out in plain PyTorch, and a LightningModule that should do the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from support import random_images
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lightning_xai import GuidedGradientLoss, GuidedGradientMixin
from lightning_xai.regularization import ConstantWeight, keep_saturated
from lightning_xai.trace import guided

LR, WEIGHT = 0.1, 0.5
IMAGES, LABELS = random_images(16), torch.arange(16) % 3

Criterion = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Rectifiers as modules, functions and in place; whatever couples or drops may be put in."""

    def __init__(self, norm: nn.Module | None = None, drop: nn.Module | None = None, branch: nn.Module | None = None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), norm or nn.Identity(), nn.ReLU(inplace=True), nn.MaxPool2d(2)
            )
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(6, 3)
        self.drop, self.branch = drop or nn.Identity(), branch or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(images)
        hidden = F.relu(hidden + self.branch(self.conv(hidden)))
        return self.head(self.drop(hidden).mean((2, 3)))


def dropping() -> Net:
    """Dropout of channels, and stochastic depth for each image."""
    return Net(drop=nn.Dropout2d(0.5), branch=StochasticDepth(0.5, "row"))


def plain_loss(model: nn.Module, images: Tensor, targets: Tensor, criterion: Criterion = F.cross_entropy) -> Tensor:
    """L_C + lambda L_R by their definition, with PyTorch's own double backward."""
    leaf = images.clone().requires_grad_()
    loss = criterion(model(leaf.clone()), targets)
    with guided(loss):
        (taught,) = torch.autograd.grad(-loss, leaf, retain_graph=True)
    (gradient,) = torch.autograd.grad(-loss, leaf, create_graph=True)
    return loss - WEIGHT * F.cosine_similarity(gradient.flatten(1), taught.flatten(1)).mean()


def trained_plainly(
    model: nn.Module,
    batches: Iterable[Any],
    criterion: Criterion = F.cross_entropy,
    change: Callable[[nn.Module], Any] = lambda model: None,
) -> nn.Module:
    """Stochastic gradient descent by hand; ``change`` is called between backward pass and step."""
    model = copy.deepcopy(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for index, (images, targets) in enumerate(batches):
        torch.manual_seed(index)
        for parameter in trained:
            parameter.grad = None
        plain_loss(model, images, targets, criterion).backward()
        change(model)
        with torch.no_grad():
            for parameter in trained:
                parameter -= LR * parameter.grad
    return model


def term(**options: Any) -> GuidedGradientLoss:
    """The term of `plain_loss`."""
    return GuidedGradientLoss(**{"weight": ConstantWeight(WEIGHT), "image_weights": keep_saturated, **options})


class Trained(GuidedGradientMixin, LightningModule):
    """Trains a network with the term; random numbers begin anew in each batch."""

    def __init__(
        self, model: nn.Module, interpretability: GuidedGradientLoss, criterion: Criterion = F.cross_entropy
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.interpretability = interpretability
        self.criterion = criterion

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(batch_idx)
        return self.guided_gradient_loss(*batch, criterion=self.criterion)[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([one for one in self.model.parameters() if one.requires_grad], LR)


def assert_same_training(model: nn.Module, expected: nn.Module, start: nn.Module, *, rtol: float = 1e-4) -> None:
    """Parameters and buffers have moved, and as expected; the tolerance is relative to the largest change."""
    moved = 0.0
    for name, value in expected.state_dict().items():
        before, change = start.state_dict()[name], (value - start.state_dict()[name]).float()
        size = change.abs().max().item()
        moved = max(moved, size)
        torch.testing.assert_close(
            (model.state_dict()[name] - before).float(), change, rtol=0, atol=rtol * size + 1e-6, msg=name
        )
    assert moved > 1e-3
