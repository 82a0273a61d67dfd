"""CAMs of torch-cam: equal to ours, and where not, why."""

import pytest
import torch
import torch.nn.functional as F
from peers.networks import TARGETS, assert_equal_maps, both, difference, each_network, images, resnet

from benchmarks.peers import torchcam
from lightning_xai.attribution import GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM, XGradCAM, upsample
from lightning_xai.attribution.cam import weighted_sum
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import Capture, run

pytest.importorskip("torchcam")
pytestmark = pytest.mark.peers

CAMS = {"GradCAM": GradCAM, "LayerCAM": LayerCAM, "XGradCAM": XGradCAM}


def captured(model, layer):
    """Activations of a layer, and gradients of the logits with respect to them."""
    trace, targets = run(model, images(), Capture({layer: model.get_submodule(layer)})), torch.tensor(TARGETS)
    return trace.activation(layer), trace.gradient(pre_softmax, targets, of=layer)


@each_network
@pytest.mark.parametrize("method", CAMS)
def test_cams_are_equal(network, layer, method):
    """Grad-CAM, LayerCAM and XGrad-CAM, as they are."""
    assert_equal_maps(*both(network(), CAMS[method](layer, score=pre_softmax), torchcam, method=method, layer=layer))


def test_their_gradcam_plus_plus_weighs_channels_by_cubes_of_gradients():
    """The division by the denominator of eq. 19 is done on a copy: what is left is ``sum ReLU(g)^3``."""
    model, layer = resnet(), "layer4"
    ours, theirs = both(model, GradCAMPlusPlus(layer, score=pre_softmax), torchcam, method="GradCAMpp", layer=layer)
    activations, gradients = captured(model, layer)
    cubes = upsample(weighted_sum(activations, gradients.relu().pow(3).sum((2, 3))).relu(), images())
    assert_equal_maps(cubes, theirs)
    alphas = 1 / (2 + gradients * activations.sum((2, 3), keepdim=True))
    exact = upsample(weighted_sum(activations, (alphas * gradients.relu()).sum((2, 3))).relu(), images())
    assert difference(ours / ours.amax((1, 2), keepdim=True), exact / exact.amax((1, 2), keepdim=True)) < 1e-4
    assert difference(theirs / theirs.amax((1, 2), keepdim=True), exact / exact.amax((1, 2), keepdim=True)) > 0.02


def test_their_score_cam_scales_masks_before_they_are_resized():
    """Resized masks then do not reach 0 and 1, as the paper's eq. 4 has them; scaled after it, they give our map."""
    model, layer = resnet(), "layer1"
    ours, theirs = both(model, ScoreCAM(layer, score=pre_softmax), torchcam, method="ScoreCAM", layer=layer)
    activations, _ = captured(model, layer)

    def unit(values):
        low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
        return (values - low) / (high - low)

    def resized(values):
        return F.interpolate(values, size=(64, 64), mode="bilinear", align_corners=False)

    def score_cam(masks):
        scores = []
        for image, target, own in zip(images(), TARGETS, masks, strict=True):
            with torch.no_grad():
                scores.append(torch.cat([model(image * some[:, None])[:, target] for some in own.split(16)]))
        return upsample(weighted_sum(activations, torch.stack(scores).softmax(1)).relu(), images())

    assert_equal_maps(score_cam(resized(unit(activations))), theirs, 1e-3)
    assert_equal_maps(score_cam(unit(resized(activations))), ours, 1e-3)
