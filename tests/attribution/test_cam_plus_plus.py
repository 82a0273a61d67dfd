"""Grad-CAM++: its alphas against derivatives by autograd and on paper, and Smooth Grad-CAM++."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import random_images, small_net
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import GradCAMPlus, GradCAMPlusPlus, SmoothGradCAMPlusPlus
from lightning_xai.attribution.cam_plus_plus import (
    gradcam_plus_plus_weights,
    guarded_alphas,
    literal_alphas,
    smooth_weights,
)
from lightning_xai.noise import generators
from lightning_xai.scores import log_softmax, post_softmax, pre_softmax


def random_pair(seed=0, size=(5, 6, 7, 7)):
    """Non-negative activations and signed gradients, large enough to matter in the alphas, float64."""
    generator = torch.Generator().manual_seed(seed)
    activations = torch.rand(size, generator=generator, dtype=torch.float64)
    return activations, torch.randn(size, generator=generator, dtype=torch.float64) * 100


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_alphas_are_those_of_the_derivation(scale):
    """Eq. 8 of Lerma and Lucas 2022 with second and third derivatives of Y = exp(lambda S) by autograd."""
    weights = torch.tensor([[0.7, 0.2, 0.4], [0.1, 0.5, 0.3]], dtype=torch.float64)  # two channels of 1 x 3
    activations = torch.tensor([[0.3, 1.1, 0.2], [0.9, 0.4, 0.6]], dtype=torch.float64)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for k in range(2):
        for j in range(3):

            def y(unit, k=k, j=j):
                changed = activations.clone()
                changed[k, j] = unit
                return torch.exp(scale * (weights * changed).sum())

            derivatives = [activations[k, j].clone().requires_grad_()]
            value = y(derivatives[0])
            for _ in range(3):
                (value,) = torch.autograd.grad(value, derivatives[0], create_graph=True)
                derivatives.append(value)
            second, third = derivatives[2:]
            expected[k, j] = (second / (2 * second + activations[k].sum() * third)).detach()
    pair = activations.view(1, 2, 1, 3), weights.view(1, 2, 1, 3)
    for alphas in (guarded_alphas, literal_alphas):
        torch.testing.assert_close(alphas(*pair, scale=scale)[0, :, 0], expected, rtol=1e-12, atol=0)


def test_both_alphas_agree_where_the_map_uses_them():
    """Where g > 0 and A >= 0 the guard does nothing."""
    activations, gradients = random_pair()
    used = gradients > 0
    stable, literal = (alphas(activations, gradients, scale=2.0)[used] for alphas in (guarded_alphas, literal_alphas))
    torch.testing.assert_close(stable, literal, rtol=1e-12, atol=0)
    assert 0 < stable.min() < 1e-3
    assert stable.max() <= 0.5


def test_literal_alphas_of_zero_gradients_are_zero():
    """0/0 is 0 in the paper; 0 in the denominator alone is not hidden."""
    alphas = literal_alphas(torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[0.0, -1.0]]]]))
    assert alphas.flatten().tolist() == [0.0, math.inf]


def test_weights_survive_tiny_gradients():
    """g^2 underflows in float32 at 1e-30; the guarded alpha does not, and is 1/2 there."""
    gradients, ones = torch.full((1, 1, 2, 2), 1e-30), torch.ones(1, 1, 2, 2)
    found = gradcam_plus_plus_weights(guarded_alphas(ones, gradients), gradients)
    torch.testing.assert_close(found, torch.full((1, 1), 2e-30), rtol=1e-6, atol=0)
    assert gradcam_plus_plus_weights(literal_alphas(ones, gradients), gradients).item() == 0


def test_alphas_of_signed_layers_are_guarded():
    """Where g sum A approaches -2 the literal alpha explodes (Lerma and Lucas 2022 section 3.4); ours does not."""
    pair = torch.tensor([[[[-1.0, -1.0000001]]]]), torch.ones(1, 1, 1, 2)
    assert literal_alphas(*pair).abs().max() > 1e6
    assert guarded_alphas(*pair).flatten().tolist() == [1.0, 1.0]


def test_a_small_scale_makes_it_half_of_gradcam_plus():
    """Lambda to 0: alpha = 1/2 everywhere, and sums instead of means."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    small = explain(model, images, 1, attributions=GradCAMPlusPlus("conv2", scale=1e-9))
    plus = explain(model, images, 1, attributions=GradCAMPlus("conv2"))
    torch.testing.assert_close(small, plus * 16 / 2, rtol=1e-6, atol=1e-12)


def test_the_scale_of_exp_is_the_scale_of_the_score():
    """Y = exp(lambda S): explaining lambda S with lambda 1 gives lambda times the map."""
    model, images = small_net().double(), random_images(dtype=torch.float64)

    def tripled(logits, targets):
        return 3 * pre_softmax(logits, targets)

    scaled = explain(model, images, 1, attributions=GradCAMPlusPlus("relu", tripled))
    given = explain(model, images, 1, attributions=GradCAMPlusPlus("relu", pre_softmax, scale=3.0))
    torch.testing.assert_close(scaled, 3 * given, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(scaled, explain(model, images, 1, attributions=GradCAMPlusPlus("relu", pre_softmax)))


def test_log_and_post_softmax_differ():
    """Alpha depends on the score's scale: no constant factor makes one map the other."""
    model, images = small_net().double(), random_images(1, dtype=torch.float64)
    model.head.weight.data *= 10
    post, log = (
        explain(model, images, 2, attributions=GradCAMPlusPlus("relu", s)) for s in (post_softmax, log_softmax)
    )
    ratio = (post / log)[log > 0]
    assert ratio.max() > 1.001 * ratio.min()


def test_literal_alphas_can_be_handed_over():
    """The map of the printed formula, for those who want it."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    literal, default = (
        explain(model, images, 1, attributions=GradCAMPlusPlus("relu", alphas=alphas))
        for alphas in (literal_alphas, guarded_alphas)
    )
    torch.testing.assert_close(literal, default, rtol=1e-10, atol=1e-14)  # relu's output is not negative


def smooth_reference(model, image, target, *, n_samples, noise_level, seed):
    """Omeiza et al. by loops over samples, channels and positions, before upsampling."""

    def body(x):
        return model.conv2(F.max_pool2d(model.bn1(model.conv1(x[None])).relu(), 2))[0]

    def score(a):
        z = model.head(model.bn2(a[None]).relu().mean((2, 3)))[0]
        return z[target] - z.mean()

    (source,) = generators(image[None], seed)
    sums = [0.0, 0.0, 0.0]
    for _ in range(n_samples):
        noise = torch.randn(image.shape, generator=source).double()
        noisy = image + noise_level * (image.max() - image.min()) * noise
        g = torch.autograd.functional.jacobian(score, body(noisy).detach())
        sums = [total + g**power for power, total in enumerate(sums, start=1)]
    first, second, third = (total / n_samples for total in sums)
    activation = body(image).detach()
    heat = torch.zeros(activation.shape[1:], dtype=torch.float64)
    for k in range(len(activation)):
        weight = 0.0
        for i in range(heat.shape[0]):
            for j in range(heat.shape[1]):
                if first[k, i, j] > 0:
                    denominator = 2 * second[k, i, j] + activation[k].sum() * third[k, i, j]
                    weight += max(second[k, i, j] / denominator, 0) * first[k, i, j]
        heat += weight * activation[k]
    return heat.relu()


def test_smooth_map_equals_the_reference():
    """All derivatives averaged, the activations of the image itself, each image with noise of its own range."""
    model = small_net().double()
    model.conv2.bias.data += 3  # activations sum to something positive, so that the printed formula is regular
    images = random_images(3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1, 1)
    settings = {"n_samples": 4, "noise_level": 0.1, "seed": 7}
    found = explain(model, images, [0, 1, 2], attributions=SmoothGradCAMPlusPlus("conv2", **settings))
    for target, (image, one) in enumerate(zip(images, found, strict=True)):
        small = smooth_reference(model, image, target, **settings)
        expected = F.interpolate(small[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-14)


def test_without_noise_it_is_gradcam_plus_plus():
    """Means of equal values."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    smooth = explain(model, images, 1, attributions=SmoothGradCAMPlusPlus("relu", n_samples=3, noise_level=0.0))
    plain = explain(model, images, 1, attributions=GradCAMPlusPlus("relu"))
    torch.testing.assert_close(smooth, plain, rtol=1e-10, atol=1e-14)


def test_smooth_weights_survive_tiny_gradients():
    """D2 and D3 underflow to zero in float32; alpha is 1/2 there."""
    g = torch.tensor(1e-30)
    weights = smooth_weights(torch.ones(1, 1, 1, 1), torch.stack([g, g**2, g**3]).view(1, 3, 1, 1, 1))
    assert weights.item() == pytest.approx(5e-31)


def test_another_seed_gives_another_smooth_map_and_the_same_one_the_same():
    """The noise belongs to the image and the seed."""
    model, images = small_net(), random_images()
    first, again, other = (
        explain(model, images, 1, attributions=SmoothGradCAMPlusPlus("relu", n_samples=2, seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("method", [GradCAMPlusPlus, SmoothGradCAMPlusPlus])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(method, scale):
    """The derivation needs an increasing function of the score."""
    with pytest.raises(ValueError, match=r"`scale` expected a positive number, .* got"):
        method(scale=scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "`n_samples` expected 1 or more, got 0"),
        ({"noise_level": -0.1}, "`noise_level` expected a share of the image's range, 0 or more, got -0.1"),
        ({"batch_size": 0}, "`batch_size` expected 1 or more, or None for as many as there are images, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    """Before any pass."""
    with pytest.raises(ValueError, match=message):
        SmoothGradCAMPlusPlus(**arguments)


def test_a_layer_without_a_gradient_for_the_score_is_an_error():
    """As for every method: nothing is made up."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="`score` does not depend on the layer"):
        explain(model, random_images(), 0, attributions=SmoothGradCAMPlusPlus("1", lambda z, t: z[:, 0].detach()))
