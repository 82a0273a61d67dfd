"""Every relevance rule against dense matrices, built by sending unit inputs through the layer."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lightning_xai.attribution.lrp.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
    lossless,
    negated_z_plus,
    z_plus,
)
from lightning_xai.attribution.lrp.weighted import convolution_layer, diagonal_layer, linear_layer, transposed_layer

CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": (2, 1)},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4},
}


def generator(seed=0):
    """Seeded, whatever the global random state."""
    return torch.Generator().manual_seed(seed)


def affine(inputs, scale, shift):
    """Batch normalisation in evaluation mode."""
    return inputs * scale[:, None, None] + shift[:, None, None]


def example(kind, signed):
    """A layer, its inputs, and the function that it is."""
    weight = torch.randn(4, 4 // CONVOLUTIONS.get(kind, {}).get("groups", 1), 3, 3, generator=generator()).double()
    bias = torch.randn(4, generator=generator(1)).double()
    inputs = torch.randn(2, 4, 6, 6, generator=generator(2)).double()
    if kind == "linear":
        weight, inputs = weight.view(12, 12), inputs.reshape(24, 12)
        bias = torch.randn(12, generator=generator(1)).double()
        layer, function = linear_layer(weight, bias), partial(F.linear, weight=weight, bias=bias)
    elif kind == "transposed":
        options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
        weight = torch.randn(4, 2, 3, 3, generator=generator()).double()
        layer = transposed_layer(weight, bias, **options)
        function = partial(F.conv_transpose2d, weight=weight, bias=bias, **options)
    elif kind == "normalization":
        scale = torch.randn(4, generator=generator(3)).double()
        layer = diagonal_layer(scale, bias, 2)
        function = partial(affine, scale=scale, shift=bias)
    else:
        layer = convolution_layer(weight, bias, **CONVOLUTIONS[kind])
        function = partial(F.conv2d, weight=weight, bias=bias, **CONVOLUTIONS[kind])
    return layer, inputs if signed else inputs.abs(), function


def dense(function, inputs):
    """``z = W a + b`` of one image: the matrix from unit inputs, (I,J), and the bias (J,)."""
    zero = torch.zeros_like(inputs[:1])
    bias = function(zero)
    units = torch.eye(zero.numel(), dtype=inputs.dtype).view(-1, *inputs.shape[1:])
    return (function(units) - bias).flatten(1), bias.flatten()


def shared(contributions, relevance, total=None):
    """``R_i = sum_j c_ij / sum_i c_ij R_j``, straight from the definition."""
    total = contributions.sum(0) if total is None else total
    return torch.where(total == 0, 0, contributions / total) @ relevance


def z_plus_matrix(a, w, b, z, r):
    """Positive contributions."""
    return shared((a[:, None] * w).clamp(min=0), r)


def negated_matrix(a, w, b, z, r):
    """Positive contributions of negated weights."""
    return shared((-a[:, None] * w).clamp(min=0), r)


def epsilon_matrix(a, w, b, z, r):
    """All contributions, over a stabilised output."""
    return shared(a[:, None] * w, r, torch.where(z < 0, z - 0.1, z + 0.1))


def gamma_matrix(a, w, b, z, r):
    """Contributions of the output's sign raised by half, the bias among them."""
    contributions = torch.cat([a[:, None] * w, b[None]])
    preferred = torch.where(z > 0, contributions.clamp(min=0), contributions.clamp(max=0))
    return shared(contributions + 0.5 * preferred, r)[:-1]


def alpha_beta_matrix(a, w, b, z, r):
    """Twice the positive minus once the negative shares."""
    contributions = a[:, None] * w
    return 2 * shared(contributions.clamp(min=0), r) - shared(contributions.clamp(max=0), r)


def lossless_matrix(a, w, b, z, r):
    """Contributions of the sign of their sum."""
    contributions = a[:, None] * w
    positive = contributions.sum(0) > 0
    return shared(torch.where(positive, contributions.clamp(min=0), contributions.clamp(max=0)), r)


RULES = {
    "lossless": (lossless, lossless_matrix),
    "z+": (z_plus, z_plus_matrix),
    "negated z+": (negated_z_plus, negated_matrix),
    "epsilon": (Epsilon(0.1), epsilon_matrix),
    "gamma": (Gamma(0.5), gamma_matrix),
    "alpha-beta": (AlphaBeta(2.0, 1.0), alpha_beta_matrix),
}
KINDS = [*CONVOLUTIONS, "linear", "normalization", "transposed"]


@pytest.mark.parametrize("signed", [False, True], ids=["non-negative", "signed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RULES)
def test_rule_equals_its_definition_in_matrices(name, kind, signed):
    """Each image's relevance, in float64."""
    rule, definition = RULES[name]
    layer, inputs, function = example(kind, signed)
    outputs = function(inputs)
    multipliers = torch.randn(outputs.shape, generator=generator(5)).double()
    found = inputs * rule(layer, inputs, outputs)(multipliers)
    matrix, bias = dense(function, inputs)
    for i in range(len(inputs)):
        z = outputs[i].flatten()
        expected = definition(inputs[i].flatten(), matrix, bias, z, z * multipliers[i].flatten())
        torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-9, atol=1e-11)


LOW, HIGH = (-3.0, -4.0, -5.0, -4.5), (4.0, 3.5, 5.0, 6.0)


def box_matrix(x, w, r):
    """Contributions relative to the bounds."""
    low, high = (torch.tensor(ends).double().repeat_interleave(36)[:, None] for ends in (LOW, HIGH))
    return shared(x[:, None] * w - low * w.clamp(min=0) - high * w.clamp(max=0), r)


FIRST = {
    "box": (ZBox(LOW, HIGH), box_matrix),
    "w2": (WSquare(), lambda x, w, r: shared(w**2, r)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("name", FIRST)
def test_rule_of_the_first_layer_equals_its_definition_in_matrices(name, kind):
    """Inputs of zero included, which have relevance here."""
    rule, definition = FIRST[name]
    layer, inputs, function = example(kind, signed=True)
    inputs[:, :, 2] = 0
    outputs = function(inputs)
    multipliers = torch.randn(outputs.shape, generator=generator(5)).double()
    found = rule(layer, inputs, outputs)(multipliers)
    matrix, _ = dense(function, inputs)
    for i in range(len(inputs)):
        relevance = (outputs * multipliers)[i].flatten()
        expected = definition(inputs[i].flatten(), matrix, relevance)
        torch.testing.assert_close(found[i].flatten(), expected, rtol=1e-9, atol=1e-11)


def test_flat_rule_gives_every_input_of_an_output_the_same():
    """A convolution whose corner outputs see four inputs through the padding, and the centre nine."""
    layer = convolution_layer(torch.randn(1, 1, 3, 3), padding=1)
    multipliers = torch.zeros(1, 1, 3, 3)
    multipliers[0, 0, 0, 0] = 1
    found = Flat()(layer, torch.zeros(1, 1, 3, 3), torch.full((1, 1, 3, 3), 4.0))(multipliers)
    assert found[0, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_box_without_bounds_takes_each_images_own_range():
    """As if the smallest and largest values of each channel had been given."""
    layer, inputs, function = example("plain", signed=True)
    outputs, found = function(inputs), []
    for image, z in zip(inputs.split(1), outputs.split(1), strict=True):
        ends = [tuple(getattr(image, end)((0, 2, 3)).tolist()) for end in ("amin", "amax")]
        found.append(ZBox(*ends)(layer, image, z)(torch.ones_like(z)))
    torch.testing.assert_close(ZBox()(layer, inputs, outputs)(torch.ones_like(outputs)), torch.cat(found))


def test_box_refuses_inputs_outside_of_its_bounds():
    """Else contributions are negative and the rule is another one."""
    layer, inputs, function = example("plain", signed=True)
    with pytest.raises(ValueError, match=r"`ZBox` expected inputs of the first layer within low=.*standardized"):
        ZBox((0.0,) * 4, (1.0,) * 4)(layer, inputs, function(inputs))


def test_box_refuses_another_number_of_channels():
    """One bound for each."""
    layer, inputs, function = example("plain", signed=True)
    with pytest.raises(ValueError, match="a bound for each of the 4 channels"):
        ZBox((-9.0,), (9.0,))(layer, inputs, function(inputs))


def test_alpha_one_beta_zero_is_z_plus():
    """Biases are ignored by both."""
    layer, inputs, function = example("plain", signed=True)
    outputs = function(inputs)
    found = [rule(layer, inputs, outputs)(torch.ones_like(outputs)) for rule in (AlphaBeta(1.0, 0.0), z_plus)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_large_gamma_is_z_plus_where_outputs_are_positive():
    """Without a bias."""
    layer, inputs, _ = example("plain", signed=True)
    layer = convolution_layer(layer.weight)
    outputs = layer.forward(inputs, layer.weight)
    multipliers = (outputs > 0).double()
    found = [rule(layer, inputs, outputs)(multipliers) for rule in (Gamma(1e9), z_plus)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_an_output_without_contributions_shares_nothing():
    """Its relevance is lost, and nothing becomes infinite."""
    layer = linear_layer(torch.tensor([[-1.0, -2.0]]), torch.tensor([5.0]))
    inputs = torch.ones(1, 2)
    for rule in (z_plus, AlphaBeta(2.0, 0.0)):
        assert rule(layer, inputs, torch.tensor([[2.0]]))(torch.tensor([[1.0]])).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("rule", "corner", "expected"),
    [
        (Epsilon(0.0), 2.0, [18.0, 36.0, 54.0]),
        (Gamma(1.0), -2.0, [28 / 3, 104 / 3, 52.0]),
        (AlphaBeta(1.0, 0.0), -2.0, [12.0, 33.6, 50.4]),
        (z_plus, -2.0, [12.0, 33.6, 50.4]),
    ],
    ids=["epsilon", "gamma", "alpha 1 beta 0", "z+"],
)
def test_rules_give_captums_known_answers(rule, corner, expected):
    """The numbers of captum's tests/attr/test_lrp.py: weights of 2, one of them changed, then weights of 3."""
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    first, second = torch.full((3, 3), 2.0), torch.full((1, 3), 3.0)
    first[0, 0] = corner
    hidden = inputs @ first.T
    multipliers = rule(linear_layer(second), hidden, hidden @ second.T)(torch.ones(1, 1))
    found = inputs * rule(linear_layer(first), inputs, hidden)(multipliers)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_batch_normalization_folds_into_a_layer():
    """The layer and the normalisation behind it are one layer."""
    layer, inputs, function = example("plain", signed=True)
    scale, shift = torch.tensor([1.0, -2.0, 3.0, 0.5]).double(), torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
    layer = layer.followed_by(scale, shift)
    expected = affine(function(inputs), scale, shift)
    torch.testing.assert_close(layer.forward(inputs, layer.weight) + layer.bias, expected)
