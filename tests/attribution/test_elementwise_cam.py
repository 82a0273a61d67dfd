"""HiResCAM, LayerCAM and XGrad-CAM against loops written from the papers."""

import pytest
import torch
import torch.nn.functional as F
from support import random_images, small_net
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import CAM, GradCAM, HiResCAM, LayerCAM, XGradCAM
from lightning_xai.attribution.elementwise_cam import hirescam, xgradcam_weights
from lightning_xai.scores import pre_softmax


def reference(method, activation, gradient):
    """The map of one image by loops over channels and positions, before the ReLU."""
    channels, height, width = activation.shape
    heat = torch.zeros(height, width, dtype=torch.float64)
    for k in range(channels):
        total = activation[k].sum()
        weight = sum(gradient[k, i, j] * activation[k, i, j] / total for i in range(height) for j in range(width))
        for i in range(height):
            for j in range(width):
                g = gradient[k, i, j]
                factor = {HiResCAM: g, LayerCAM: max(g, 0 * g), XGradCAM: weight}[method]
                heat[i, j] += factor * activation[k, i, j]
    return heat


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("method", [HiResCAM, LayerCAM, XGradCAM])
def test_map_equals_the_reference(method, relu):
    """At a layer with signed activations, which an in-place ReLU follows, in float64."""
    model, images = small_net().double(), random_images(3, dtype=torch.float64)
    found = explain(model, images, [0, 1, 2], attributions=method("bn1", pre_softmax, relu=relu))

    def tail(activation, target):
        hidden = F.max_pool2d(activation[None].relu(), 2)
        return model.head(model.bn2(model.conv2(hidden)).relu().mean((2, 3)))[0, target]

    for target, (image, one) in enumerate(zip(images, found, strict=True)):
        activation = model.bn1(model.conv1(image[None]))[0].detach()
        gradient = torch.autograd.functional.jacobian(lambda a, target=target: tail(a, target), activation)
        expected = reference(method, activation, gradient)  # of the image's size, so that nothing is resized
        torch.testing.assert_close(one, expected.relu() if relu else expected, rtol=1e-9, atol=1e-12)


@pytest.fixture
def pooled():
    """A network that ends in global average pooling and a linear layer, float64."""
    layers = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("method", [GradCAM, HiResCAM, XGradCAM])
def test_on_a_pooled_linear_head_they_are_cam_over_the_number_of_positions(method, pooled):
    """There the gradient is w / (h w) at every position."""
    images = random_images(2, dtype=torch.float64)
    cam = explain(pooled, images, 3, attributions=CAM("1", relu=False))
    found = explain(pooled, images, 3, attributions=method("1", pre_softmax, relu=False))
    torch.testing.assert_close(found, cam / 36)


@pytest.mark.parametrize("method", [HiResCAM, XGradCAM])
def test_the_map_sums_to_the_logit_less_its_bias_where_what_follows_is_linear(method):
    """sum_kij g A, whatever the linear function; Grad-CAM's map does not sum to it."""
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 4)).double()
    images = random_images(2, dtype=torch.float64)
    logits = (model(images) - model[2].bias)[:, 1].detach()
    sums = explain(model, images, 1, attributions=method("0", pre_softmax, relu=False)).sum((1, 2))
    torch.testing.assert_close(sums, logits)
    other = explain(model, images, 1, attributions=GradCAM("0", pre_softmax, relu=False)).sum((1, 2))
    assert (other - logits).abs().min() > 1e-3


def test_layercam_keeps_positive_gradients_only():
    """Two channels, two positions, on paper."""
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 1, bias=False))
    model[2].weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    image = torch.tensor([[[[5.0, 6.0]], [[7.0, -8.0]]]])
    assert explain(model, image, 1, attributions=LayerCAM("0", pre_softmax)).tolist() == [[[26.0, 0.0]]]


def test_xgradcam_gives_no_weight_to_channels_that_sum_to_zero():
    """Dead ones, and signed ones that cancel; the others are not touched."""
    activations = torch.tensor([[[[0.0, 0.0]], [[1.0, -1.0]], [[1.0, 3.0]]]])
    weights = xgradcam_weights(activations, torch.full((1, 3, 1, 2), 2.0))
    assert weights.tolist() == [[0.0, 0.0, 2.0]]


def test_xgradcam_of_a_dead_channel_has_a_finite_derivative():
    """The guard holds in the backward pass, too."""
    activations = torch.zeros(1, 1, 1, 2, requires_grad=True)
    xgradcam_weights(activations, torch.ones(1, 1, 1, 2)).sum().backward()
    assert activations.grad.isfinite().all()


def test_hirescam_of_equal_gradients_is_gradcam():
    """Their maps are the same where the gradient of a channel is constant."""
    activations = random_images(2, channels=5)
    gradients = random_images(2, size=1, channels=5).expand(2, 5, 8, 8)
    expected = torch.einsum("ndhw,nd->nhw", activations, gradients.mean((2, 3)))
    torch.testing.assert_close(hirescam(activations, gradients), expected)
