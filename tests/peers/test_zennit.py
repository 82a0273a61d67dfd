"""Relevance of zennit: equal to ours but for biases."""

from functools import partial

import pytest
import torch
from peers.networks import assert_equal_maps, both, difference, images, resnet, vgg

from benchmarks.peers import zennit_guided_gradient, zennit_integrated_gradients, zennit_lrp, zennit_smoothgrad
from lightning_xai.attribution import FromCallable, GuidedGradient, InputGradient
from lightning_xai.attribution.lrp.methods import LRP, Rules
from lightning_xai.attribution.lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, ZBox
from lightning_xai.scores import pre_softmax

pytest.importorskip("zennit")
pytestmark = pytest.mark.peers

LOW, HIGH = -6.0, 6.0


def composite(model, images, targets, *, make):
    """The relevance that zennit's composite of that name gives the colours of each pixel."""
    from zennit.attribution import Gradient

    def seeds(logits):
        return logits * torch.nn.functional.one_hot(targets, logits.shape[1])

    with Gradient(model, make()) as attributor:
        return attributor(images, seeds)[1]


def epsilon_plus_flat(**options):
    """z+, epsilon in linear layers, flat at the image."""
    from zennit.composites import EpsilonPlusFlat

    return EpsilonPlusFlat(**options)


def epsilon_gamma_box():
    """gamma, epsilon in linear layers, zB at the image."""
    from zennit.composites import EpsilonGammaBox

    return EpsilonGammaBox(low=torch.full((1, 3, 64, 64), LOW), high=torch.full((1, 3, 64, 64), HIGH))


def epsilon_alpha2_beta1_flat():
    """Alpha-beta, epsilon in linear layers, flat at the image."""
    from zennit.composites import EpsilonAlpha2Beta1Flat

    return EpsilonAlpha2Beta1Flat()


RULES = {
    epsilon_plus_flat: Rules(first=Flat(), linear=Epsilon(1e-6)),
    epsilon_gamma_box: Rules(first=ZBox((LOW,) * 3, (HIGH,) * 3), convolution=Gamma(0.25), linear=Epsilon(1e-6)),
    epsilon_alpha2_beta1_flat: Rules(first=Flat(), convolution=AlphaBeta(2.0, 1.0), linear=Epsilon(1e-6)),
}


@pytest.mark.parametrize("make", RULES, ids=lambda make: make.__name__)
def test_rules_are_equal_on_vgg_without_biases(make):
    """z+, gamma, alpha-beta, epsilon, flat and zB, through max-pooling and in-place rectifiers."""
    assert_equal_maps(*both(vgg(), LRP(rules=RULES[make]), composite, make=make), tolerance=1e-3)


def test_zennits_z_plus_gives_relevance_to_positive_biases():
    """The papers' rule has none in its denominator; without them in zennit's, the maps are equal."""
    model, ours = vgg(bias=2.0), LRP(rules=Rules(first=Flat(), linear=Epsilon(1e-6)))
    found, theirs = both(model, ours, composite, make=epsilon_plus_flat)
    assert difference(theirs, found) > 0.05
    assert_equal_maps(
        *both(model, ours, composite, make=partial(epsilon_plus_flat, zero_params=["bias"])), tolerance=1e-3
    )


def test_relevance_of_a_resnet_is_equal():
    """Folded batch normalisation and residual sums, which zennit needs a canonizer for."""
    model = resnet()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # folding makes biases, see above
            module.bias.data = module.running_mean * module.weight.data / (module.running_var + module.eps).sqrt()
    model.fc.bias.data.zero_()
    ours = LRP(rules=Rules(first=Flat(), linear=Epsilon(1e-6)))
    assert_equal_maps(*both(model, ours, zennit_lrp), tolerance=1e-3)


@pytest.mark.parametrize("network", [resnet, vgg])
def test_guided_gradient_is_equal(network):
    """Rectifiers that are modules."""
    assert_equal_maps(*both(network(), GuidedGradient(score=pre_softmax), zennit_guided_gradient))


def test_zennits_smoothgrad_without_noise_is_the_gradient():
    """As ours is."""
    assert_equal_maps(*both(vgg(), InputGradient(score=pre_softmax), zennit_smoothgrad, n_samples=2, noise_level=0.0))


def test_zennits_integrated_gradients_are_the_right_hand_sum():
    """Gradients at 1/n, 2/n, ..., 1: of the first order, where the trapezoid and Gauss-Legendre are of higher."""

    def right_hand(model, images, targets):
        total = 0
        for i in range(1, 6):
            point = (images * i / 5).detach().requires_grad_()
            scores = model(point).gather(1, targets[:, None]).sum()
            total = total + torch.autograd.grad(scores, point)[0] / 5
        return total * images

    model = vgg(bias=0.2).double()  # in float32 a point of the path may lie on either side of a kink
    theirs = partial(zennit_integrated_gradients, n_steps=5)
    assert_equal_maps(*both(model, FromCallable(right_hand), theirs, images().double()))
