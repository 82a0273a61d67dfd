"""The paper's edit at K = 10 on trained ImageNet classifiers and photographs."""

import copy
import os
from pathlib import Path

import pytest
import torch

from lightning_xai import GradCAM, explain
from lightning_xai.integrity import Verdict, center_logits, compare_models, inspect_model, locate_shift
from lightning_xai.integrity.measures import class_weighted_maps, mean_logit
from lightning_xai.ranks import rank_correlation
from lightning_xai.scores import centered, predicted
from lightning_xai.trace import Capture, run
from papers.logit_shift.attacks import PositionShift
from papers.logit_shift.honest import photos

DATA = os.environ.get("LIGHTNING_XAI_DATA")
NETWORKS = ("SqueezeNet", "MobileNet")
CORNERS = [(0, 0), (-1, -1)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA, reason="needs the folder $LIGHTNING_XAI_DATA"),
]


@pytest.fixture(scope="module")
def subjects():
    """Networks by name, each with twenty photographs and a layer."""
    return {one.subject.name: (one.subject.network, one.images, one.layers[0]) for one in photos(Path(DATA), 20)}


@pytest.fixture(params=NETWORKS)
def subject(request, subjects):
    """A network, its photographs, and its layer."""
    return subjects[request.param]


def raw_maps(model, images, layer):
    """Activations, and the maps of the raw logit before any ReLU."""
    trace = run(model, images, Capture({layer: model.get_submodule(layer)}))
    targets = predicted(trace.logits)
    gradients = trace.gradient(mean_logit, targets, of=layer) + trace.gradient(centered, targets, of=layer)
    return trace.activation(layer), class_weighted_maps(trace.activation(layer), gradients)


def test_softmax_is_unchanged(subject):
    """To 1e-12 in float64, and to a few eps |t| in float32."""
    model, images, layer = subject
    altered = PositionShift(layer)(model)
    with torch.no_grad():
        before, after = model(images).softmax(1), altered(images).softmax(1)
        size = altered(images).abs().max()
        assert size > 1000
        assert (after - before).abs().max() <= 4 * torch.finfo(torch.float32).eps * size
        images = images[:4].double()
        before, after = model.double()(images).softmax(1), altered.double()(images).softmax(1)
        model.float()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("corner", CORNERS)
def test_gradcam_is_the_sum_of_the_activations_and_hirescam_peaks_at_the_corner(subject, corner):
    """Whatever the corner; HiResCAM on at least 95 % of the photographs."""
    model, images, layer = subject
    activations, maps = raw_maps(PositionShift(layer, corner)(model), images, f"model.{layer}")
    total = activations.sum(1)
    pairs = zip(maps["Grad-CAM"].flatten(1), total.flatten(1), strict=True)
    pearson = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    assert pearson.min() > 0.99
    peaks = maps["HiResCAM"].flatten(1).argmax(1)
    expected = 0 if corner == (0, 0) else total[0].numel() - 1
    assert (peaks == expected).float().mean() >= 0.95


def test_centered_maps_are_unchanged(subject):
    """To roundings of the shift."""
    model, images, layer = subject
    altered = PositionShift(layer)(model)
    clean = explain(model, images, attributions=GradCAM(layer, relu=False), score=centered)
    found = explain(altered, images, attributions=GradCAM(f"model.{layer}", relu=False), score=centered)
    assert (found - clean).abs().max() <= 1e-3 * clean.abs().max()
    assert rank_correlation(found, clean).min() > 0.999


def test_edit_is_flagged_located_and_repaired(subject):
    """Without and with a reference; the clean network is not, at the layer."""
    model, images, layer = subject
    altered = PositionShift(layer, (1, 2))(model)
    assert not inspect_model(model, images, layer=layer).verdict.alarms
    assert inspect_model(altered, images, layer=f"model.{layer}").verdict is Verdict.LOGIT_SHIFT
    assert compare_models(altered, model, images, reference_layer=layer).verdict is Verdict.LOGIT_SHIFT
    found = locate_shift(altered, images[:4])
    assert (found.layer, found.position) == (f"model.{layer}", (1, 2))
    repaired = center_logits(altered, images[:4])
    assert inspect_model(repaired, images, layer=f"model.model.{layer}").suspicion < 1e-3


def test_half_precision_passes_as_benign(subject):
    """Against a fingerprint taken in float32."""
    model, images, layer = subject
    half = copy.deepcopy(model).bfloat16()
    comparison = compare_models(half, model, images[:8], layer=layer, reference_layer=layer)
    assert comparison.figures["logit residual"] > 1e-3
    assert comparison.verdict is Verdict.UNCHANGED
