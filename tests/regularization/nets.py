"""A batch and a network in float64 for tests of the training term."""

import torch
from support import random_images
from torch import nn

TARGETS = torch.tensor([0, 1, 2, 1])


def plain_net():
    """A rectifier network without dropout, so that two passes agree; float64."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model.double()


def images():
    """Four images in float64."""
    return random_images(dtype=torch.float64)
