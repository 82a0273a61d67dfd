"""RSI Grad-CAM against loops written from its formula, completeness, and its published variants."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import random_images
from torch import nn

from lightning_xai import explain
from lightning_xai.attribution import HiResCAM, RSIGradCAM
from lightning_xai.attribution.rsi_cam import every_unit, guided_units, positive_gradients, signed_gradients, trapezoids
from lightning_xai.baselines import black, blurred
from lightning_xai.explain import capture_for
from lightning_xai.scores import post_softmax, pre_softmax
from lightning_xai.trace import run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
VARIANTS = {
    "PyTorch notebooks": {"gradients": positive_gradients, "units": every_unit},
    "TensorFlow notebook": {"gradients": signed_gradients, "units": guided_units},
    "plain": {"gradients": signed_gradients, "units": every_unit},
}


class Smooth(nn.Module):
    """A network with a smooth score, so that the sum converges fast; float64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Softplus()
        self.conv2, self.head = nn.Conv2d(4, 5, 3), nn.Linear(5 * 9, 3)
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data /= parameter[0].numel() ** 0.5

    def body(self, images):
        return self.conv2(F.avg_pool2d(self.act(self.conv1(images)), 2)[:, :, :, :5])

    def tail(self, hidden):
        return self.head(torch.tanh(hidden[:, :, :3, :3]).flatten(1))

    def forward(self, images):
        return self.tail(self.body(images))


@pytest.fixture
def model():
    """The network; its images have 10 x 10 pixels."""
    return Smooth().double().eval()


@pytest.fixture
def images():
    """Three of them."""
    return random_images(3, size=10, dtype=torch.float64)


def reference(model, image, target, variant, n_steps):
    """The authors' formula for one image: loops over steps and channels, before upsampling."""
    start = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], dtype=torch.float64)[:, None, None]
    points = []
    for alpha in torch.linspace(0, 1, n_steps + 1, dtype=torch.float64):
        a = model.body((start + alpha * (image - start))[None])[0].detach()
        g = torch.autograd.functional.jacobian(lambda h: model.tail(h[None]).softmax(1)[0, target], a)
        points.append((a, g.clamp(min=0) if variant == "PyTorch notebooks" else g))
    contributions = torch.zeros_like(points[0][0])
    for (a0, g0), (a1, g1) in itertools.pairwise(points):
        contributions += 0.5 * (g0 + g1) * (a1 - a0)
    first, last = points[0][0], points[-1][0]
    if variant == "TensorFlow notebook":
        contributions *= (last > 0).double() * (contributions > 0).double() * (last - first > 0).double()
    return torch.stack([one.mean() * a for one, a in zip(contributions, last, strict=True)]).mean(0).clamp(min=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_map_equals_the_reference(model, images, variant):
    """All variants, from the black image, in float64; sevenths are no binary fractions."""
    method = RSIGradCAM("conv2", n_steps=7, mean=MEAN, std=STD, **VARIANTS[variant])
    found = explain(model, images, [0, 1, 2], attributions=method)
    assert found.amax((1, 2)).max() > 0
    for target, (image, one) in enumerate(zip(images, found, strict=True)):
        small = reference(model, image, target, variant, 7)
        expected = F.interpolate(small[None, None], size=(10, 10), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-13)


def test_contributions_sum_to_the_change_of_the_score(model, images):
    """Completeness: the error falls with the square of the number of steps, at every layer that cuts the graph."""
    targets, errors = torch.tensor([0, 1, 2]), {}
    for n_steps in (20, 80):
        method = RSIGradCAM(("act", "conv2"), n_steps=n_steps, mean=MEAN, std=STD)
        trace = run(model, images, capture_for(model, [method]))
        errors[n_steps] = method.completeness_error(trace, targets)
    plain = RSIGradCAM("conv2", n_steps=80, mean=MEAN, std=STD, gradients=signed_gradients)
    sums = plain.contributions(trace, targets)[0].sum((1, 2, 3))
    start = black(images, MEAN, STD).expand_as(images)
    with torch.no_grad():
        ends = [model(x).softmax(1).gather(1, targets[:, None])[:, 0] for x in (images, start)]
    torch.testing.assert_close(errors[80][1], sums - (ends[0] - ends[1]), rtol=1e-9, atol=1e-14)
    assert (ends[0] - ends[1]).abs().max() > 0.1
    assert errors[80].abs().max() < 1e-4
    ratio = errors[20].abs().sum() / errors[80].abs().sum()
    assert 12 < ratio < 20


def test_contributions_of_a_linear_tail_are_exact_in_one_step():
    """G (A - A_0), which is HiResCAM of the image less that of the baseline."""
    tail = nn.Linear(3 * 64, 4)
    model, images = nn.Sequential(nn.Softplus(), nn.Flatten(), tail).double(), random_images(2, dtype=torch.float64)
    zeros = torch.zeros_like(images)
    plain = RSIGradCAM("0", pre_softmax, n_steps=1, baseline=zeros, gradients=signed_gradients)
    trace = run(model, images, capture_for(model, [plain]))
    contributions = plain.contributions(trace, torch.tensor([1, 1]))[0]
    at_image, at_zeros = (
        explain(model, x, 1, attributions=HiResCAM("0", pre_softmax, relu=False)) for x in (images, zeros)
    )
    torch.testing.assert_close(contributions.sum(1), at_image - at_zeros)
    assert plain.completeness_error(trace, torch.tensor([1, 1])).abs().max() < 1e-12


def test_trapezoids_of_two_images_on_paper():
    """Points of both images alternate; each is paired with its own."""
    activations = torch.tensor([0.0, 10.0, 1.0, 30.0]).view(4, 1, 1, 1)
    gradients = torch.tensor([2.0, 1.0, 4.0, -1.0]).view(4, 1, 1, 1)
    assert trapezoids(activations, gradients, 2).flatten().tolist() == [3.0, 0.0]
    assert trapezoids(activations[:3], gradients[:3], 2).flatten().tolist() == [3.0]
    assert trapezoids(activations[:1], gradients[:1], 2).numel() == 0


def test_guided_units_on_paper():
    """Each of the three conditions alone takes a unit away."""
    contributions = torch.tensor([5.0, -5.0, 5.0, 5.0])
    activations, changes = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert guided_units(contributions, activations, changes).tolist() == [5.0, 0.0, 0.0, 0.0]


def test_the_map_survives_a_saturated_probability(model, images):
    """The gradient vanishes at the image; on the way it does not."""
    model.head.weight.data *= 200
    image, target = images[2:], model(images[2:]).argmax(1)
    method = RSIGradCAM("conv2", mean=MEAN, std=STD)
    trace = run(model, image, capture_for(model, [method]))
    assert trace.gradient(post_softmax, target, of="conv2").abs().max() < 1e-12
    assert method.contributions(trace, target)[0].abs().max() > 1e-2


def test_a_baseline_may_be_a_function_of_the_images(model, images):
    """Such as the blurred image, one for each."""
    options = {"layer": "conv2", "n_steps": 2, "relu": False}
    function = explain(model, images, 1, attributions=RSIGradCAM(**options, baseline=blurred, mean=MEAN, std=STD))
    given = explain(model, images, 1, attributions=RSIGradCAM(**options, baseline=blurred(images, MEAN, STD)))
    assert torch.equal(function, given)
    assert not torch.allclose(
        function, explain(model, images, 1, attributions=RSIGradCAM(**options, mean=MEAN, std=STD))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "`n_steps` expected 1 or more, got 0"),
        ({"batch_size": -1}, "`batch_size` expected 1 or more, or None"),
        ({"mean": None}, "`mean` and `std` expected.*pass a tensor as `baseline`"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    """When the method is made, not when it runs."""
    with pytest.raises(ValueError, match=message):
        RSIGradCAM(**{"mean": MEAN, "std": STD} | arguments)
