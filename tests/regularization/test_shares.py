"""The term on a share of the batch or at an inner layer, terms that are not finite, and graphs that are refused."""

import copy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from regularization.nets import TARGETS, images, plain_net
from torch import nn

from lightning_xai.regularization import (
    AdaptiveWeight,
    ConstantWeight,
    CosineLoss,
    GradientShare,
    GuidedGradientLoss,
    keep_saturated,
)


def found(model, term, batch=None, targets=TARGETS, step=0):
    """The terms of one batch."""
    return term(model, images() if batch is None else batch, targets, F.cross_entropy, step)


def term_gradients(model, term, order=(0, 1, 2, 3), step=0):
    """What the term adds to the gradients of the parameters, lambda 1."""
    model = copy.deepcopy(model)
    order = list(order)
    terms = found(model, term, images()[order], TARGETS[order], step)
    classification = F.cross_entropy(copy.deepcopy(model)(images()[order]), TARGETS[order])
    assert torch.allclose(terms.classification, classification)
    loss = terms.loss - F.cross_entropy(terms.logits, TARGETS[order])
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, model.parameters(), materialize_grads=True)])


def uncoupled():
    """Without batch statistics."""
    return plain_net().eval()


def options(**changes):
    """A term of weight one in which every image counts."""
    return GuidedGradientLoss(weight=ConstantWeight(1.0), image_weights=keep_saturated, **changes)


@pytest.mark.parametrize(("fraction", "n"), [(0.25, 1), (0.5, 2), (0.7, 3)])
def test_the_mean_over_all_shares_is_the_exact_gradient(fraction, n):
    """Every choice of ceil(fraction N) images as the first ones, where nothing couples images."""
    model = uncoupled()
    shares = [
        term_gradients(model, options(fraction=fraction), (*chosen, *(set(range(4)) - set(chosen))))
        for chosen in combinations(range(4), n)
    ]
    exact = term_gradients(model, options())
    torch.testing.assert_close(torch.stack(shares).mean(0), exact, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(shares[0], exact, rtol=0.1)


def test_batch_statistics_couple_the_images_of_a_share():
    """What the docstring warns of: in training mode the mean over all shares is another gradient."""
    model = plain_net()
    shares = [term_gradients(model, options(fraction=0.5), order) for order in ((0, 1, 2, 3), (2, 3, 0, 1))]
    assert not torch.allclose(torch.stack(shares).mean(0), term_gradients(model, options()), rtol=0.1)


def test_the_mean_over_n_steps_is_the_exact_gradient():
    """Of the term every n steps with n times the weight, at the same parameters."""
    model = uncoupled()
    steps = [term_gradients(model, options(every_n_steps=3), step=step) for step in range(3)]
    torch.testing.assert_close(torch.stack(steps).mean(0), term_gradients(model, options()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_norm", ["training", "evaluation"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_pass_of_its_own_moves_no_statistics(batch_norm, momentum):
    """Mean, variance and count are those of one plain pass; modes and momentum stay."""
    model = plain_net()
    model[1].momentum = momentum
    plain = copy.deepcopy(model)
    found(model, GuidedGradientLoss(fraction=0.5, batch_norm=batch_norm)).loss.backward()
    plain(images())
    assert model[1].num_batches_tracked == 1
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)
    assert model[1].track_running_stats
    assert all(module.training for module in model.modules())


def test_a_share_is_normalised_by_its_own_statistics():
    """The term of the first half is that of a batch which is the first half."""
    half = found(plain_net(), GuidedGradientLoss(fraction=0.5))
    alone = found(plain_net(), GuidedGradientLoss(), images()[:2], TARGETS[:2])
    torch.testing.assert_close(half.regularization, alone.regularization)


def test_the_term_of_a_layer_is_that_of_the_image_of_the_rest_of_the_network():
    """Cut there, the activations are the image; the final backward pass reaches the layers before, too."""
    model = uncoupled()
    found_at_layer = found(model, GuidedGradientLoss(layer="3"))
    activations = model[:4](images()).detach()
    torch.testing.assert_close(
        found_at_layer.regularization, found(model[4:], GuidedGradientLoss(), activations).regularization
    )
    gradients = term_gradients(model, options(layer="3"))
    assert gradients[: model[0].weight.numel()].abs().max() > 0
    by_module = term_gradients(model, options(layer="3"))
    torch.testing.assert_close(by_module, gradients)


def test_gradients_of_the_term_at_a_layer_are_exact():
    """Numerical derivatives, the teacher held constant, with respect to a layer before and a layer after."""
    model, recorded = uncoupled(), []

    def constant_teacher(gradients, guided):
        recorded.append(guided)
        return CosineLoss()(gradients, recorded[0])

    term = GuidedGradientLoss(constant_teacher, ConstantWeight(0.7), layer="3", image_weights=keep_saturated)

    class WithWeights(nn.Module):
        def __init__(self, *weights):
            super().__init__()
            self.model, self.weights = model, dict(zip(("0.weight", "4.weight"), weights, strict=True))

        def named_modules(self, *args, **kwargs):
            return self.model.named_modules(*args, **kwargs)

        def forward(self, batch):
            return torch.func.functional_call(self.model, self.weights, (batch,))

    weights = tuple(model[i].weight.detach().clone().requires_grad_() for i in (0, 4))
    torch.autograd.gradcheck(lambda *w: found(WithWeights(*w), term).loss, weights, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_a_layer_may_be_a_module_and_is_no_part_of_the_loss():
    """Its parameters are the model's; copies of both together stay together."""
    model = uncoupled()
    term = GuidedGradientLoss(layer=model[3])
    assert list(term.state_dict()) == []
    both = copy.deepcopy(nn.ModuleList([model, term]))
    torch.testing.assert_close(found(*both).regularization, found(model, GuidedGradientLoss(layer="3")).regularization)
    assert term.name(model) == "guided_gradient/3"
    assert GuidedGradientLoss().name(model) == "guided_gradient"


def test_a_layer_above_a_frozen_backbone_works():
    """Nothing is recorded below it; the graph starts at the layer."""
    model = uncoupled()
    model[:4].requires_grad_(False)
    terms = found(model, GuidedGradientLoss(layer="3"))
    torch.testing.assert_close(terms.regularization, found(uncoupled(), GuidedGradientLoss(layer="3")).regularization)
    terms.loss.backward()
    assert model[4].weight.grad is not None


def test_a_layer_takes_a_share_of_the_batch_too():
    """The options go together."""
    half = found(uncoupled(), GuidedGradientLoss(layer="3", fraction=0.5))
    alone = found(uncoupled(), GuidedGradientLoss(layer="3"), images()[:2], TARGETS[:2])
    torch.testing.assert_close(half.regularization, alone.regularization)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("5", "`layer` expected rectifiers after it.*no nonlinearity at all.*Take an earlier layer"),
        ("7", "`layer` expected rectifiers after it"),
        ("conv", "`layer` expected the name of a module, got 'conv'"),
        (nn.ReLU(), "`layer` expected a module of the model, got a ReLU"),
    ],
)
def test_layers_that_teach_nothing_are_refused(layer, message):
    """After the last rectifier the guided gradient is the plain one."""
    model = plain_net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        found(model, GuidedGradientLoss(layer=layer))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_a_layer_that_is_used_twice_is_refused():
    """Which of its outputs would be meant?"""
    model = plain_net()
    model = nn.Sequential(*model[:3], model[2], *model[3:])
    with pytest.raises(ValueError, match=r"`layer` expected a module that is called once.*got ReLU with outputs"):
        found(model, GuidedGradientLoss(layer="2"))


class Unsteady(nn.Module):
    """An error function that gives NaN when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.steady = True

    def forward(self, gradients, guided):
        return CosineLoss()(gradients, guided) * (1.0 if self.steady else torch.nan)


def test_a_term_that_is_not_finite_leaves_the_classification_loss():
    """Its gradients are those of plain training; the step is counted and nothing of the term is told."""
    model, error = plain_net(), Unsteady()
    term = GuidedGradientLoss(error)
    error.steady = False
    terms = found(model, term)
    assert (terms.regularization, terms.weight, terms.cosine, term.nonfinite_steps) == (None, 0.0, None, 1)
    terms.loss.backward()
    plain = plain_net()
    F.cross_entropy(plain(images()), TARGETS).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))


def test_training_stops_after_several_such_steps_in_a_row():
    """A finite one in between starts the count anew."""
    error = Unsteady()
    term, model = GuidedGradientLoss(error, max_nonfinite=3), plain_net()
    for steady in (False, False, True, False, False):
        error.steady = steady
        found(model, term)
    assert term.nonfinite_steps == 4
    with pytest.raises(RuntimeError, match=r"not finite in 3 steps in a row. Lower or warm.*max_nonfinite"):
        found(model, term)


def test_an_adaptive_weight_passes_over_a_term_that_is_not_finite():
    """Its weight stays where it is."""
    error = Unsteady()
    error.steady = False
    weight = AdaptiveWeight(GradientShare(), start=0.3)
    terms = found(plain_net(), GuidedGradientLoss(error, weight))
    assert not terms.products.usable
    assert weight(1) == pytest.approx(0.3)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.99), (torch.bfloat16, 0.95)])
def test_gradients_in_half_precision_point_where_those_of_float64_do(dtype, least):
    """Of the term alone, under autocast and a loss scale, which the final backward pass is divided by again."""
    exact = term_gradients(plain_net(), options())
    model, scale = plain_net().float(), 2.0**14
    with torch.autocast("cpu", dtype):
        terms = found(model, options(), images().float())
    plain = F.cross_entropy(terms.logits.float(), TARGETS)
    gradients = torch.autograd.grad(scale * (terms.loss - plain), model.parameters(), materialize_grads=True)
    ours = torch.cat([one.flatten() for one in gradients]).double() / scale
    assert F.cosine_similarity(ours, exact, dim=0) > least
    assert ours.norm().item() == pytest.approx(exact.norm().item(), rel=0.1)


class Attention(nn.Module):
    """Rectifiers and attention, by torch's kernels or written out."""

    def __init__(self, attention) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 24), nn.Linear(8, 3)
        self.attention = attention

    def forward(self, batch):
        hidden = self.embed(batch).relu().flatten(2).transpose(1, 2)
        query, key, value = (one[:, None] for one in self.qkv(hidden).chunk(3, -1))
        return self.head((hidden + self.attention(query, key, value)[:, 0]).relu().mean(1))


def written_out(query, key, value):
    """Attention by its formula."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def test_attention_is_differentiated_twice():
    """By the kernel that can be: gradients are those of the formula."""
    torch.manual_seed(0)
    model = Attention(F.scaled_dot_product_attention).double()
    twin = copy.deepcopy(model)
    twin.attention = written_out
    for one in (model, twin):
        found(one, GuidedGradientLoss(weight=ConstantWeight(1.0))).loss.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


class FlashAttnFunc(torch.autograd.Function):
    """Named as that of the package flash-attn; its backward pass would count as a constant."""

    @staticmethod
    def forward(ctx, query, key, value):
        return query + key + value

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient, gradient


def test_attention_of_other_packages_is_refused():
    """Its double backward would be silently wrong."""
    with pytest.raises(RuntimeError, match=r"differentiated twice, got FlashAttnFuncBackward.*scaled_dot_product"):
        found(Attention(FlashAttnFunc.apply).double(), GuidedGradientLoss())


@pytest.mark.filterwarnings("ignore")  # what torch.compile says about code that it cannot compile
def test_a_compiled_training_step_is_refused():
    """Compiled outside of the model, where no module tells of it."""
    term, model = GuidedGradientLoss(), plain_net()
    step = torch.compile(lambda batch: found(model, term, batch).loss, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"CompiledFunctionBackward.*the step without torch\.compile"):
        step(images())
