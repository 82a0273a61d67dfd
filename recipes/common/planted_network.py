"""A small network trained on images with planted evidence: what recipes explain where no data are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.planted import CLASSES, planted_evidence

Standard = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of the channels."""

STANDARD: Standard = (0.5,) * 3, (0.25,) * 3  # of the images drawn here


def small_network() -> nn.Sequential:
    """Two convolutions, each class's evidence averaged over the positions; the second ReLU is layer 6."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(32, len(CLASSES)),
    )


def standardized(images: Tensor) -> Tensor:
    """Images (N,3,H,W) in [0, 1] with about zero mean."""
    mean, std = (torch.tensor(values)[:, None, None] for values in STANDARD)
    return (images - mean) / std


def trained(seed: int, n: int) -> nn.Module:
    """The small network after four epochs of images with planted evidence."""
    torch.manual_seed(seed)
    data = planted_evidence(torch.arange(n) % len(CLASSES), seed=seed)
    images, model = standardized(data.images), small_network()
    rate = 0.03  # with 0.1 rounding decides whether it learns at all
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    return fitted(model, images, data.labels, optimizer, epochs=4, batch_size=32)


def fitted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    order: torch.Generator | None = None,
) -> nn.Module:
    """A model after some epochs of cross-entropy, in evaluation mode.

    Args:
        model: Images (N,C,H,W) to logits (N,K); it is trained in place.
        images: Images (N,C,H,W).
        labels: Labels (N,).
        optimizer: Of the model's parameters.
        epochs: How often each image is seen.
        batch_size: Images of a step.
        order: Where the order of the images is drawn from; None for torch's own generator.

    Returns:
        The model.
    """
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=order).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model.eval()
