"""Input and guided gradients against references, and the many ways in which networks call their rectifiers."""

import pytest
import torch
import torch.nn.functional as F
from support import OneConv, random_images, small_net
from torch import nn

from lightning_xai import GuidedGradient, InputGradient, explain
from lightning_xai.attribution import InputXGradient
from lightning_xai.attribution.gradient import channel_max
from lightning_xai.scores import centered, post_softmax, pre_softmax


def test_input_gradient_equals_finite_differences():
    """Central differences of the score in float64, pixel by pixel."""
    model, images = small_net(channels=2).double(), random_images(1, 4, 2, torch.float64)
    found = explain(model, images, 1, attributions=InputGradient(score=post_softmax))[0]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for c in range(2):
        for i in range(4):
            for j in range(4):
                step = torch.zeros_like(images)
                step[0, c, i, j] = 1e-6
                up, down = (model(images + sign * step).softmax(1)[0, 1] for sign in (1, -1))
                expected[i, j] += ((up - down) / 2e-6).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_input_x_gradient_sums_to_the_logit_of_a_rectifier_network_without_biases():
    """Such a network is homogeneous; the map is the gradient times the image, channel by channel."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=False)
    ).double()
    images = random_images(2, 4, dtype=torch.float64)
    found = explain(model, images, 1, attributions=InputXGradient(score=pre_softmax))
    torch.testing.assert_close(found.sum((1, 2)), model(images)[:, 1].detach())
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[:, 1].sum(), images)
    torch.testing.assert_close(found, (jacobian * images).sum(1))


def test_input_x_gradient_reduces_the_product():
    """The largest magnitude over channels of image times gradient."""
    images = random_images(2)
    images[:, 1:] = 0
    found = explain(small_net(), images, 1, attributions=InputXGradient(reduce=channel_max))
    expected = explain(small_net(), images, 1, attributions=InputXGradient()).abs()
    torch.testing.assert_close(found, expected)


def test_input_x_gradient_can_be_differentiated():
    """The derivative with respect to the image holds that of the factor and that of the gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.Softmax(1), nn.Linear(3, 1)).double()
    images = random_images(1, dtype=torch.float64)[:, :1, :1, :2].clone().requires_grad_()

    def total(images):
        method = InputXGradient(score=pre_softmax)
        return explain(model, images, 1, attributions=method, create_graph=True).square().sum()

    assert torch.autograd.gradcheck(total, images)


def test_guided_gradient_gives_captums_known_answer():
    """The numbers of captum's tests/attr/test_guided_backprop.py."""
    image = torch.arange(16.0).view(1, 1, 4, 4)
    found = explain(OneConv(), image, 0, attributions=GuidedGradient(score=pre_softmax))
    expected = [[0.0, 1.0, 1.0, 1.0], [1.0, 3.0, 3.0, 2.0], [1.0, 3.0, 3.0, 2.0], [1.0, 2.0, 2.0, 1.0]]
    assert found[0].tolist() == expected


WEIGHTS = [torch.randn(5, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(4)]


def guided_reference(image, target, ceiling=torch.inf):
    """Guided backpropagation by hand through three rectified linear layers (Torres Figueroa et al. 2024)."""
    hidden, before = [image.flatten()], []
    for weight in WEIGHTS[:3]:
        before.append(weight @ hidden[-1])
        hidden.append(before[-1].clamp(0, ceiling))
    signal = WEIGHTS[3][target]
    for weight, value in zip(WEIGHTS[2::-1], before[::-1], strict=True):
        passed = ((value > 0) & (value < ceiling)).double()
        signal = weight.T @ (passed * signal.clamp(min=0))
    return signal


class Net(nn.Module):
    """Four linear layers, rectified by whatever it is given."""

    def __init__(self, *rectifiers) -> None:
        super().__init__()
        self.rectifiers = rectifiers
        self.modules_inside = nn.ModuleList({r for r in rectifiers if isinstance(r, nn.Module)})

    def forward(self, images):
        hidden = images.flatten(1)
        for weight, rectifier in zip(WEIGHTS, self.rectifiers, strict=False):
            hidden = rectifier(hidden @ weight.T)
        return hidden @ WEIGHTS[3].T


SHARED = nn.ReLU()


@pytest.mark.parametrize(
    "rectifiers",
    [
        (nn.ReLU(), nn.ReLU(), nn.ReLU()),
        (SHARED, SHARED, SHARED),
        (nn.ReLU(inplace=True), nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
        (F.relu, torch.relu, F.relu_),
        (lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: F.threshold(x, 0, 0)),
    ],
    ids=["modules", "one shared module", "in place", "functions", "clamps"],
)
def test_guided_gradient_is_the_same_however_rectifiers_are_called(rectifiers):
    """Every way equals the hand-made reference exactly, and so each other."""
    images = random_images(2, dtype=torch.float64)[:, :1, :1, :5]
    found = explain(Net(*rectifiers), images, 2, attributions=GuidedGradient(score=pre_softmax))
    for image, one in zip(images, found, strict=True):
        torch.testing.assert_close(one.flatten(), guided_reference(image, 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("relu6", [nn.ReLU6(), F.relu6, lambda x: F.hardtanh(x, 0, 6), lambda x: x.clamp(0, 6)])
def test_relu6_counts_as_a_rectifier(relu6):
    """Units above 6 are closed as well."""
    images = 3 * random_images(2, dtype=torch.float64)[:, :1, :1, :5]
    found = explain(Net(relu6, relu6, relu6), images, 2, attributions=GuidedGradient(score=pre_softmax))
    for image, one in zip(images, found, strict=True):
        torch.testing.assert_close(one.flatten(), guided_reference(image, 2, 6.0), rtol=1e-12, atol=1e-14)


def test_guided_gradient_differs_from_the_plain_one():
    """So that the equalities above say something."""
    images = random_images(2, dtype=torch.float64)[:, :1, :1, :5]
    plain, guided = (
        explain(Net(F.relu, F.relu, F.relu), images, 2, attributions=method(score=pre_softmax))
        for method in (InputGradient, GuidedGradient)
    )
    assert (plain - guided).abs().max() > 0.1 * plain.abs().max()


def test_a_network_without_rectifiers_is_refused():
    """Its guided gradient would be the plain gradient under another name."""
    with pytest.raises(ValueError, match=r"got 0 of 3 \(others: Silu\).*for rectifier networks"):
        explain(Net(F.silu, F.silu, F.silu), random_images()[:, :1, :1, :5].double(), attributions=GuidedGradient())


def test_a_small_share_of_rectifiers_is_refused():
    """One ReLU among three nonlinearities yields nearly the plain gradient."""
    model = Net(F.relu, F.hardswish, F.leaky_relu)
    with pytest.raises(ValueError, match=r"at least 50%.*got 1 of 3 \(others: Hardswish, LeakyRelu\)"):
        explain(model, random_images()[:, :1, :1, :5].double(), attributions=GuidedGradient())


def test_reentrant_checkpointing_is_refused():
    """It hides the rectifiers inside; the message names the other kind, which works."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, reentrant) -> None:
            super().__init__()
            self.reentrant = reentrant

        def forward(self, images):
            return checkpoint(Net(F.relu, F.relu, F.relu), images, use_reentrant=self.reentrant)

    images = random_images()[:, :1, :1, :5].double()
    method = GuidedGradient(score=pre_softmax)
    with pytest.raises(RuntimeError, match=r"CheckpointFunctionBackward.*use_reentrant=False"):
        explain(Checkpointed(True), images, 0, attributions=method)
    expected = explain(Net(F.relu, F.relu, F.relu), images, 0, attributions=method)
    torch.testing.assert_close(explain(Checkpointed(False), images, 0, attributions=method), expected)


def test_guided_and_plain_gradients_from_one_trace_do_not_mix():
    """Together they give what each gives alone, in either order."""
    model, images = small_net(), random_images()
    plain = explain(model, images, 1, attributions=InputGradient())
    guided = explain(model, images, 1, attributions=GuidedGradient())
    for names in (("plain", "guided"), ("guided", "plain")):
        methods = {name: InputGradient() if name == "plain" else GuidedGradient() for name in names}
        maps = explain(model, images, 1, attributions=methods)
        torch.testing.assert_close(maps["plain"], plain, rtol=0, atol=0)
        torch.testing.assert_close(maps["guided"], guided, rtol=0, atol=0)


def test_channel_max_is_the_largest_magnitude():
    """And so never negative."""
    maps = explain(small_net(), random_images(), attributions=InputGradient(reduce=channel_max))
    assert (maps >= 0).all()
    signed = explain(small_net(), random_images(), attributions=InputGradient())
    assert (3 * maps >= signed.abs() - 1e-6).all()


def test_input_gradients_sum_to_zero_over_classes_when_centered():
    """sum_c (z_c - mean z) = 0, so the maps of all classes cancel."""
    model, images = small_net(4).double(), random_images(2, dtype=torch.float64)
    total = sum(explain(model, images, c, attributions=InputGradient(score=centered)) for c in range(4))
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)
