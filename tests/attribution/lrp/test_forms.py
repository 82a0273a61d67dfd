"""Two forms of one function have one map, and a one-to-one function loses nothing."""

import copy
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from support import random_images
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_xai.attribution.lrp.conservation import conservation_error
from lightning_xai.attribution.lrp.methods import LRP, Rules
from lightning_xai.attribution.lrp.rules import z_plus
from lightning_xai.attribution.lrp.seeds import target_logit
from lightning_xai.attribution.lrp.weighted import added, convolution_layer, diagonal_layer
from lightning_xai.trace import Capture, run

LOSS = "ignore:LRP expected the relevance of the pixels"


def calibrated(build, size=64):
    """A float64 model with seeded weights, whose normalisations are not neutral and have seen images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
                module.momentum = None
        with torch.no_grad():
            model.double().train()(torch.randn(8, 3, size, size).double())
    return model.eval()


def relevance_and_error(model, images, rules=None):
    """Relevance of the predicted class, and what is not conserved of it."""
    rules = Rules() if rules is None else rules
    trace = run(model, images, Capture(interception=rules))
    with trace.computing():
        targets = trace.logits.argmax(1)
        relevance = LRP(rules).relevance(trace, targets)
    return relevance, conservation_error(relevance, target_logit(trace.logits, targets))


def folded(model):
    """Each normalisation that stands behind a convolution in a module, as part of that."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, layer), (other, norm) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, other, getattr(norm, "act", nn.Identity()))
    return model


def reparameterized(model):
    """Parallel branches as one convolution, which timm does in float32."""
    return timm.utils.reparameterize_model(model.float()).double()


@pytest.mark.filterwarnings(LOSS)
@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_parallel_branches_have_the_map_of_their_convolution(name):
    """1 x 1 and 3 x 3 convolutions and the input itself, normalised each, some in place."""
    model = calibrated(lambda: timm.create_model(name, num_classes=5))
    images = random_images(2, 64, dtype=torch.float64)
    found, _ = relevance_and_error(model, images)
    expected, _ = relevance_and_error(reparameterized(model), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["regnety_002", "resnet18", "starnet_s050"])
def test_folding_a_normalisation_changes_nothing(name):
    """Behind a convolution it is part of it."""
    model, images = (
        calibrated(lambda: timm.create_model(name, num_classes=5)),
        random_images(2, 64, dtype=torch.float64),
    )
    found, _ = relevance_and_error(model, images)
    expected, error = relevance_and_error(folded(model), images)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * expected.abs().max().item())
    assert error.abs().max() < 0.01


class Mixed(nn.Module):
    """Convolutions of different sizes side by side, normalised together: in one piece or in three."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.small, self.large = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2)
        self.norm, self.head = nn.BatchNorm2d(7), nn.Linear(7, 3)

    def forward(self, images):
        small, large = F.relu(self.first(images)).split([2, 4], 1)
        return self.head(F.relu(self.norm(torch.cat([self.small(small), self.large(large)], 1))).mean((2, 3)))


class MixedInParts(Mixed):
    """The same with the normalisation folded into both."""

    def forward(self, images):
        parts = F.relu(self.first(images)).split([2, 4], 1)
        places, convolutions, outputs = (slice(0, 3), slice(3, 7)), (self.small, self.large), []
        for part, place, convolution in zip(parts, places, convolutions, strict=True):
            norm = nn.BatchNorm2d(len(range(7)[place])).double().eval()
            norm.load_state_dict({k: v[place] if v.ndim else v for k, v in self.norm.state_dict().items()})
            outputs.append(fuse_conv_bn_eval(convolution, norm)(part))
        return self.head(F.relu(torch.cat(outputs, 1)).mean((2, 3)))


def test_normalisation_of_convolutions_side_by_side_is_part_of_each():
    """As in MixNet."""
    model, images = calibrated(Mixed, 8), random_images(2, 8, dtype=torch.float64)
    parts = MixedInParts().double().eval()
    parts.load_state_dict(model.state_dict())
    found, expected = (relevance_and_error(one, images)[0] for one in (model, parts))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["densenet121", "resnetv2_18", "regnetv_040", "inception_next_atto"])
def test_a_normalisation_that_follows_no_layer_loses_nothing(name):
    """All relevance arrives, and none of it is noise that cancels: pixels have none of the other sign."""
    model, images = (
        calibrated(lambda: timm.create_model(name, num_classes=5)),
        random_images(2, 64, dtype=torch.float64),
    )
    relevance, error = relevance_and_error(model, images)
    assert error.abs().max() < 0.01
    total = relevance.sum((1, 2, 3))
    torch.testing.assert_close(relevance.abs().sum((1, 2, 3)), total.abs(), rtol=1e-2, atol=0)
    single, _ = relevance_and_error(copy.deepcopy(model).float(), images.float())
    assert (single - relevance).norm() < 1e-3 * relevance.norm()


ADDED = {
    "1 x 1 and 3 x 3": ((4, 4, 1, 1), {}, (4, 4, 3, 3), {"padding": 1}),
    "strided": ((2, 4, 1, 1), {"stride": 2}, (2, 4, 3, 3), {"padding": 1, "stride": 2}),
    "dilated": ((2, 4, 3, 3), {"padding": 2, "dilation": 2}, (2, 4, 5, 5), {"padding": 4, "dilation": 2}),
    "depthwise": ((4, 1, 1, 1), {"groups": 4}, (4, 1, 3, 3), {"padding": 1, "groups": 4}),
    "a scale of channels and a dense layer": ((4, 1, 1, 1), {"groups": 4}, (4, 4, 3, 3), {"padding": 1}),
    "a scale of channels and groups": ((4, 1, 1, 1), {"groups": 4}, (4, 2, 3, 3), {"padding": 1, "groups": 2}),
}


@pytest.mark.parametrize("name", ADDED)
def test_added_convolutions_are_one(name):
    """Its outputs are the sums of theirs, in either order."""
    shape, options, other_shape, other_options = ADDED[name]
    generator = torch.Generator().manual_seed(0)
    outputs, layers = [], []
    images = torch.randn(2, 4, 9, 9, generator=generator).double()
    for one, given in ((shape, options), (other_shape, other_options)):
        weight, bias = (torch.randn(size, generator=generator).double() for size in (one, one[:1]))
        outputs.append(F.conv2d(images, weight, bias, **given))
        layers.append(convolution_layer(weight, bias, **given))
    for first, second in (layers, layers[::-1]):
        both = added(first, second)
        torch.testing.assert_close(both.forward(images, both.weight) + both.bias, outputs[0] + outputs[1])


def test_what_is_no_single_convolution_stays_two():
    """Other strides, windows that do not fit into one another, other groups."""
    weight = torch.ones(4, 4, 3, 3)
    plain = convolution_layer(weight, padding=1)
    for other in (
        convolution_layer(weight, padding=1, stride=2),
        convolution_layer(torch.ones(4, 4, 1, 5), padding=(0, 2)),
        convolution_layer(torch.ones(4, 2, 3, 3), padding=1, groups=2),
    ):
        assert added(plain, other) is None


def test_a_skip_over_one_convolution_is_part_of_it():
    """``x + conv(x)``, ``0.5 * conv(x) + x`` and ``x - conv(x)`` are convolutions; ``relu(x) + conv(x)`` is none."""

    class Skip(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function
            self.first, self.second = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, images):
            hidden = self.first(images)
            return self.head(F.relu(self.function(hidden, self.second)).mean((2, 3)))

    def merged(hidden, convolution, scale, sign):
        identity = diagonal_layer(torch.ones(4).double(), None, 2)
        layer = convolution_layer(scale * convolution.weight, scale * convolution.bias, padding=1)
        both = added(identity, layer.scaled(sign))
        return F.conv2d(hidden, both.weight.detach(), both.bias.flatten().detach(), padding=1)

    images = random_images(2, 8, dtype=torch.float64)
    for function, scale, sign in (
        (lambda x, f: x + f(x), 1, 1),
        (lambda x, f: f(x) * 0.5 + x, 0.5, 1),
        (lambda x, f: x - f(x), 1, -1),
        (lambda x, f: sum([f(x), x]), 1, 1),
    ):
        model, other = (
            calibrated(lambda one=one: Skip(one), 8)
            for one in (function, lambda x, f, s=scale, g=sign: merged(x, f, s, g))
        )
        found, expected = (relevance_and_error(one, images, Rules(first=z_plus))[0] for one in (model, other))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
