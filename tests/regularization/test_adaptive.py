"""The weight that follows a budget: products of gradients, budgets, the controller and its state."""

import copy
from math import exp, inf, log, nan

import pytest
import torch
import torch.nn.functional as F
from regularization.nets import TARGETS, images, plain_net
from torch.nn import Parameter

from lightning_xai.regularization import (
    AdaptiveWeight,
    ConstantWeight,
    GradientProducts,
    GradientShare,
    GuidedGradientLoss,
)
from lightning_xai.regularization.adaptive import gradient_products


def measured(weight, step, cosine, ratio=1.0):
    """One measurement of gradients of this angle and ratio of sizes."""
    x = Parameter(torch.zeros(2, dtype=torch.float64))
    first = torch.tensor([2.0, 0.0], dtype=torch.float64)
    second = 2 * ratio * torch.tensor([cosine, (1 - cosine**2) ** 0.5], dtype=torch.float64)
    return weight.measure(step, x @ first, x @ second, [x])


def test_products_are_those_of_the_gradients_of_both_losses():
    """At all parameters together; one that a loss does not reach counts as zero."""
    x, y = Parameter(torch.tensor([1.0, 2.0])), Parameter(torch.tensor(3.0))
    assert gradient_products(x.sum() + 2 * y, (x**2).sum(), [x, y]) == GradientProducts(6.0, 20.0, 6.0)


def test_cosine_and_ratio_follow_from_the_products():
    """NaN where a gradient is zero or not finite."""
    products = GradientProducts(4.0, 9.0, -3.0)
    assert (products.cosine, products.norm_ratio) == (-0.5, 1.5)
    for unusable in (GradientProducts(0.0, 1.0, 0.0), GradientProducts(1.0, 0.0, 0.0), GradientProducts(1.0, inf, nan)):
        assert not unusable.usable
        assert str(unusable.cosine) == str(unusable.norm_ratio) == "nan"


@pytest.mark.parametrize("cosine", [-1.0, -0.3, 0.0, 0.6])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_budget_is_met_with_equality(cosine, share):
    """Of the size, at any angle."""
    products = GradientProducts(4.0, 9.0, 6.0 * cosine)
    weight = GradientShare(share)(products)
    assert weight * 3 == pytest.approx(share * 2)


def test_the_first_measurement_is_in_the_first_step_and_the_next_n_later():
    """Accumulated batches share a step and one measurement; a new fit from step 0 measures anew."""
    weight = AdaptiveWeight(GradientShare(), every_n_steps=3)
    steps = (0, 0, 1, 2, 3, 3, 7, 8, 10, 0)
    assert [measured(weight, step, 0.5) is not None for step in steps] == [
        *(True, False, False, False, True, False, True, False, True, True)
    ]


def test_the_weight_is_an_exponential_mean_of_logarithms():
    """From the start towards what the budget allows."""
    weight = AdaptiveWeight(GradientShare(0.1), start=1.0, smoothing=0.75, every_n_steps=1)
    measured(weight, 0, 0.5, ratio=4)
    first = exp(0.25 * log(0.1 / 4))
    assert weight(0) == pytest.approx(first)
    measured(weight, 1, 0.5, ratio=0.01)
    assert weight(1) == pytest.approx(exp(0.75 * log(first) + 0.25 * log(10)))


def test_the_weight_stays_within_its_bounds():
    """Also under a budget that allows any weight, or hardly one."""
    weight = AdaptiveWeight(lambda products: inf if products.inner > 0 else 1e-9, start=0.5, bounds=(0.1, 2.0))
    for step in range(0, 1000, 20):
        measured(weight, step, 1.0)
    assert weight(1000) == pytest.approx(2.0, rel=0.01)
    for step in range(1000, 2000, 20):
        measured(weight, step, -1.0)
    assert weight(2000) == pytest.approx(0.1, rel=0.02)


def test_noisy_measurements_move_the_weight_little():
    """Limits that scatter by a factor of e move it by a third of that once it has settled."""
    torch.manual_seed(0)
    weight = AdaptiveWeight(GradientShare(1.0), start=1.0, every_n_steps=1)
    logs = []
    for step in range(300):
        measured(weight, step, 0.0, ratio=torch.randn(()).exp().item())
        logs.append(log(weight(step)))
    settled = torch.tensor(logs[50:])
    assert settled.std() < 0.35
    assert settled.mean().abs() < 0.2


@pytest.mark.parametrize("ratio", [0.0, nan, inf])
def test_unusable_measurements_are_passed_over(ratio):
    """They change nothing, and the next one comes n steps later."""
    weight = AdaptiveWeight(GradientShare(), start=0.3, every_n_steps=2)
    assert not measured(weight, 0, 0.5, ratio=ratio).usable
    assert weight(0) == pytest.approx(0.3)
    assert measured(weight, 1, 0.5) is None


def test_the_state_is_exact_and_a_tensor():
    """In half precision too, after which the numbers go on as they were."""
    weight = AdaptiveWeight(GradientShare(), every_n_steps=5).half()
    measured(weight, 10, 0.5, ratio=3.7)
    again = AdaptiveWeight(GradientShare(), every_n_steps=5)
    state = weight.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again.load_state_dict(state)
    assert again(11) == weight(11)
    assert [measured(again, step, 0.5) is None for step in (12, 15)] == [True, False]


def test_the_loss_measures_and_takes_the_weight_of_the_same_step():
    """The products are those of both parts at the trained parameters; gradients of the step are untouched."""
    model = plain_net()
    model[0].requires_grad_(False)
    twin = copy.deepcopy(model)
    weight = AdaptiveWeight(GradientShare(0.2), smoothing=0.0)
    found = GuidedGradientLoss(weight=weight, every_n_steps=2)(model, images(), TARGETS, F.cross_entropy, 0)
    assert all(parameter.grad is None for parameter in model.parameters())
    found.loss.backward()

    def gradient(loss):
        trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained)])

    c = gradient(F.cross_entropy(twin(images()), TARGETS))
    plain = GuidedGradientLoss(weight=ConstantWeight(1.0))
    r = gradient(plain(twin, images(), TARGETS, F.cross_entropy, 0).loss) - c
    expected = GradientProducts(*(one.item() for one in (c @ c, r @ r, c @ r)))
    assert (found.products.cosine, found.products.norm_ratio) == pytest.approx((expected.cosine, expected.norm_ratio))
    assert found.weight == pytest.approx(2 * 0.2 / expected.norm_ratio)  # twice, for every second step
    total = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
    torch.testing.assert_close(total, c + found.weight * r)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 0.1}, TypeError, "`budget` expected a function, got 0.1"),
        ({"bounds": (0.0, 1.0)}, ValueError, r"`bounds` expected 0 < low <= start <= high, got \(0.0, 1.0\)"),
        ({"start": 20.0}, ValueError, "`bounds` expected 0 < low <= start <= high, got .* and start 20.0"),
        ({"smoothing": 1.0}, ValueError, r"`smoothing` expected a number in \[0, 1\), got 1.0"),
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` expected 1 or more, got 0"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    """At construction."""
    with pytest.raises(error, match=message):
        AdaptiveWeight(**{"budget": GradientShare(), **options})


@pytest.mark.parametrize("share", [0.0, -1.0, nan, inf])
def test_budgets_are_positive(share):
    """A budget of nothing is a weight of zero, which ConstantWeight says better."""
    with pytest.raises(ValueError, match=f"`share` expected a finite number above 0, got {share}"):
        GradientShare(share)
