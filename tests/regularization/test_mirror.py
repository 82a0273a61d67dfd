"""Consistency of maps under mirroring: exact where a network is symmetric, and against a reference written apart."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lightning_xai as xai
from lightning_xai.regularization import mirror_consistency
from lightning_xai.scores import second_best


def network(symmetric=False):
    """Two convolutions with batch normalisation, float64."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).double()
    if symmetric:
        for part in (model[0], model[3]):
            part.weight.data = (part.weight + part.weight.flip(3)).detach() / 2
    return model


IMAGES = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 2])


def reference(model, images, labels):
    """Signed Grad-CAM of the logit minus the mean logit, by plain autograd at 8 x 8."""

    def cam(images):
        features = model[:5](images)
        logits = model[5:](features)
        score = logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)
        (gradient,) = torch.autograd.grad(score.sum(), features, create_graph=True)
        return (gradient.mean((2, 3), keepdim=True) * features).sum(1)

    pairs = zip(cam(images.flip(3)), cam(images).flip(2), strict=True)
    return sum(1 - (a * b).sum() / (a.norm() * b.norm()) for a, b in pairs) / len(images)


def test_a_network_that_is_symmetric_has_no_loss():
    """Its map of a mirrored image is the mirrored map."""
    assert mirror_consistency(network(symmetric=True).eval(), IMAGES, LABELS).item() == pytest.approx(0, abs=1e-12)


def test_value_and_gradient_are_those_of_the_reference():
    """By plain autograd, float64."""
    model = network().eval()
    expected = reference(model, IMAGES, LABELS)
    found = mirror_consistency(model, IMAGES, LABELS)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    assert found.item() > 0.01
    parameters = list(model.parameters())
    for one, other in zip(
        *(torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_rule_is_asked_of_the_images_as_they_are():
    """Both halves are explained for one class, also where the network would say another of the mirrored image."""
    model = network().eval()
    classes = second_best(model(IMAGES), None)
    found, expected = (mirror_consistency(model, IMAGES, one) for one in (second_best, classes))
    assert found.item() == expected.item()


def test_a_network_in_training_keeps_mode_and_statistics():
    """Maps are those of evaluation mode."""
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mirror_consistency(model, IMAGES, LABELS, attribution=xai.GradCAM("4", relu=False)).backward()
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model[0].weight.grad.abs().sum() > 0


def test_a_few_steps_make_maps_consistent():
    """It is a loss that can be lowered."""
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = mirror_consistency(model, IMAGES, LABELS)
        (F.cross_entropy(model(IMAGES), LABELS) + loss).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_methods_without_a_derivative_are_refused():
    """As `explain` does."""
    with pytest.raises(RuntimeError, match="create_graph"):
        mirror_consistency(network().eval(), IMAGES, LABELS, attribution=xai.LRP())
