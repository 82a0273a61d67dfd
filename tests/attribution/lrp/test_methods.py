"""LRP, CLRP and SGLRP: against relevance propagated by hand, on paper, and through real architectures."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support import Unhappy, assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import InputGradient, explain
from lightning_xai.attribution.gradient import channel_sum
from lightning_xai.attribution.lrp.conservation import conservation_error
from lightning_xai.attribution.lrp.methods import CLRP, LRP, SGLRP, NormalizedCLRP, Rules
from lightning_xai.attribution.lrp.rules import Epsilon, Flat, WSquare, ZBox, z_plus
from lightning_xai.attribution.lrp.seeds import (
    ScoreGradient,
    contrastive,
    is_reversed,
    softmax_gradient,
    target_logit,
)
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import Capture, run

LOSS = "ignore:LRP expected the relevance of the pixels"
LOW, HIGH = (-4.0, -4.0, -4.0), (4.0, 4.0, 4.0)
BOX = Rules(first=ZBox(LOW, HIGH))
EPSILON = Rules(Epsilon(0.0), Epsilon(0.0), Epsilon(0.0))


def relevance_of(model, images, target=1, method=None):
    """Relevance (N,C,H,W) of one class."""
    method = LRP() if method is None else method
    trace = run(model, images, Capture(interception=method.interception))
    with trace.computing():
        return method.relevance(trace, torch.full((len(images),), target))


def shared(function, inputs, relevance):
    """``R_i = a_i sum_j s_j dz_j/da_i`` with ``s = R / z``: proportional shares of a linear function."""
    inputs = inputs.detach().requires_grad_()
    outputs = function(inputs)
    share = torch.where(outputs == 0, 0, relevance / outputs).detach()
    return (inputs * torch.autograd.grad(outputs, inputs, share)[0]).detach()


def folded(convolution, normalization):
    """The weight of a convolution and the normalisation behind it."""
    scale = normalization.weight / (normalization.running_var + normalization.eps).sqrt()
    return (convolution.weight * scale[:, None, None, None]).detach()


def by_hand(model, images, seeds):
    """Relevance of a SmallNet, layer by layer, by the formulas of Iwana et al. 2019."""
    first = model.bn1(model.conv1(images)).relu()
    pooled, winners = F.max_pool2d(first, 2, return_indices=True)
    second = model.bn2(model.conv2(pooled)).relu()
    features = second.mean((2, 3))
    relevance = shared(lambda a: a @ model.head.weight.T.clamp(min=0), features, seeds)
    relevance = shared(lambda a: a.mean((2, 3)), second, relevance)
    weight = folded(model.conv2, model.bn2).clamp(min=0)
    relevance = shared(lambda a: F.conv2d(a, weight, padding=1), pooled, relevance)
    relevance = F.max_unpool2d(relevance, winners, 2)
    weight, ones = folded(model.conv1, model.bn1), torch.ones_like(images)
    parts = [(images, weight), (LOW[0] * ones, -weight.clamp(min=0)), (HIGH[0] * ones, -weight.clamp(max=0))]
    total = sum(F.conv2d(one, w, padding=1) for one, w in parts)
    transposed = [one * F.conv_transpose2d(relevance / total, w, padding=1) for one, w in parts]
    return sum(transposed).detach()


@pytest.mark.parametrize("seed", [target_logit, contrastive, softmax_gradient])
def test_relevance_equals_propagation_by_hand(seed):
    """Folded normalisation, ReLU in place and not, max-pooling, mean, z+ and zB."""
    model, images = small_net().double(), random_images(3, dtype=torch.float64)
    targets = torch.full((3,), 1)
    expected = by_hand(model, images, seed(model(images).detach(), targets))
    found = relevance_of(model, images, method=LRP(BOX, seed))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [LRP(), CLRP(), SGLRP()])
def test_maps_are_relevance_summed_over_colours(method):
    """And the positive part only where the paper says so."""
    model, images = small_net(), random_images(2)
    expected = channel_sum(relevance_of(model, images, method=method))
    found = explain(model, images, 1, attributions=method)
    torch.testing.assert_close(found, expected if isinstance(method, LRP) and not method.relu else expected.relu())


class Toy(nn.Module):
    """Three inputs, handed on by the first layer as they are, and logits that are sums of them."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, len(weight), bias=False)
        self.first.weight.data, self.last.weight.data = torch.eye(3), torch.tensor(weight)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).relu())


PLAIN = Rules(first=z_plus)


def test_lrp_prefers_what_classes_share_and_clrp_what_tells_them_apart():
    """Iwana et al. 2019 figure 3: the second node feeds classes 1 and 2 alike, the first is what class 1 has alone."""
    model, image = Toy([[0.0, 0.0, 1.0], [1.0, 2.0, 0.0], [0.0, 2.0, 0.0]]), torch.ones(1, 1, 1, 3)
    found = {
        name: explain(model, image, 1, attributions=method)[0, 0].tolist()
        for name, method in {"lrp": LRP(PLAIN), "clrp": CLRP(PLAIN, relu=False), "map": CLRP(PLAIN)}.items()
    }
    assert found["lrp"] == pytest.approx([1, 2, 0])
    assert found["clrp"] == pytest.approx([1, 2 - 1.5, -1.5])
    assert found["map"] == pytest.approx([1, 0.5, 0])


def test_clrp_loses_what_sglrp_finds():
    """Iwana et al. 2019 figure 5: equal penalties cancel the second node, shared with unlikely classes."""
    weight = [[3.0, 6.0, 0.0], [0.0, 8.0, 10.0], [3.0, 6.0, 0.0], [20.0, 0.0, 0.0]]
    model, image = Toy(weight), torch.ones(1, 1, 1, 3)
    clrp = explain(model, image, 1, attributions=CLRP(PLAIN, relu=False))[0, 0].tolist()
    assert clrp == pytest.approx([-6 / 3 - 6 / 3 - 6, 8 - 4 - 4, 10], abs=1e-5)
    unlikely = 1 / (2 + torch.tensor(11.0).exp().item())  # of classes 0 and 2, with logits 9 beside 20
    sglrp = explain(model, image, 1, attributions=SGLRP(PLAIN, relu=False))[0, 0].tolist()
    expected = [-2 * unlikely / 3 - (1 - 2 * unlikely), 8 / 18 - 2 * unlikely * 2 / 3, 10 / 18]
    assert sglrp == pytest.approx(expected, rel=1e-4)


def test_sglrp_is_the_gradient_of_the_softmax_up_to_scale():
    """Iwana et al. 2019 eq. 10 in float64, divided by y (1 - y)."""
    logits, targets = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 2, 4])
    y = logits.softmax(1)
    own = y.gather(1, targets[:, None])
    expected = -own * y
    expected.scatter_(1, targets[:, None], own * (1 - own))
    torch.testing.assert_close(softmax_gradient(logits, targets), expected / (own * (1 - own)))


def test_sglrp_does_not_vanish_where_the_softmax_saturates():
    """In float32, 1 - y is zero here."""
    model = Toy([[1.0, 2.0, 0.0], [0.0, 100.0, 50.0], [0.0, 3.0, 1.0]])
    found = explain(model, torch.ones(1, 1, 1, 3), 1, attributions=SGLRP(PLAIN, relu=False))
    assert found.abs().sum() > 0.1


@pytest.mark.parametrize("seed", [contrastive, softmax_gradient])
def test_contrastive_seeds_need_two_classes(seed):
    """One logit has no other class."""
    with pytest.raises(ValueError, match=r"`seed` expected logits of at least 2 classes.*Use `LRP\(\)`"):
        seed(torch.ones(2, 1), torch.zeros(2, dtype=torch.long))


def test_one_logit_is_explained_by_lrp():
    """Its negative for target 0, as for scores."""
    model, image = Toy([[1.0, 2.0, 0.0]]), torch.ones(1, 1, 1, 3)
    assert explain(model, image, 1, attributions=LRP(PLAIN))[0, 0].tolist() == pytest.approx([1, 2, 0])
    assert explain(model, image, 0, attributions=LRP(PLAIN))[0, 0].tolist() == pytest.approx([-1, -2, 0])


def test_clrp_is_reversed_where_the_logit_is_negative():
    """The map shows what the target lacks."""
    logits = torch.tensor([[-1.0, 2.0], [1.0, 2.0]])
    targets = torch.tensor([0, 0])
    assert is_reversed(logits, targets).tolist() == [True, False]
    assert (contrastive(logits, targets)[:, 0] < 0).tolist() == [True, False]


def test_normalized_clrp_against_the_other_classes_is_two_maps_subtracted():
    """The first form of the reference code of Gu et al., by hand."""
    model, image = Toy([[3.0, 6.0, 0.0], [0.0, 8.0, 2.0]]), torch.ones(1, 1, 1, 3)
    found = explain(model, image, 1, attributions=NormalizedCLRP(PLAIN, contrast_rules=PLAIN, relu=False))
    assert found[0, 0].tolist() == pytest.approx([-3 / 9, 8 / 10 - 6 / 9, 2 / 10])


def test_normalized_clrp_against_the_negated_target_is_two_maps_subtracted():
    """The second form: the contrast goes where the target's weights are negative."""
    model, image = Toy([[3.0, 6.0, 0.0], [-4.0, 8.0, 2.0]]), torch.ones(1, 1, 1, 3)
    method = NormalizedCLRP.against_negated_target()
    method = NormalizedCLRP(PLAIN, method.contrast, Rules(first=z_plus, last=method.contrast_rules.last), relu=False)
    assert explain(model, image, 1, attributions=method)[0, 0].tolist() == pytest.approx([-1, 0.8, 0.2])


class BiasFree(nn.Module):
    """Convolutions without biases, a residual connection, concatenation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(c, 4, 3, padding=1, bias=False) for c in (3, 4))
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, images):
        hidden = F.relu(self.first(images))
        out = self.second(hidden)
        out += hidden
        out = F.leaky_relu(out, 0.1)
        both = torch.cat([F.max_pool2d(out, 2), F.avg_pool2d(hidden, 2)], 1)
        return self.head(both.flatten(2).mean(-1))


def seeded(kind, *args):
    """A float64 model in evaluation mode with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args).double().eval()


def test_lrp_epsilon_is_input_times_gradient_without_biases():
    """Ancona et al. 2018, proposition 1, for eps -> 0 in rectifier networks."""
    model, images = seeded(BiasFree), random_images(2, dtype=torch.float64)
    method = InputGradient(score=pre_softmax)
    trace = run(model, images, Capture(image_gradient=True))
    expected = images * trace.image_gradient(method.score, torch.tensor([1, 1]))
    found = relevance_of(model, images, method=LRP(EPSILON))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)


class Residual(nn.Module):
    """One step of 2 x + x, as captum's skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, bias=False)
        self.linear.weight.data = torch.tensor([[2.0, 2.0]])

    def forward(self, images):
        values = images.flatten(1)
        return self.linear(values + 2 * values)


def test_residual_connections_share_in_proportion():
    """Both branches lead to the same pixel: all relevance arrives."""
    found = explain(Residual(), torch.tensor([[[[1.0, 2.0]]]]), 1, attributions=LRP(PLAIN))
    assert found[0, 0].tolist() == pytest.approx([6, 12])


class Repeated(nn.Module):
    """One convolution applied twice, or two with the same weights."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = copy.deepcopy(self.first) if tied else self.first
        self.head = nn.Linear(3, 3)

    def forward(self, images):
        return self.head(F.relu(self.second(F.relu(self.first(images)))).mean((2, 3)))


def test_a_reused_module_equals_two_with_tied_weights():
    """Exactly."""
    images = random_images(2, dtype=torch.float64)
    once, twice = seeded(Repeated, False), seeded(Repeated, True)
    twice.load_state_dict({**twice.state_dict(), **once.state_dict()})
    torch.testing.assert_close(relevance_of(once, images), relevance_of(twice, images), rtol=0, atol=0)


ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Hardsigmoid, nn.Mish]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("normalized", [False, True])
def test_in_place_equals_out_of_place(activation, normalized):
    """Also where the activation overwrites the output of a layer that its rule needs, and after a residual sum."""
    images = random_images(2, dtype=torch.float64)

    class Net(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.inplace, self.activation = inplace, activation(inplace=inplace)
            self.first, self.second = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4))
            self.norm = nn.BatchNorm2d(4) if normalized else nn.Identity()
            self.head = nn.Linear(4, 3)

        def forward(self, images):
            hidden = self.activation(self.norm(self.first(images)))
            out = self.norm(self.second(hidden))
            if self.inplace:
                out += hidden
            else:
                out = out + hidden
            return self.head(self.activation(out).mean((2, 3)))

    found = [relevance_of(seeded(Net, inplace), images) for inplace in (True, False)]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_activations_hand_relevance_on_unchanged():
    """SiLU between two layers: the second's relevance goes on to the first as it is."""
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3)))
    images = random_images(1, dtype=torch.float64)[:, :1, :1, :3]
    inputs, hidden = images.flatten(1), F.silu(model[1](images.flatten(1)))
    relevance = (model(images) * F.one_hot(torch.tensor([1]), 3)).detach()
    for layer, a in ((model[3], hidden), (model[1], inputs)):
        contributions = (a[0, :, None] * layer.weight.T).clamp(min=0).detach()
        relevance = relevance @ (contributions / contributions.sum(0)).nan_to_num(0).T
    assert relevance.abs().sum() > 0
    found = relevance_of(model, images, method=LRP(PLAIN))
    torch.testing.assert_close(found.flatten(1), relevance)


GATED = {
    "sigmoid": lambda x, g: x * torch.sigmoid(g),
    "reversed": lambda x, g: F.hardsigmoid(g) * x,
    "in place": lambda x, g: (x * 1).mul_(g.sigmoid()),
    "in its shape": lambda x, g: x * g.sigmoid().expand_as(x),  # as in ECA
    "clipped": lambda x, g: x * (F.relu6(g + 3) / 6),
}


@pytest.mark.parametrize("way", GATED)
def test_gates_get_no_relevance(way):
    """All goes to the signal, as if the gate were a constant."""

    class Gated(nn.Module):
        def __init__(self, constant):
            super().__init__()
            self.constant = constant
            self.features, self.gate, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, images):
            features = F.relu(self.features(images))
            squeezed = self.gate(features.mean((2, 3), keepdim=True)) if self.constant is None else self.constant
            return self.head(GATED[way](features, squeezed).mean((2, 3)))

    images = random_images(2, dtype=torch.float64)
    model = seeded(Gated, None)
    constant = model.gate(F.relu(model.features(images)).mean((2, 3), keepdim=True)).detach()
    torch.testing.assert_close(relevance_of(model, images), relevance_of(seeded(Gated, constant), images))


PRODUCTS = {
    "two signals": (lambda x, y: x * y, 0.5, 0.5),
    "a power": (lambda x, y: x**2 * y.mean() ** 0, 1.0, 0.0),
    "a written-out normalisation": (lambda x, y: x * (y.pow(2).mean(-1, keepdim=True) + 1).rsqrt(), 1.0, 0.0),
    "a divisor": (lambda x, y: x / (1 + y.abs()), 1.0, 0.0),
    "a length": (lambda x, y: x * (y.norm(dim=1, keepdim=True) / 3), 1.0, 0.0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_share_as_attnlrp_does(name):
    """Half to each of two signals; nothing to lengths, roots and divisors."""
    function, to_first, to_second = PRODUCTS[name]

    class Product(nn.Module):
        def forward(self, images):
            first, second = F.leaky_relu(images).flatten(1).chunk(2, 1)
            return function(first, second)

    images = torch.tensor([[[[1.0, -2.0, 3.0, 2.0, 0.5, -1.0]]]]).double()
    seeds = Product()(images) * F.one_hot(torch.tensor([1]), 3)
    found = relevance_of(Product(), images).flatten()
    torch.testing.assert_close(found, torch.cat([to_first * seeds[0], to_second * seeds[0]]))


def test_two_signals_multiplied_in_place_are_an_error():
    """Half of each cannot be written over one of them."""

    class Product(nn.Module):
        def forward(self, images):
            values = images.flatten(1)
            return F.relu(values).mul_(F.relu(-values))

    with pytest.raises(NotImplementedError, match=r"`mul_` in the model \(Product\) .*or two signals"):
        explain(Product(), random_images(1)[:, :1, :1, :3], 1, attributions=LRP())


def test_batch_normalization_in_training_mode_is_an_error():
    """Statistics of the batch couple its images."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    with pytest.raises(NotImplementedError, match=r"`batch_norm` in '1' .* expected running statistics"):
        explain(model, random_images(2), 1, attributions=LRP())


class Standardized(nn.Module):
    """Standardises its pixels before a model sees them, as in-model preprocessing does."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        channels = [(images[:, i].unsqueeze(1) - 0.1 * i) / (0.5 + i) for i in range(3)]
        return self.model(F.pad(torch.cat(channels, 1), (1, 0, 1, 0)))


WIDE = Rules(first=ZBox((-9.0,) * 3, (9.0,) * 3))


@pytest.mark.filterwarnings(LOSS)  # what falls on the padding
@pytest.mark.parametrize("rules", [WIDE, Rules(first=WSquare()), Rules(first=Flat()), Rules()])
def test_standardising_inside_the_model_leaves_pixels_their_relevance(rules):
    """As if the standardised and padded image had been given."""
    model, images = small_net().double(), random_images(2, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.5, 2.5]).double()[:, None, None]
    shift = torch.tensor([0.0, 0.1, 0.2]).double()[:, None, None]
    inside = relevance_of(Standardized(model), images, method=LRP(rules))
    outside = relevance_of(model, F.pad((images - shift) / scale, (1, 0, 1, 0)), method=LRP(rules))
    torch.testing.assert_close(inside, outside[:, :, 1:, 1:])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # which is what is tested
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [2, 3])
def test_padding_may_be_named(padding, size):
    """Even kernels pad more on one side."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, size, padding=padding), nn.ReLU(), nn.Flatten()))
    images = random_images(1, 4, dtype=torch.float64)
    rest = size - 1 if padding == "same" else 0
    widths = (rest // 2, rest - rest // 2) * 2
    padded = nn.Sequential(nn.ZeroPad2d(widths), nn.Conv2d(3, 2, size), nn.ReLU(), nn.Flatten()).double()
    padded[1].load_state_dict(model[0].state_dict())
    found = [relevance_of(one, images, method=LRP(BOX)) for one in (model, padded)]
    torch.testing.assert_close(*found)


def test_batch_equals_images_one_by_one():
    """No image sees another."""
    model, images = small_net().double(), random_images(3, dtype=torch.float64)
    one_by_one = torch.cat([relevance_of(model, one) for one in images.split(1)])
    torch.testing.assert_close(relevance_of(model, images), one_by_one, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings(LOSS)
def test_conservation_error_counts_what_a_bias_alone_made():
    """An output to which nothing contributes loses its relevance."""
    model = Toy([[1.0, 1.0, 1.0]])
    model.last = nn.Linear(3, 2)
    model.last.weight.data, model.last.bias.data = (
        torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]),
        torch.ones(2) * 9,
    )
    image = torch.ones(1, 1, 1, 3)
    for target, expected in ((0, 0.0), (1, -1.0)):
        maps = explain(model, image, target, attributions=LRP(PLAIN))
        seeds = target_logit(model(image).detach(), torch.tensor([target]))
        assert conservation_error(maps, seeds).tolist() == pytest.approx([expected])


class Shifted(nn.Module):
    """Adds the same t(x) to all logits of a model."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images) + 5 * images[:, :, 0, 0].sum(1, keepdim=True)


def test_zero_sum_multipliers_do_not_see_a_shift_of_all_logits_but_zero_sum_relevance_does():
    """A shift's share is what the multipliers of the logits sum to."""
    model, images = small_net().double(), random_images(2, dtype=torch.float64)
    for method, same in ((LRP(seed=ScoreGradient()), True), (CLRP(), False), (SGLRP(), False), (LRP(), False)):
        found = [relevance_of(one, images, method=method) for one in (model, Shifted(model))]
        assert torch.allclose(*found, rtol=1e-9, atol=1e-11) is same


def test_the_three_methods_share_one_pass():
    """One forward pass of the model, also with a second call of the same rules."""
    model, images, calls = small_net(), random_images(2), []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    explain(model, images, 1, attributions={"lrp": LRP(), "clrp": CLRP(), "sglrp": SGLRP()})
    handle.remove()
    assert len(calls) == 1


def test_the_model_is_as_before():
    """Also inside inference mode, with frozen parameters, and where an exception comes midway."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Unhappy(), nn.Flatten())
    model.requires_grad_(False)
    before = state_of(model)
    with torch.inference_mode():
        explain(model, random_images(1), 1, attributions=LRP())
    assert_same_state(before, state_of(model))
    model[3].happy = False
    with pytest.raises(ArithmeticError):
        explain(model, random_images(1), 1, attributions=LRP())
    model[3].happy = True
    assert_same_state(before, state_of(model))


def test_maps_that_are_to_be_differentiated_are_an_error():
    """Propagated relevance has no derivative of its own."""
    with pytest.raises(RuntimeError, match="Relevance maps cannot be differentiated"):
        explain(small_net(), random_images(1), 1, attributions=LRP(), create_graph=True)


def prepared(build):
    """A model whose batch normalisation is neither neutral nor untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
                module.momentum = None
        model.train()
        with torch.no_grad():
            model(torch.rand(4, 3, 96, 96) * 4 - 2)
        return model.double().eval()


vision = torchvision.models


def plain_vgg():
    """Two stages without normalisation."""
    return small_vgg(normalized=False)


def small_vgg(normalized=True):
    """Two stages, with batch normalisation or without."""
    model = vision.VGG(vision.vgg.make_layers([8, "M", 8, 8, "M"], normalized), init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(8 * 49, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 7))
    return model


FAST = {
    "resnet18": (lambda: vision.resnet18(num_classes=7), 1e-10),
    "vgg": (small_vgg, 1e-10),
    "densenet": (lambda: vision.DenseNet(8, (2, 2), 8, num_classes=7), 1.0),
    "squeezenet": (lambda: vision.squeezenet1_1(num_classes=7), 1e-10),
    "mobilenet_v3": (lambda: vision.mobilenet_v3_small(num_classes=7), 1.0),
}


def check_architecture(build, largest_error):
    """Logits bit for bit, relevance finite, non-negative for z+, conserved as far as the rule can."""
    model = prepared(build)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).double() * 4 - 2
    trace = run(model, images, Capture(interception=Rules()))
    with torch.no_grad():
        assert torch.equal(trace.logits, model(images))
    targets = trace.logits.argmax(1)
    with trace.computing():
        relevance = LRP().relevance(trace, targets)
    assert relevance.isfinite().all()
    assert relevance.abs().sum() > 0
    error = conservation_error(relevance, target_logit(trace.logits, targets))
    assert error.abs().max() <= largest_error
    return error


TORCHVISION = [
    *(
        "vgg11_bn",
        "vgg16",
        "resnet50",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "densenet121",
        "googlenet",
        "inception_v3",
    ),
    *("mobilenet_v2", "mobilenet_v3_large", "squeezenet1_0", "efficientnet_b0", "efficientnet_v2_s", "alexnet"),
    *("shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "inception_v3"),
]


@pytest.mark.filterwarnings(LOSS)
@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_all_architectures_of_torchvision_run(name):
    """Random weights; where the rules can, relevance is conserved."""
    random = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    check_architecture(lambda: getattr(vision, name)(num_classes=7, **random), 1.0)


TIMM = [
    *("resnet18", "resnet18d", "seresnet18", "resnetv2_50", "vgg11_bn", "densenet121", "inception_v3", "nf_resnet26"),
    *("mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0", "tf_efficientnet_b0", "efficientnet_lite0"),
    *("ghostnet_100", "mnasnet_100", "regnetx_002", "regnety_002", "rexnet_100", "skresnet18", "legacy_xception"),
]


@pytest.mark.filterwarnings(LOSS)
@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_architectures_of_timm_run(name):
    """Padding by F.pad, several forms of squeeze and excitation, activations by function."""
    check_architecture(lambda: timm.create_model(name, num_classes=7), 1.0)


@pytest.mark.filterwarnings(LOSS)
@pytest.mark.parametrize("name", FAST)
def test_architectures_run_and_conserve(name):
    """Where z+ can: shifts of normalisations make outputs of depthwise convolutions from nothing."""
    check_architecture(*FAST[name])


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # zennit uses what torch deprecates
def test_relevance_equals_zennits_on_vgg():
    """EpsilonPlus, on a copy, because zennit replaces its parameters; without biases, whose share its z+ rule keeps."""
    zennit = pytest.importorskip("zennit.composites")
    gradient = pytest.importorskip("zennit.attribution").Gradient
    model, images = prepared(plain_vgg), random_images(2, 96, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    rules = Rules(first=z_plus, linear=Epsilon(1e-6))
    found = relevance_of(model, images, method=LRP(rules))
    with gradient(copy.deepcopy(model), zennit.EpsilonPlus()) as attributor:
        seeds = target_logit(model(images), torch.tensor([1, 1])).detach()
        _, theirs = attributor(images, seeds)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
