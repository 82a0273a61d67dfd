"""Finer-CAM against a loop written from the paper, in float64."""

import pytest
import torch
from support import activation, random_images, small_net, tail

from lightning_xai import explain
from lightning_xai.attribution import FinerCAM
from lightning_xai.attribution.finer_cam import SimilarClasses


@pytest.fixture
def model():
    """Float64, with signed activations at ``bn1``."""
    return small_net().double()


@pytest.mark.parametrize(("n_classes", "strength"), [(1, 1.0), (2, 0.6), (9, 1.0)])
def test_finer_cam_is_the_gradcam_of_the_difference_from_the_nearest_classes(model, n_classes, strength):
    """Sorted in a loop; the mean gradient by the Jacobian."""
    images = random_images(3, dtype=torch.float64)
    found = explain(model, images, [0, 1, 2], attributions=FinerCAM("bn1", n_classes, strength, relu=False))
    for target, (image, one) in enumerate(zip(images, found, strict=True)):
        whole = activation(model, image)
        logits = tail(model, whole)
        others = [k for k in range(len(logits)) if k != target]
        near = sorted(others, key=lambda k: abs(logits[k] - logits[target]).item())[:n_classes]

        def difference(hidden, target=target, near=near):
            z = tail(model, hidden)
            return z[target] - strength * sum(z[k] for k in near) / len(near)

        gradient = torch.autograd.functional.jacobian(difference, whole)
        expected = sum(gradient[k].mean() * whole[k] for k in range(len(whole)))
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)


def test_what_is_added_to_all_logits_leaves_the_difference():
    """At full strength."""
    logits, targets = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(SimilarClasses()(logits + 7, targets), SimilarClasses()(logits, targets))
    assert not torch.allclose(
        SimilarClasses(strength=0.5)(logits + 7, targets), SimilarClasses(strength=0.5)(logits, targets)
    )


def test_finer_cam_wants_another_class():
    """Two logits, and one similar class."""
    with pytest.raises(ValueError, match="`FinerCAM` expected logits of at least 2 classes"):
        SimilarClasses()(torch.zeros(2, 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`n_classes` expected"):
        FinerCAM(n_classes=0)
