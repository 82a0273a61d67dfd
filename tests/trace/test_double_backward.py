import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_xai.trace import DoubleBackward


class Net(nn.Module):
    """Every geometry of convolutions, each followed by a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
                nn.Conv2d(4, 6, (1, 3), padding=(0, 2), dilation=(1, 2)),
                nn.Conv2d(6, 6, 3, padding="same", groups=6),
            ]
        )
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6)]
        )
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5))

    def forward(self, images):
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = norm(convolution(images)).relu()
        return self.head(images)


def net(dtype=torch.float64):
    """The net with seeded weights and statistics of one batch."""
    torch.manual_seed(0)
    model = Net().to(dtype)
    model(torch.rand(2, 3, 9, 9, dtype=dtype))
    return model


def penalty_gradients(model, images, recorded):
    """Parameter gradients of loss + squared image gradient, and the buffers, with and without the closed forms."""
    model, leaf = copy.deepcopy(model), images.clone().requires_grad_()
    with recorded or nullcontext():
        loss = model(leaf).pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (loss + gradient.square().sum()).backward()
    return [parameter.grad for parameter in model.parameters()], list(model.buffers())


def flat(gradients):
    """One vector."""
    return torch.cat([one.double().flatten() for one in gradients])


def test_parameter_gradients_are_those_of_pytorch():
    """Value, first and second derivative of every kind of convolution and normalisation; statistics move once."""
    model, images = net(), torch.rand(4, 3, 9, 9, dtype=torch.float64)
    expected = penalty_gradients(model, images, None)
    torch.testing.assert_close(penalty_gradients(model, images, DoubleBackward()), expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("frozen", ["parameters", "statistics"])
def test_frozen_parts_stay_so(frozen):
    """Frozen parameters get no gradient, normalisations in evaluation mode keep their statistics."""
    model, images = net(), torch.rand(4, 3, 9, 9, dtype=torch.float64)
    for module in (*model.convolutions, *model.norms):
        if frozen == "parameters":
            module.requires_grad_(False)
        else:
            module.eval()
    expected = penalty_gradients(model, images, None)
    got = penalty_gradients(model, images, DoubleBackward())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-8)


def test_gradcheck_of_the_double_backward():
    """Numerical derivatives of the gradient agree."""
    torch.manual_seed(0)
    x, w, gamma, beta = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 4, 4), (3, 2, 2, 2), 3, 3)
    )

    def gradient(x, w, gamma, beta):
        with DoubleBackward():
            y = F.batch_norm(torch.conv2d(x, w), None, None, gamma, beta, training=True)
        return torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, (x, w, gamma, beta))


def test_no_gradient_is_computed_that_nobody_asked_for():
    """Where the image alone is asked, the weights' is left out; where weights are, it is there."""

    class Masks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                masks.append(args[-1])
            return function(*args, **(kwargs or {}))

    x, w, b = (torch.rand(shape, requires_grad=True) for shape in ((1, 1, 3, 3), (1, 1, 2, 2), (1,)))
    for wanted, mask in (
        ([x], [True, False, False]),
        ([w], [False, True, False]),
        ([x, b], [True, False, True]),
        (None, [True, True, True]),
    ):
        masks = []
        with DoubleBackward():
            y = torch.conv2d(x, w, b).sum()
        with Masks():
            y.backward() if wanted is None else torch.autograd.grad(y, wanted)
        assert masks == [mask]


def test_parameters_are_differentiated_in_a_plain_backward_pass():
    """It reaches weights and biases."""
    model, images = net(), torch.rand(4, 3, 9, 9, dtype=torch.float64)
    with DoubleBackward():
        model(images).pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid_is_differentiated_twice(inplace):
    """PyTorch cannot; away from its corners it is a straight line."""
    x = torch.tensor([-4.0, -2.0, 0.5, 2.9, 3.1], dtype=torch.float64, requires_grad=True)
    with DoubleBackward():
        y = nn.Hardsigmoid(inplace)(x.clone())
    torch.testing.assert_close(y, F.hardsigmoid(x))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, torch.tensor([0, 1 / 18, 1 / 18, 1 / 18, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    "length",
    [
        lambda x: F.normalize(x, dim=-1),
        lambda x: F.cosine_similarity(x, torch.ones_like(x), dim=-1),
        lambda x: x / (x.norm(p=2, dim=-1, keepdim=True) + 1e-6),
        lambda x: torch.norm(x, dim=-1),
        lambda x: torch.linalg.norm(x, dim=-1),
        lambda x: torch.linalg.vector_norm(x, dim=-1),
    ],
    ids=["normalize", "cosine_similarity", "Tensor.norm", "norm", "linalg.norm", "vector_norm"],
)
def test_vectors_of_zeros_have_a_length_that_is_differentiated_twice(length):
    """The other vectors' second derivatives are those without the zeros; PyTorch's own are nan."""
    torch.manual_seed(0)
    vectors = torch.randn(3, 4, dtype=torch.float64)
    vectors[1] = 0

    def second_derivative(rows):
        x, scale = vectors[rows].requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad((length(x * scale) * scale).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient[[0, -1]].square().sum(), scale)[0]

    expected = second_derivative([0, 2])
    with DoubleBackward():
        found = second_derivative([0, 1, 2])
    assert second_derivative([0, 1, 2]).isnan()
    torch.testing.assert_close(found, expected)


def test_half_precision_is_as_exact_as_that_of_pytorch():
    """Under autocast both are about equally far from float64."""
    model, images = net(torch.float32), torch.rand(4, 3, 9, 9)
    exact = flat(penalty_gradients(copy.deepcopy(model).double(), images.double(), None)[0])
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (flat(penalty_gradients(model, images, recorded)[0]) for recorded in (None, DoubleBackward()))
    far, near = ((one - exact).norm() / exact.norm() for one in (theirs, ours))
    assert near < 1.5 * far < 0.5


def test_checkpointed_parts_are_left_to_pytorch():
    """Recomputation happens outside of the context and must find the same operations."""
    model, images = net(), torch.rand(4, 3, 9, 9, dtype=torch.float64)
    plain = penalty_gradients(model, images, None)[0]
    wrapped = copy.deepcopy(model)
    leaf = images.clone().requires_grad_()
    with DoubleBackward():
        loss = checkpoint(wrapped, leaf, use_reentrant=False).pow(3).sum()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (loss + gradient.square().sum()).backward()
    torch.testing.assert_close([parameter.grad for parameter in wrapped.parameters()], plain, rtol=1e-9, atol=1e-8)


def test_gradient_free_calls_are_left_alone():
    """Nothing is recorded where nothing is to be differentiated."""
    with torch.no_grad(), DoubleBackward():
        assert net()(torch.rand(2, 3, 9, 9, dtype=torch.float64)).grad_fn is None


def test_third_derivatives_are_refused():
    """Once differentiable says so."""
    x = torch.rand(1, 1, 3, 3, requires_grad=True)
    w = torch.rand(1, 1, 2, 2, requires_grad=True)
    with DoubleBackward():
        y = torch.conv2d(x, w).pow(3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_a_first_gradient_at_a_parameter_is_refused():
    """The closed forms are those of gradients at images; anything else would be silently wrong."""
    x = torch.rand(1, 1, 3, 3, requires_grad=True)
    w = torch.rand(1, 1, 2, 2, requires_grad=True)
    with DoubleBackward():
        y = torch.conv2d(x, w).pow(2).sum()
    (first,) = torch.autograd.grad(y, w, create_graph=True)
    with pytest.raises(RuntimeError, match="got one at a parameter"):
        first.sum().backward()


def test_one_value_per_channel_is_an_error_as_in_pytorch():
    """Batch statistics of one value mean nothing."""
    with DoubleBackward(), pytest.raises(ValueError, match="more than one value per channel"):
        F.batch_norm(torch.rand(1, 2, requires_grad=True), None, None, torch.ones(2), None, training=True)
