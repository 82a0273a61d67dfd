"""Networks, images and comparisons that the tests against other libraries share."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_1
from torchvision.models.vgg import cfgs, make_layers

from lightning_xai import explain
from lightning_xai.attribution import FromCallable

TARGETS = [3, 7]


def resnet() -> nn.Module:
    """A random ResNet-18 whose batch normalisation has seen data and is far from the identity."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64) * 2 + 0.5)
    return model.eval()


def vgg(bias: float = 0.0) -> nn.Module:
    """The features of VGG-11 at random, in-place rectifiers included, with a small head."""
    torch.manual_seed(0)
    layers = make_layers(cfgs["A"])
    for module in layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.constant_(module.bias, bias)
    linear = [nn.Linear(2048, 64, bias=False), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10, bias=False)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *linear).eval()


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 with its real weights."""
    return _loaded(squeezenet1_1(), "imagenet_squeezenet1_1")


def mobilenet() -> nn.Module:
    """MobileNet v1 0.75 with its real weights: ReLU6, batch normalisation, and padding by function."""
    from timm.models.efficientnet import _gen_mobilenet_v1

    return _loaded(
        _gen_mobilenet_v1("mobilenetv1_100", 0.75, pad_type="same", bn_eps=1e-3), "imagenet_mobilenetv1_075_fp16"
    )


def _loaded(model: nn.Module, name: str) -> nn.Module:
    from safetensors.torch import load_file

    folder = os.environ.get("LIGHTNING_XAI_DATA")
    if folder is None:
        pytest.skip("needs the weights in $LIGHTNING_XAI_DATA")
    model.load_state_dict(load_file(Path(folder) / "weights" / f"{name}.safetensors"))
    return model.eval()


# a layer whose output nothing changes in place
CNNS = [(resnet, "layer4"), (vgg, "19"), (squeezenet, "features.11"), (mobilenet, "bn2")]
each_network = pytest.mark.parametrize(("network", "layer"), CNNS, ids=lambda value: getattr(value, "__name__", ""))


def images() -> Tensor:
    """Two images of 64 px, in the range of standardised photographs."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def both(model: nn.Module, ours, theirs, batch: Tensor | None = None, **options):
    """Our maps and theirs, by their function with its options, for one model that stays as it is."""
    methods = {"ours": ours, "theirs": FromCallable(partial(theirs, **options))}
    maps = explain(model, images() if batch is None else batch, TARGETS, attributions=methods)
    return maps["ours"], maps["theirs"]


def assert_equal_maps(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """No pixel differs by more than a share of the map's largest magnitude; empty maps prove nothing."""
    largest = expected.abs().amax((1, 2), keepdim=True)
    assert (largest > 0).all()
    assert ((found - expected).abs() / largest).max() < tolerance


def difference(found: Tensor, expected: Tensor) -> float:
    """The relative difference of two batches of maps, in the Euclidean norm."""
    return ((found - expected).norm() / expected.norm()).item()


def min_max(maps: Tensor) -> Tensor:
    """Each map scaled to [0, 1]."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)
