"""Input and guided gradients against references, and the many ways in which networks call their rectifiers."""

import pytest
import torch
import torch.nn.functional as F
from support import OneConv, random_images, small_net
from torch import nn

from lightning_xai import GuidedGradient, InputGradient, explain
from lightning_xai.attribution import GuidedGradCAM, InputXGradient
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


def guided_by_hand(image, target, rectifier, slope):
    """Guided backpropagation by hand through three rectified linear layers (Torres Figueroa et al. 2024)."""
    hidden, before = [image.flatten()], []
    for weight in WEIGHTS[:3]:
        before.append(weight @ hidden[-1])
        hidden.append(rectifier(before[-1]))
    signal = WEIGHTS[3][target]
    for weight, value in zip(WEIGHTS[2::-1], before[::-1], strict=True):
        signal = weight.T @ (slope(value) * signal.clamp(min=0))
    return signal


def guided_reference(image, target, ceiling=torch.inf):
    """Of ReLU and ReLU6."""
    return guided_by_hand(image, target, lambda u: u.clamp(0, ceiling), lambda u: ((u > 0) & (u < ceiling)).double())


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
    images = random_images()[:, :1, :1, :5].double()
    for activation, message in (
        (F.sigmoid, r"got 0 of 3 \(others: Sigmoid\).*for rectifier networks such as ResNet, ConvNeXt or ViT"),
        (F.silu, r'got 0 of 3 \(others: Silu\).*With `rectifiers="all"` GELU, SiLU and the like'),
        (lambda x: x, r"no nonlinearity at all: the model is linear, or runs .* requires_grad_\(False\) instead"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(Net(*[activation] * 3), images, attributions=GuidedGradient())
    assert explain(Net(*[F.silu] * 3), images, attributions=GuidedGradient(rectifiers="all")).any()


def test_a_backbone_under_no_grad_has_the_map_of_a_free_one():
    """As has one that is frozen."""
    images = random_images()[:, :1, :1, :5].double()

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ReLU()).double()
            self.head = nn.Linear(4, 2).double()
            self.hidden = True

        def forward(self, images):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.hidden):
                hidden = self.body(images)
            return self.head(hidden)

    model = Frozen()
    hidden = explain(model, images, attributions=GuidedGradient())
    model.hidden = False
    free = explain(model, images, attributions=GuidedGradient())
    model.body.requires_grad_(False)
    torch.testing.assert_close(explain(model, images, attributions=GuidedGradient()), free, rtol=0, atol=0)
    torch.testing.assert_close(hidden, free, rtol=0, atol=0)


def phi(u):
    """The normal distribution function."""
    return (1 + torch.erf(u / 2**0.5)) / 2


def tanh_gelu(u):
    """The usual approximation of GELU."""
    return 0.5 * u * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))


def numerical_slope(rectifier):
    """The derivative by differences in float64, for formulas that nobody wants to differentiate by hand."""
    return lambda u: (rectifier(u + 1e-6) - rectifier(u - 1e-6)) / 2e-6


def inside(u):
    """Where hardswish bends."""
    return ((u > -3) & (u < 3)).double()


PRELU = nn.PReLU(init=0.2).double()
QUICK = 1.702
# as it is called, the formula, and its derivative on paper (None: by differences)
SMOOTH = {
    "gelu": (F.gelu, lambda u: u * phi(u), lambda u: phi(u) + u * (-(u**2) / 2).exp() / (2 * torch.pi) ** 0.5),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), tanh_gelu, None),
    "gelu by tanh, written out": (tanh_gelu, tanh_gelu, None),
    "gelu, written out": (lambda x: x * 0.5 * (1.0 + torch.erf(x / 2**0.5)), lambda u: u * phi(u), None),
    "silu": (F.silu, lambda u: u / (1 + (-u).exp()), None),
    "silu in place": (nn.SiLU(inplace=True), lambda u: u / (1 + (-u).exp()), None),
    "silu, written out": (lambda x: x.mul(x.sigmoid()), lambda u: u / (1 + (-u).exp()), None),
    "quick-gelu": (lambda x: x * torch.sigmoid(QUICK * x), lambda u: u / (1 + (-QUICK * u).exp()), None),
    "hardswish": (
        F.hardswish,
        lambda u: u * (u + 3).clamp(0, 6) / 6,
        lambda u: inside(u) * (2 * u + 3) / 6 + (u >= 3).double(),
    ),
    "hardswish, written out": (lambda x: x * F.relu6(x + 3.0) / 6, lambda u: u * (u + 3).clamp(0, 6) / 6, None),
    "mish": (F.mish, lambda u: u * torch.tanh((1 + u.exp()).log()), None),
    "mish, written out": (lambda x: x * torch.tanh(F.softplus(x)), lambda u: u * torch.tanh((1 + u.exp()).log()), None),
    "elu": (F.elu, lambda u: torch.where(u > 0, u, u.exp() - 1), lambda u: u.clamp(max=0).exp()),
    "celu": (F.celu, lambda u: torch.where(u > 0, u, u.exp() - 1), lambda u: u.clamp(max=0).exp()),
    "selu": (F.selu, lambda u: 1.0507009873554805 * torch.where(u > 0, u, 1.6732632423543772 * (u.exp() - 1)), None),
    "leaky relu": (F.leaky_relu, lambda u: u.clamp(min=0) + 0.01 * u.clamp(max=0), lambda u: 0.01 + 0.99 * (u > 0)),
    "leaky relu in place": (nn.LeakyReLU(0.3, inplace=True), lambda u: torch.maximum(u, 0.3 * u), None),
    "prelu": (PRELU, lambda u: torch.maximum(u, 0.2 * u), lambda u: 0.2 + 0.8 * (u > 0)),
    "softplus": (F.softplus, lambda u: (1 + u.exp()).log(), lambda u: 1 / (1 + (-u).exp())),
    "relu": (F.relu, lambda u: u.clamp(min=0), lambda u: (u > 0).double()),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_rectifiers_follow_the_same_rule(name):
    """``du = sigma'(u) max(dv, 0)``, by hand from each formula; the plain gradient is another one."""
    activation, formula, slope = SMOOTH[name]
    model, images = Net(activation, activation, activation), 3 * random_images(2, dtype=torch.float64)[:, :1, :1, :5]
    found, plain = (
        explain(model, images, 2, attributions=method)
        for method in (GuidedGradient(pre_softmax, rectifiers="all"), InputGradient(pre_softmax))
    )
    for image, one in zip(images, found, strict=True):
        expected = guided_by_hand(image, 2, formula, slope or numerical_slope(formula))
        torch.testing.assert_close(one.flatten(), expected, rtol=1e-6 if slope is None else 1e-12, atol=1e-8)
    assert not torch.allclose(found, plain, rtol=0.01)


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x * torch.sigmoid(x.flip(1)),
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda x: x * F.hardsigmoid(x @ WEIGHTS[0]),
        lambda x: x * x.softmax(1),
        lambda x: x * (x / x.norm(dim=1, keepdim=True)),
        lambda x: F.glu(torch.cat([x, x.flip(1)], 1)),
    ],
    ids=["branch", "channels", "hard", "softmax", "norms", "glu"],
)
def test_gates_are_no_rectifiers(gate):
    """Behind the last rectifier they pass negative gradients on as they are."""
    images = random_images(2, dtype=torch.float64)[:, :1, :1, :5]
    model = Net(F.silu, F.gelu, gate)
    found = explain(model, images, 2, attributions=GuidedGradient(pre_softmax, rectifiers="all"))

    for image, one in zip(images, found, strict=True):
        first = WEIGHTS[0] @ image.flatten()
        second = WEIGHTS[1] @ F.silu(first)
        hidden = F.gelu(second)[None].requires_grad_()
        (signal,) = torch.autograd.grad(gate(hidden @ WEIGHTS[2].T) @ WEIGHTS[3][2], hidden)  # no rule here
        for value, activation, weight in ((second, F.gelu, WEIGHTS[1]), (first, F.silu, WEIGHTS[0])):
            signal = weight.T @ (numerical_slope(activation)(value) * signal.flatten().clamp(min=0))
        torch.testing.assert_close(one.flatten(), signal, rtol=1e-6, atol=1e-8)


def test_the_guided_gradient_of_smooth_rectifiers_can_be_differentiated():
    """Gradcheck with respect to the images, where the clamps do not switch."""
    images = 3 * random_images(1, dtype=torch.float64)[:, :1, :1, :5]
    method = GuidedGradient(pre_softmax, rectifiers="all")

    def maps(images):
        return explain(Net(F.gelu, F.silu, F.mish), images, 2, attributions=method, create_graph=True)

    assert torch.autograd.gradcheck(maps, images.requires_grad_())


@pytest.mark.parametrize("method", [GuidedGradient, GuidedGradCAM])
def test_other_names_of_rectifiers_are_refused(method):
    """At construction."""
    with pytest.raises(ValueError, match="`rectifiers` expected 'relu' or 'all', got 'gelu'"):
        method(rectifiers="gelu")


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
