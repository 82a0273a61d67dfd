"""The error functions against the paper's formulas written as loops, and their properties."""

import math
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from lightning_xai.regularization.errors import (
    CenteredSigmoidMaskingLoss,
    CosineLoss,
    HistogramIntersectionLoss,
    L1DistanceLoss,
    L2DistanceLoss,
    SigmoidMaskingLoss,
    centered_sigmoid_masking,
    cosine_error,
    histogram_intersection,
    l1_distance,
    l2_distance,
    sigmoid_masking,
)

Error = Callable[..., Tensor]
ROOT = math.sqrt(2)

OPTIONAL: dict[str, Error] = {
    "sigmoid": sigmoid_masking,
    "centered_sigmoid": centered_sigmoid_masking,
    "histogram": histogram_intersection,
    "l1": l1_distance,
    "l2": l2_distance,
}
NORMALIZED: dict[str, Error] = {"cosine": cosine_error, **OPTIONAL}
LITERAL: dict[str, Error] = {name: partial(function, normalize=False) for name, function in OPTIONAL.items()}
ALL: dict[str, Error] = {**NORMALIZED, **{f"{name}_literal": function for name, function in LITERAL.items()}}
MODULES: list[type[nn.Module]] = [
    SigmoidMaskingLoss,
    CenteredSigmoidMaskingLoss,
    HistogramIntersectionLoss,
    L1DistanceLoss,
    L2DistanceLoss,
]

each_error = pytest.mark.parametrize("error", ALL.values(), ids=ALL)
each_normalized = pytest.mark.parametrize("error", NORMALIZED.values(), ids=NORMALIZED)
each_literal = pytest.mark.parametrize("error", LITERAL.values(), ids=LITERAL)


def pair(seed: int = 0, n: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random gradients and guided gradients (N,2,3,4), of other means and sizes."""
    generator = torch.Generator().manual_seed(seed)
    gradients, guided = torch.randn(2, n, 2, 3, 4, generator=generator, dtype=torch.float64)
    return (1.5 * gradients + 0.2).to(dtype), (0.7 * guided - 0.1).to(dtype)


def derivative(error: Error, gradients: Tensor, guided: Tensor) -> Tensor:
    """Derivative of the sum of the errors in the gradients."""
    gradients = gradients.detach().requires_grad_()
    return torch.autograd.grad(error(gradients, guided).sum(), gradients)[0]


# References: one image, Python floats, the paper's sums as loops.


def sigmoid_reference(d: list[float], g: list[float]) -> float:
    """Eq. 11."""
    return -sum(g_i * math.exp(d_i) / (math.exp(d_i) + 1) for d_i, g_i in zip(d, g, strict=True))


def centered_sigmoid_reference(d: list[float], g: list[float]) -> float:
    """Eq. 12."""
    mean = sum(d) / len(d)
    return sigmoid_reference([d_i - mean for d_i in d], g)


def histogram_reference(d: list[float], g: list[float]) -> float:
    """Eq. 13."""
    return -sum(min(abs(d_i), abs(g_i)) / (norm(d, 1) * norm(g, 1)) for d_i, g_i in zip(d, g, strict=True))


def cosine_reference(d: list[float], g: list[float]) -> float:
    """Eq. 14."""
    return -sum(d_i * g_i for d_i, g_i in zip(d, g, strict=True)) / (norm(d, 2) * norm(g, 2))


def distance_reference(order: int, d: list[float], g: list[float]) -> float:
    """|d - g| in the L1 or L2 norm."""
    return norm([d_i - g_i for d_i, g_i in zip(d, g, strict=True)], order)


def norm(values: list[float], order: int) -> float:
    """L1 or L2 norm."""
    return sum(abs(value) ** order for value in values) ** (1 / order)


def over(values: list[float], size: float) -> list[float]:
    """Values divided by a size."""
    return [value / size for value in values]


def rms(values: list[float]) -> float:
    """Root mean square."""
    return norm(values, 2) / math.sqrt(len(values))


REFERENCES: dict[str, Callable[[list[float], list[float]], float]] = {
    "sigmoid_literal": sigmoid_reference,
    "centered_sigmoid_literal": centered_sigmoid_reference,
    "histogram_literal": histogram_reference,
    "cosine": cosine_reference,
    "l1_literal": partial(distance_reference, 1),
    "l2_literal": partial(distance_reference, 2),
    "sigmoid": lambda d, g: sigmoid_reference(over(d, rms(d)), over(g, rms(g))) / len(d),
    "centered_sigmoid": lambda d, g: centered_sigmoid_reference(over(d, rms(d)), over(g, rms(g))) / len(d),
    "histogram": lambda d, g: histogram_reference(over(d, norm(d, 1)), over(g, norm(g, 1))),
    "l1": lambda d, g: distance_reference(1, over(d, norm(d, 1)), over(g, norm(g, 1))),
    "l2": lambda d, g: distance_reference(2, over(d, norm(d, 2)), over(g, norm(g, 2))),
}


@pytest.mark.parametrize("name", ALL)
def test_error_equals_the_formula_written_as_loops(name: str) -> None:
    """Each function, in each form, is the formula of its docstring."""
    gradients, guided = pair()
    expected = [
        REFERENCES[name](d, g) for d, g in zip(gradients.flatten(1).tolist(), guided.flatten(1).tolist(), strict=True)
    ]
    torch.testing.assert_close(ALL[name](gradients, guided), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "gradients", "guided", "expected"),
    [
        ("sigmoid_literal", [math.log(3), 0.0], [4.0, 2.0], -(4 * 3 / 4 + 2 / 2)),
        ("sigmoid", [3.0, 0.0], [4.0, 0.0], -ROOT / (1 + math.exp(-ROOT)) / 2),  # u = u' = (ROOT, 0)
        ("centered_sigmoid_literal", [5 + math.log(3), 5 - math.log(3)], [4.0, -4.0], -(3.0 - 1.0)),
        ("centered_sigmoid", [7.0, 7.0], [2.0, 2.0], -0.5),
        ("histogram_literal", [3.0, -1.0], [1.0, 1.0], -2 / (4 * 2)),
        ("histogram", [3.0, -1.0], [1.0, 1.0], -(1 / 2 + 1 / 4)),
        ("cosine", [3.0, 4.0], [0.0, -2.0], 4 / 5),
        ("l1_literal", [3.0, -1.0], [1.0, 1.0], 4.0),
        ("l1", [3.0, -1.0], [1.0, 1.0], 1 / 4 + 3 / 4),
        ("l2_literal", [3.0, -1.0], [0.0, 3.0], 5.0),
        ("l2", [3.0, 0.0], [0.0, 4.0], ROOT),
    ],
)
def test_two_pixel_toy_is_exact(name: str, gradients: list[float], guided: list[float], expected: float) -> None:
    """Answers worked out by hand for images of two pixels."""
    error = ALL[name](torch.tensor([[[gradients]]]), torch.tensor([[[guided]]]))
    torch.testing.assert_close(error, torch.tensor([expected]))


@each_error
def test_error_can_be_differentiated_twice(error: Error) -> None:
    """First and second derivatives in the gradients agree with finite differences."""
    gradients, guided = pair(n=2)
    gradients.requires_grad_()
    assert gradcheck(error, (gradients, guided))
    assert gradgradcheck(error, (gradients, guided))


@each_normalized
def test_normalised_error_does_not_see_the_size_of_either_gradient(error: Error) -> None:
    """E(a d, b d') = E(d, d') for positive a and b, one pair per image."""
    gradients, guided = pair()
    a, b = torch.tensor([[1e-8, 3.0, 1e6], [1e5, 0.2, 1e-9]], dtype=torch.float64)[:, :, None, None, None]
    torch.testing.assert_close(error(a * gradients, b * guided), error(gradients, guided))


@each_normalized
def test_normalised_error_gives_no_incentive_to_change_the_size(error: Error) -> None:
    """Its derivative is orthogonal to the gradient, and is not zero."""
    gradients, guided = pair()
    slope = derivative(error, gradients, guided)
    torch.testing.assert_close((slope * gradients).sum((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
    assert (slope.flatten(1).norm(dim=1) > 1e-3).all()


@each_literal
def test_literal_error_sees_the_size_of_the_gradient(error: Error) -> None:
    """Its derivative along the gradient is not zero: the size alone changes it."""
    gradients, guided = pair()
    slope = derivative(error, gradients, guided)
    assert ((slope * gradients).sum((1, 2, 3)).abs() > 1e-3).all()


@pytest.mark.parametrize("masking", [sigmoid_masking, centered_sigmoid_masking])
def test_literal_sigmoid_masking_rewards_a_larger_aligned_gradient(masking: Error) -> None:
    """With d = d', ten times the gradient has the lower error although the direction is the same."""
    gradients, _ = pair()
    assert (masking(10 * gradients, gradients, normalize=False) < masking(gradients, gradients, normalize=False)).all()


def test_first_order_of_literal_sigmoid_masking_is_a_quarter_of_the_inner_product() -> None:
    """-sum(d') / 2 - <d, d'> / 4, up to the third order of d."""
    gradients, guided = pair()
    expected = -guided.sum((1, 2, 3)) / 2 - 1e-4 * (gradients * guided).sum((1, 2, 3)) / 4
    error = sigmoid_masking(1e-4 * gradients, guided, normalize=False)
    torch.testing.assert_close(error, expected, rtol=0, atol=1e-10)
    assert (error + guided.sum((1, 2, 3)) / 2).abs().min() > 1e-6


def test_literal_centered_sigmoid_masking_does_not_see_an_added_constant() -> None:
    """E(d + t, d') = E(d, d'), which the uncentred error does not satisfy."""
    gradients, guided = pair()
    error = partial(centered_sigmoid_masking, normalize=False)
    torch.testing.assert_close(error(gradients + 3, guided), error(gradients, guided))
    uncentred = partial(sigmoid_masking, normalize=False)
    assert (uncentred(gradients + 3, guided) - uncentred(gradients, guided)).abs().min() > 0.1


@pytest.mark.parametrize("normalize", [True, False])
def test_histogram_intersection_is_blind_to_sign(normalize: bool) -> None:
    """Turning any signs around, in either gradient, changes nothing."""
    gradients, guided = pair()
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    expected = histogram_intersection(gradients, guided, normalize=normalize)
    torch.testing.assert_close(histogram_intersection(signs * gradients, -guided, normalize=normalize), expected)


def test_literal_histogram_intersection_is_lowest_for_any_shrunken_gradient() -> None:
    """Below the guided gradient everywhere, every pattern has error -1 / |d'|_1: why the default normalises."""
    gradients, guided = pair()
    shrunken = 0.9 * gradients * (guided / gradients).abs().amin((1, 2, 3), keepdim=True)
    error = histogram_intersection(shrunken, guided, normalize=False)
    torch.testing.assert_close(error, -1 / guided.abs().sum((1, 2, 3)))
    assert (error < histogram_intersection(gradients, guided, normalize=False)).all()
    assert (histogram_intersection(shrunken, guided) > -0.9).all()


def test_l1_distance_is_the_signed_histogram_intersection() -> None:
    """2 + 2 E_HI where all signs agree, more where they do not."""
    gradients, guided = pair()
    expected = 2 + 2 * histogram_intersection(gradients, guided)
    torch.testing.assert_close(l1_distance(gradients.abs(), guided.abs()), expected)
    assert (l1_distance(gradients, guided) > expected + 1e-3).all()


def test_l2_distance_is_the_chord_of_the_cosine() -> None:
    """|u - u'| = sqrt(2 + 2 E_cos)."""
    gradients, guided = pair()
    torch.testing.assert_close(l2_distance(gradients, guided), (2 + 2 * cosine_error(gradients, guided)).sqrt())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("sigmoid", -1, 1),
        ("centered_sigmoid", -1, 1),
        ("histogram", -1, 0),
        ("cosine", -1, 1),
        ("l1", 0, 2),
        ("l2", 0, 2),
    ],
)
def test_normalised_error_stays_in_its_range(name: str, low: float, high: float) -> None:
    """Random, equal and opposite gradients of one or many values."""
    gradients, guided = pair(n=50)
    for d, g in [
        (gradients, guided),
        (gradients, gradients),
        (gradients, -gradients),
        (100 * guided.exp(), guided.exp()),
    ]:
        error = NORMALIZED[name](d, g)
        assert (error >= low - 1e-12).all()
        assert (error <= high + 1e-12).all()


@pytest.mark.parametrize(
    ("name", "equal", "opposite"), [("cosine", -1, 1), ("histogram", -1, -1), ("l1", 0, 2), ("l2", 0, 2)]
)
def test_parallel_gradients_reach_the_ends_of_the_range(name: str, equal: float, opposite: float) -> None:
    """A multiple of the guided gradient has the lowest error; the opposite the highest, sign-blind errors aside."""
    _, guided = pair()
    ends = torch.tensor([[equal] * 3, [opposite] * 3], dtype=torch.float64)
    torch.testing.assert_close(
        torch.stack([NORMALIZED[name](5 * guided, guided), NORMALIZED[name](-guided, guided)]), ends
    )


@each_error
@pytest.mark.parametrize("which", ["gradients", "guided", "both"])
def test_a_zero_gradient_gives_finite_values_and_derivatives(error: Error, which: str) -> None:
    """One image of the batch has a zero gradient: value and first two derivatives are finite, others untouched."""
    gradients, guided = pair(dtype=torch.float32)
    expected = error(gradients, guided)
    gradients[1] *= which == "guided"
    guided[1] *= which == "gradients"
    gradients.requires_grad_()
    result = error(gradients, guided)
    (slope,) = torch.autograd.grad(result.sum(), gradients, create_graph=True)
    assert result.isfinite().all()
    assert slope.isfinite().all()
    if slope.requires_grad:
        (second,) = torch.autograd.grad(slope.square().sum(), gradients, allow_unused=True)
        assert second is None or second.isfinite().all()
    torch.testing.assert_close(result[[0, 2]], expected[[0, 2]])


@each_normalized
def test_an_image_with_a_zero_gradient_pulls_nothing(error: Error) -> None:
    """Without a direction there is nothing to align: the derivative of that image is zero."""
    gradients, guided = pair()
    gradients[1] = 0
    slope = derivative(error, gradients, guided)
    assert (slope[1] == 0).all()
    assert (slope[0] != 0).any()


@pytest.mark.parametrize(("name", "expected"), [("cosine", 0.0), ("histogram", 0.0), ("l1", 1.0), ("l2", 1.0)])
def test_value_of_a_zero_gradient_is_as_documented(name: str, expected: float) -> None:
    """The zero vector against a unit vector."""
    _, guided = pair()
    torch.testing.assert_close(
        NORMALIZED[name](torch.zeros_like(guided), guided), torch.full((3,), expected, dtype=torch.float64)
    )


@each_error
def test_equal_gradients_have_finite_derivatives(error: Error) -> None:
    """At distance zero the square root has no slope; the result must not be NaN."""
    gradients, _ = pair()
    assert derivative(error, gradients, gradients).isfinite().all()


@each_normalized
@pytest.mark.parametrize("size", [1e-37, 1e-25, 1e30])
def test_normalised_error_keeps_its_precision_at_extreme_sizes_in_float32(error: Error, size: float) -> None:
    """Squares of saturated images' gradients underflow in float32; the errors do not."""
    gradients, guided = pair(dtype=torch.float32)
    small, expected = (size * gradients, size * guided), error(gradients, guided)
    torch.testing.assert_close(error(*small), expected, rtol=1e-5, atol=1e-6)
    slope = derivative(error, *small)
    torch.testing.assert_close(slope * size, derivative(error, gradients, guided), rtol=1e-4, atol=1e-6)


def test_literal_histogram_intersection_does_not_underflow_in_float32() -> None:
    """The product of the norms of two small gradients is below the smallest float32, their quotients are not."""
    gradients, guided = pair(dtype=torch.float32)
    error = histogram_intersection(1e-25 * gradients, 1e-25 * guided, normalize=False)
    torch.testing.assert_close(1e-25 * error, histogram_intersection(gradients, guided, normalize=False))


@each_normalized
def test_subnormal_gradient_counts_as_zero(error: Error) -> None:
    """The inverse of its size would overflow; value and derivative are those of a zero gradient."""
    gradients, guided = pair(dtype=torch.float32)
    subnormal = (gradients * 1e-35) * 1e-6
    assert (subnormal != 0).any()
    torch.testing.assert_close(error(subnormal, guided), error(torch.zeros_like(guided), guided))
    assert (derivative(error, subnormal, guided) == 0).all()


@each_error
def test_nan_is_not_hidden(error: Error) -> None:
    """A gradient that is not a number makes the error of its image, and of no other, not a number."""
    gradients, guided = pair()
    gradients[1, 0, 0, 0] = torch.nan
    assert error(gradients, guided).isnan().tolist() == [False, True, False]


@each_error
def test_images_do_not_see_each_other(error: Error) -> None:
    """A batch gives what its images give one by one."""
    gradients, guided = pair(n=4)
    one_by_one = torch.cat([error(d[None], g[None]) for d, g in zip(gradients, guided, strict=True)])
    torch.testing.assert_close(error(gradients, guided), one_by_one)


@each_error
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(error: Error, dtype: torch.dtype) -> None:
    """Half precision inputs give the float32 result of the same numbers, under autocast too."""
    gradients, guided = (tensor.to(dtype) for tensor in pair())
    expected = error(gradients.float(), guided.float())
    with torch.autocast("cpu", torch.bfloat16):
        result, mixed = error(gradients, guided), error(gradients.float(), guided)
    for found in (result, mixed):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert derivative(error, gradients, guided).dtype == dtype


@each_error
def test_huge_gradients_do_not_overflow_the_sigmoid(error: Error) -> None:
    """exp(d) of the printed formula overflows above 709; the errors stay finite."""
    gradients, guided = pair()
    assert error(1e6 * gradients, guided).isfinite().all()


@each_error
def test_arguments_are_left_as_they_are(error: Error) -> None:
    """Neither tensor is written to."""
    gradients, guided = pair()
    error(gradients, guided)
    torch.testing.assert_close((gradients, guided), pair(), rtol=0, atol=0)


@each_error
@pytest.mark.parametrize(("gradients", "guided"), [((2, 3, 4, 4), (2, 1, 4, 4)), ((2, 3), (2, 3))])
def test_wrong_shapes_are_refused(error: Error, gradients: tuple[int, ...], guided: tuple[int, ...]) -> None:
    """Nothing is broadcast, and (N,C,H,W) is required."""
    with pytest.raises(ValueError, match=r"`gradients` and `guided` expected the same shape \(N,C,H,W\), got \(2, 3"):
        error(torch.ones(gradients), torch.ones(guided))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("module", "function"), list(zip(MODULES, OPTIONAL.values(), strict=True)), ids=OPTIONAL)
def test_module_is_its_function(module: type[nn.Module], function: Error, normalize: bool) -> None:
    """Same result for each option, which shows in the printed form and survives pickling."""
    loss = pickle.loads(pickle.dumps(module(normalize=normalize)))
    torch.testing.assert_close(loss(*pair()), function(*pair(), normalize=normalize), rtol=0, atol=0)
    assert repr(loss) == f"{module.__name__}(normalize={normalize})"
    assert not loss.state_dict()


def test_cosine_module_is_its_function() -> None:
    """The cosine has no options."""
    torch.testing.assert_close(CosineLoss()(*pair()), cosine_error(*pair()), rtol=0, atol=0)


@pytest.mark.parametrize("module", MODULES)
def test_modules_normalise_by_default(module: type[nn.Module]) -> None:
    """The default of the class is the default of the function."""
    torch.testing.assert_close(module()(*pair()), module(normalize=True)(*pair()), rtol=0, atol=0)
