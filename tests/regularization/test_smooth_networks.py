"""Networks with smooth rectifiers train with the term: a step of each against plain autograd, fifty of a small one."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support import random_images
from torch import nn

from common.data.generated import MEAN, STD, GeneratedImages
from lightning_xai import GuidedGradientLoss
from lightning_xai.regularization import keep_saturated

WEIGHT, LABELS = 0.5, torch.tensor([0, 1, 2])
RECTIFIERS = {"GELU", "GELUTanh", "SiLU", "Hardswish", "ReLU", "ReLU6"}  # by name: timm has classes of its own


def of_timm(name, **options):
    """A constructor."""
    return lambda: timm.create_model(name, num_classes=4, **options)


NETWORKS = {
    "EfficientNet": (of_timm("efficientnet_b0"), 32),
    "ConvNeXt": (of_timm("convnext_atto", depths=(1, 1, 1, 1), ls_init_value=1.0), 32),
    "MobileNetV3": (of_timm("mobilenetv3_small_050"), 32),
    "MobileNetV3 of torchvision": (lambda: torchvision.models.mobilenet_v3_small(num_classes=4), 32),
    "MobileNetV4": (of_timm("mobilenetv4_conv_small_050"), 32),
    "ViT": (of_timm("vit_tiny_patch16_224", img_size=32, depth=3), 32),
    "ViT of torchvision": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4), 32),
    "Swin": (of_timm("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1, 1, 1)), 32),
    "Swin of torchvision": (
        lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=4),
        32,
    ),
}


def network(name):
    """Seeded, in float64 and in training mode; the last layer is not zero."""
    make, size = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().train()
        nn.init.normal_([module for module in model.modules() if isinstance(module, nn.Linear)][-1].weight, std=0.1)
    return model, random_images(3, size=size, dtype=torch.float64)


def hardsigmoid(x, inplace=False):
    """PyTorch's own cannot be differentiated twice."""
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, x / 6 + 0.5))


def by_plain_autograd(model, images):
    """L_C + lambda L_R; the guided gradient by hooks on modules, none of which works in place."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    leaf = images.clone().requires_grad_()
    guiding = []

    def clamp(module, gradients):
        return tuple(one.clamp(min=0) for one in gradients) if guiding else None

    for module in model.modules():
        if type(module).__name__ in RECTIFIERS:
            module.register_full_backward_pre_hook(clamp)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.manual_seed(1)
        loss = F.cross_entropy(model(leaf), LABELS)
    guiding.append(True)
    (taught,) = torch.autograd.grad(-loss, leaf, retain_graph=True)
    guiding.clear()
    (gradient,) = torch.autograd.grad(-loss, leaf, create_graph=True)
    return loss - WEIGHT * F.cosine_similarity(gradient.flatten(1), taught.flatten(1)).mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_with_the_term_is_that_of_plain_autograd(name, monkeypatch):
    """Loss and gradients of all parameters, in float64; dropout and stochastic depth are seeded."""
    model, images = network(name)
    plain = copy.deepcopy(model)
    term = GuidedGradientLoss(weight=WEIGHT, rectifiers="all", image_weights=keep_saturated)
    torch.manual_seed(1)
    found = term(model, images, LABELS, F.cross_entropy, 0)
    found.loss.backward()
    assert abs(found.cosine) < 0.9999
    monkeypatch.setattr(F, "hardsigmoid", hardsigmoid)
    expected = by_plain_autograd(plain, images)
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-8, atol=1e-10)
    gradients = [[one.grad for one in net.parameters() if one.grad is not None] for net in (model, plain)]
    largest = max(one.abs().max().item() for one in gradients[1])  # biases before a normalisation have none but noise
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-10 * largest)


def alignment(make, weight, rate=0.01, **options):
    """Mean cosine in the first and in the last eight of fifty steps on the recipes' generated images."""
    data = GeneratedImages(128, size=32)
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    images = (data.images / 255 - mean) / std
    torch.manual_seed(0)
    model, term, cosines = make(), GuidedGradientLoss(weight=weight, rectifiers="all", **options), []
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(50):
        batch = slice(16 * step % 128, 16 * step % 128 + 16)
        found = term(model, images[batch], data.labels[batch], F.cross_entropy, step)
        cosines.append(found.cosine.item())
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    return sum(cosines[:8]) / 8, sum(cosines[-8:]) / 8


@pytest.mark.parametrize("rectifier", [nn.SiLU, nn.GELU])
def test_fifty_steps_align_the_gradients_of_a_smooth_network(rectifier):
    """At a weight of nearly nothing they align less."""

    def make():
        return nn.Sequential(
            *(nn.Conv2d(3, 16, 5, padding=2), nn.BatchNorm2d(16), rectifier(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), rectifier(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(16, 8)),
        )

    rises = [last - first for first, last in (alignment(make, weight) for weight in (1e-9, 1.0))]
    assert rises[1] > max(0.1, 1.5 * rises[0])


def test_fifty_steps_align_the_gradients_of_a_convnext():
    """Which at a weight of nearly nothing fall apart: begun at .99, they end at .80."""
    sizes = {"depths": (2, 2, 4, 2), "dims": (16, 24, 32, 48), "ls_init_value": 1.0}

    def make():
        return timm.create_model("convnext_atto", num_classes=8, **sizes)

    (_, without), (first, last) = (alignment(make, weight) for weight in (1e-9, 3.0))
    assert without < 0.9 < first < last


def test_fifty_steps_align_the_gradients_of_an_efficientnet():
    """By running statistics: those of sixteen images move its gradients more than the term does."""

    def make():
        return timm.create_model("test_efficientnet", num_classes=8)

    (_, without), (_, last) = (alignment(make, weight, 3e-3, batch_norm="evaluation") for weight in (1e-9, 3.0))
    assert without < 0.4 < 0.6 < last
