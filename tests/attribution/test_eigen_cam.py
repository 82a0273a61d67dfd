"""Eigen-CAM against power iteration, in float64."""

import pytest
import torch
from support import random_images, small_net

from lightning_xai import explain
from lightning_xai.attribution import EigenCAM
from lightning_xai.attribution.eigen_cam import first_component


@pytest.mark.parametrize("shape", [(6, 3, 5), (20, 2, 3)])
def test_the_first_component_is_that_of_power_iteration(shape):
    """With fewer channels than positions, and with more."""
    activations = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, found in zip(activations, first_component(activations), strict=True):
        matrix = one.flatten(1).T
        vector = torch.ones(shape[0], dtype=torch.float64)
        for _ in range(2000):
            vector = matrix.T @ (matrix @ vector)
            vector = vector / vector.norm()
        expected = (matrix @ vector).view(shape[1:])
        torch.testing.assert_close(found, expected * expected.sum().sign(), rtol=1e-7, atol=1e-9)
        assert found.sum() > 0


def test_eigen_cam_is_the_first_component_whatever_the_class():
    """The same map for every target."""
    model, images = small_net().double(), random_images(2, dtype=torch.float64)
    maps = [explain(model, images, target, attributions=EigenCAM("bn1", relu=False)) for target in (0, 1)]
    assert torch.equal(*maps)
    torch.testing.assert_close(maps[0], first_component(model.bn1(model.conv1(images)).detach()))
