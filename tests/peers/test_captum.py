"""Maps of captum: equal to ours but where its hooks do not see a rectifier."""

import pytest
import torch
from peers.networks import TARGETS, assert_equal_maps, both, difference, each_network, images, mobilenet, resnet, vgg
from torch import nn

from benchmarks.peers import captum_gradcam, captum_guided_gradient, captum_integrated_gradients, captum_smoothgrad
from lightning_xai import explain
from lightning_xai.attribution import (
    GradCAM,
    GuidedGradCAM,
    GuidedGradient,
    InputGradient,
    InputXGradient,
    IntegratedGradients,
    SmoothGrad,
)
from lightning_xai.attribution.deeplift import DeepLIFT
from lightning_xai.noise import generators
from lightning_xai.scores import pre_softmax

pytest.importorskip("captum")
pytestmark = [
    pytest.mark.peers,
    # captum says so at each call of guided backpropagation and DeepLIFT, and takes them off again
    pytest.mark.filterwarnings("ignore:Setting (backward hooks|forward, backward hooks)"),
]
ZERO = torch.tensor(0.0)


def captum_gradient(model, images, targets):
    """The signed gradient, (N,C,H,W)."""
    from captum.attr import Saliency

    return Saliency(model).attribute(images, targets, abs=False)


def captum_input_x_gradient(model, images, targets):
    """Image times gradient, (N,C,H,W)."""
    from captum.attr import InputXGradient

    return InputXGradient(model).attribute(images, targets)


def captum_guided_gradcam(model, images, targets, *, layer):
    """Guided backpropagation times Grad-CAM, resized bilinearly, (N,C,H,W)."""
    from captum.attr import GuidedGradCam

    return GuidedGradCam(model, model.get_submodule(layer)).attribute(images, targets, interpolate_mode="bilinear")


def captum_deeplift(model, images, targets, *, baseline):
    """DeepLIFT's rescale rule, (N,C,H,W)."""
    from captum.attr import DeepLift

    return DeepLift(model).attribute(images, baseline, targets)


@each_network
def test_gradcam_is_equal(network, layer):
    """With captum's relu_attributions, which is not its default."""
    assert_equal_maps(*both(network(), GradCAM(layer, score=pre_softmax), captum_gradcam, layer=layer))


@each_network
def test_gradient_is_equal(network, layer):
    """Saliency of captum without its absolute value."""
    assert_equal_maps(*both(network(), InputGradient(score=pre_softmax), captum_gradient))


@each_network
def test_input_x_gradient_is_equal(network, layer):
    """Summed over colours."""
    assert_equal_maps(*both(network(), InputXGradient(score=pre_softmax), captum_input_x_gradient))


@each_network
def test_integrated_gradients_are_equal(network, layer):
    """The same nodes and weights; captum's come from numpy."""
    ours = IntegratedGradients(score=pre_softmax, n_steps=8, baseline=ZERO)
    assert_equal_maps(*both(network(), ours, captum_integrated_gradients, n_steps=8))


@pytest.mark.parametrize("network", [resnet, vgg])
def test_guided_gradient_is_equal_where_rectifiers_are_relu_modules(network):
    """In-place and re-used ones included."""
    assert_equal_maps(*both(network(), GuidedGradient(score=pre_softmax), captum_guided_gradient))


def test_captums_guided_gradient_of_relu6_is_the_plain_gradient():
    """It looks for modules of type ReLU, finds none in this MobileNet, and says nothing."""
    model = mobilenet()
    ours, theirs = both(model, GuidedGradient(score=pre_softmax), captum_guided_gradient)
    assert_equal_maps(theirs, explain(model, images(), TARGETS, attributions=InputGradient(score=pre_softmax)))
    assert difference(theirs, ours) > 0.5


@pytest.mark.parametrize(("network", "layer"), [(resnet, "layer4"), (vgg, "19")])
def test_guided_gradcam_is_equal(network, layer):
    """With bilinear resizing; captum's default is the nearest position."""
    ours = GuidedGradCAM(layer, score=pre_softmax)
    assert_equal_maps(*both(network(), ours, captum_guided_gradcam, layer=layer))


def test_smoothgrad_is_equal_for_equal_noise(monkeypatch):
    """Its deviation is one number for all images, so it is compared with one image, and given our noise."""
    image, model, samples = images()[:1], resnet(), 4
    source = generators(image, 0)[0]
    deviation = 0.15 * (image.max() - image.min()).item()
    monkeypatch.setattr(torch, "normal", lambda mean, std: torch.randn(std.shape[1:], generator=source)[None] * std)
    theirs = captum_smoothgrad(
        model, image.requires_grad_(), torch.tensor([3]), n_samples=samples, deviation=deviation
    ).sum(1)
    ours = explain(model, image.detach(), 3, attributions=SmoothGrad(score=pre_softmax, n_samples=samples))
    assert_equal_maps(ours, theirs.detach())


class Copy(nn.Module):
    """A new tensor of the same values."""

    def forward(self, values):
        return values.clone()


def deeplift(model):
    """DeepLIFT of a network that uses no module twice, as captum requires; ours, theirs, and what they distribute."""
    baseline = torch.full((2, 3, 64, 64), -0.5)
    with torch.no_grad():
        changes = (model(images()) - model(baseline)).gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    ours, theirs = both(model, DeepLIFT(score=pre_softmax, baseline=baseline), captum_deeplift, baseline=baseline)
    return ours, theirs, changes


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_deeplift_is_equal_where_no_pooling_follows_a_rectifier(bias):
    """VGG-11 with a copy between the two; both are complete."""
    layers = [(Copy(), layer) if isinstance(layer, nn.MaxPool2d) else (layer,) for layer in vgg(bias)]
    ours, theirs, changes = deeplift(nn.Sequential(*[one for group in layers for one in group]).eval())
    assert_equal_maps(ours, theirs)
    torch.testing.assert_close(ours.sum((1, 2)), changes, rtol=1e-3, atol=1e-5)


def test_captums_deeplift_is_not_complete_where_pooling_follows_a_rectifier():
    """Its hooks sit on one tensor: that of the rectifier reads the gradient before that of the pooling replaces it."""
    ours, theirs, changes = deeplift(vgg(bias=0.1))
    torch.testing.assert_close(ours.sum((1, 2)), changes, rtol=1e-3, atol=1e-5)
    assert (theirs.sum((1, 2)) - changes).abs().max() > 0.005 * changes.abs().max()
    assert difference(theirs, ours) > 0.1
