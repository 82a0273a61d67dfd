"""Guided Grad-CAM: the product of its two factors."""

import pytest
import torch
import torch.nn.functional as F
from support import OneConv, random_images, small_net
from torch import nn

from lightning_xai import GradCAM, GuidedGradient, explain
from lightning_xai.attribution import GuidedGradCAM
from lightning_xai.attribution.gradient import channel_max, channel_sum
from lightning_xai.scores import post_softmax, pre_softmax


@pytest.mark.parametrize("inplace", [False, True])
def test_factors_are_captums_known_answers(inplace):
    """The numbers of captum's test_grad_cam.py (relu1) and test_guided_backprop.py, multiplied."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    found = explain(OneConv(inplace), image, 0, attributions=GuidedGradCAM("relu1", pre_softmax))
    cam = torch.tensor([[[[0.0, 4.0], [28.0, 32.5]]]])
    guided = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 3.0, 3.0, 2.0], [1.0, 3.0, 3.0, 2.0], [1.0, 2.0, 2.0, 1.0]])
    expected = F.interpolate(cam, size=(4, 4), mode="bilinear", align_corners=False)[0] * guided
    torch.testing.assert_close(found, expected)
    # captum's own test_guided_grad_cam.py resizes to the nearest value
    nearest = F.interpolate(cam, size=(4, 4))[0, 0] * guided
    assert nearest.tolist() == [[0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]


@pytest.mark.parametrize("reduce", [channel_sum, channel_max])
@pytest.mark.parametrize("relu", [True, False])
def test_map_is_gradcam_times_the_guided_gradient(reduce, relu):
    """Of the same score, for one layer and for several."""
    model, images = small_net(), random_images()
    for layer in ("conv2", ("conv1", "conv2")):
        found, cam, guided = (
            explain(model, images, 1, attributions=method, score=post_softmax)
            for method in (
                GuidedGradCAM(layer, reduce=reduce, relu=relu),
                GradCAM(layer, relu=relu),
                GuidedGradient(reduce=reduce),
            )
        )
        assert found.abs().max() > 0
        torch.testing.assert_close(found, cam * guided)


def test_one_pass_serves_both_factors():
    """Also beside other methods."""
    model, calls = small_net(), []
    model.conv1.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    explain(model, random_images(), attributions={"both": GuidedGradCAM("conv2"), "cam": GradCAM("conv2")})
    assert calls == [4]


def test_networks_without_rectifiers_are_refused():
    """There is no guided gradient to multiply with."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="guided rule expected at least 50% of the nonlinearities to be rectifiers"):
        explain(model, random_images(), attributions=GuidedGradCAM("1"))
