"""CAMs of pytorch-grad-cam, which are min-max normalised: equal to ours, and where not, why."""

import pytest
import torch
import torch.nn.functional as F
from peers.networks import TARGETS, assert_equal_maps, both, each_network, images, min_max, resnet, vgg

from benchmarks.peers import grad_cam_package
from lightning_xai import explain
from lightning_xai.attribution import (
    AblationCAM,
    FinerCAM,
    FromCallable,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
    upsample,
)
from lightning_xai.attribution.cam import weighted_sum
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import Capture, run

pytest.importorskip("pytorch_grad_cam")
pytestmark = pytest.mark.peers

CAMS = {"GradCAM": GradCAM, "HiResCAM": HiResCAM, "LayerCAM": LayerCAM, "XGradCAM": XGradCAM}


def captured(model, layer):
    """Activations of a layer, gradients of the logits with respect to them, the images and targets."""
    trace, targets = run(model, images(), Capture({layer: model.get_submodule(layer)})), torch.tensor(TARGETS)
    return trace.activation(layer), trace.gradient(pre_softmax, targets, of=layer)


def test_ablation_cam_is_equal():
    """Their weights are divided by the score, which their normalisation takes away again."""
    model, layer = resnet(), "layer1"
    ours, theirs = both(model, AblationCAM(layer, pre_softmax), grad_cam_package, method="AblationCAM", layer=layer)
    assert_equal_maps(min_max(ours), theirs, 1e-3)


def test_finer_cam_is_equal_where_one_class_is_compared():
    """With several, theirs are weighted by probabilities."""

    def theirs(model, images, targets):
        import pytorch_grad_cam

        method = pytorch_grad_cam.FinerCAM(model, [model.get_submodule("layer4")])
        return torch.from_numpy(method(images.detach(), comparison_categories=[1]))

    methods = {"ours": FinerCAM("layer4", n_classes=1), "theirs": FromCallable(theirs)}
    maps = explain(resnet(), images(), attributions=methods)
    assert_equal_maps(min_max(maps["ours"]), maps["theirs"], 1e-3)


@each_network
@pytest.mark.parametrize("method", CAMS)
def test_cams_are_equal(network, layer, method):
    """Grad-CAM, HiResCAM, LayerCAM and XGrad-CAM, after the same normalisation."""
    ours, theirs = both(network(), CAMS[method](layer, score=pre_softmax), grad_cam_package, method=method, layer=layer)
    assert_equal_maps(min_max(ours), theirs)


def test_their_gradcam_of_a_layer_before_an_in_place_rectifier_takes_its_activations_from_behind_it():
    """The hook keeps the tensor that is then overwritten; the formula with rectified activations gives their map."""
    model, layer = vgg(), "16"  # a convolution, with ReLU(inplace=True) behind
    ours, theirs = both(model, GradCAM(layer, score=pre_softmax), grad_cam_package, method="GradCAM", layer=layer)
    activations, gradients = captured(model, layer)
    wrong = upsample(weighted_sum(activations.relu(), gradients.mean((2, 3))).relu(), images())
    assert_equal_maps(min_max(wrong), theirs)
    right = upsample(weighted_sum(activations, gradients.mean((2, 3))).relu(), images())
    assert_equal_maps(ours, right)
    assert (min_max(ours) - theirs).abs().max() > 0.05


def test_their_gradcam_plus_plus_is_ours_with_an_epsilon_of_the_size_of_squared_gradients():
    """``1e-6`` in the denominator of eq. 19, where g^2 is smaller; the exact weights are ``1 / (2 + g sum A)``."""
    model, layer = resnet(), "layer4"
    ours, theirs = both(
        model, GradCAMPlusPlus(layer, score=pre_softmax), grad_cam_package, method="GradCAMPlusPlus", layer=layer
    )
    a, g = (one.double() for one in captured(model, layer))

    def weights(eps):
        alphas = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + eps)
        return torch.where(g != 0, alphas * g.relu(), 0).sum((2, 3))

    assert_equal_maps(min_max(upsample(weighted_sum(a, weights(1e-6)).relu(), images())), theirs.double())
    assert_equal_maps(min_max(upsample(weighted_sum(a, weights(0.0)).relu(), images())), min_max(ours).double())
    ratio = weights(1e-6) / weights(0.0)
    assert ratio[weights(0.0) > 0].min() < 0.99


def test_their_score_cam_resizes_masks_with_aligned_corners():
    """And maps without; with masks resized as maps are, the same sum gives our map."""
    model, layer = resnet(), "layer1"
    ours, theirs = both(model, ScoreCAM(layer, score=pre_softmax), grad_cam_package, method="ScoreCAM", layer=layer)
    activations, _ = captured(model, layer)

    def score_cam(align_corners):
        masks = F.interpolate(activations, size=(64, 64), mode="bilinear", align_corners=align_corners)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        masks = (masks - low) / (high - low + 1e-8)
        scores = []
        for image, target, own in zip(images(), TARGETS, masks, strict=True):
            with torch.no_grad():
                scores.append(torch.cat([model(image * some[:, None])[:, target] for some in own.split(16)]))
        weights = torch.stack(scores).softmax(1)
        return min_max(upsample(weighted_sum(activations, weights).relu(), images()))

    assert_equal_maps(score_cam(align_corners=True), theirs, 1e-3)
    assert_equal_maps(score_cam(align_corners=False), min_max(ours), 1e-3)


def test_they_change_the_model_and_from_callable_puts_it_back():
    """Their gradients replace those of training, and the model stays in evaluation mode."""
    model = resnet().train()
    model(images()).sum().backward()
    gradient = model.fc.weight.grad
    copy = gradient.clone()
    both(model, GradCAM("layer4"), grad_cam_package, method="GradCAM", layer="layer4")
    assert model.training
    assert model.fc.weight.grad is gradient
    assert torch.equal(gradient, copy)
    grad_cam_package(model, images(), torch.tensor(TARGETS), method="GradCAM", layer="layer4")
    assert not model.training
    assert model.fc.weight.grad is not gradient or not torch.equal(gradient, copy)
    assert explain(model, images(), attributions=GradCAM("layer4")).shape == (2, 64, 64)
