"""Other people's functions as attributions, and what they may do to the model."""

import pytest
import torch
import torch.nn.functional as F
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import GradCAM, InputGradient, explain
from lightning_xai.attribution import FromCallable
from lightning_xai.attribution.gradient import channel_max
from lightning_xai.scores import pre_softmax
from lightning_xai.trace import Capture, Listener


def gradient(model, images, targets):
    """The gradient of the logit, (N,C,H,W)."""
    scores = model(images).gather(1, targets[:, None])
    return torch.autograd.grad(scores.sum(), images, create_graph=True)[0]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_function_gets_what_it_needs_for_a_gradient(mode):
    """Also where gradients are off, in training mode, and with targets of its own for each image."""
    model, images = small_net().train(), random_images()
    expected = explain(model, images, [0, 1, 2, 0], attributions=InputGradient(score=pre_softmax))
    with mode():
        found = explain(model, images.clone(), [0, 1, 2, 0], attributions=FromCallable(gradient))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_channels_are_reduced_as_asked():
    """Summed, or the largest magnitude."""
    found = explain(small_net(), random_images(), 0, attributions=FromCallable(gradient, channel_max))
    expected = explain(small_net(), random_images(), 0, attributions=InputGradient(pre_softmax, channel_max))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(4, 1, 2, 2), (4, 2, 2)])
def test_small_maps_are_resized_bilinearly(shape):
    """As those of CAM methods are."""
    values = torch.arange(16.0).view(shape)
    found = explain(small_net(), random_images(), attributions=FromCallable(lambda *_: values))
    expected = F.interpolate(values.view(4, 1, 2, 2), size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(found, expected)


def test_half_maps_become_float32():
    """As all maps."""
    method = FromCallable(lambda model, images, targets: torch.ones(4, 8, 8, dtype=torch.bfloat16))
    assert explain(small_net(), random_images(), attributions=method).dtype == torch.float32


def leaves_gradients(model, images, targets):
    """As pytorch-grad-cam: drops gradients that were there and leaves its own."""
    model.zero_grad()
    model(images).sum().backward()


def changes_modes(model, images, targets):
    """As classes that call eval() when they are made and wake up frozen layers."""
    for module in model.modules():
        module.training = not module.training


def freezes(model, images, targets):
    """As a wrapper that turns parameters off."""
    model.requires_grad_(False)
    images.requires_grad_(False)


def leaves_hooks_and_attributes(model, images, targets):
    """As captum's LRP after an error, and pytorch-grad-cam outside of a `with`."""
    model.conv1.register_forward_hook(lambda *_: None)
    model.bn1.rule = "epsilon"
    del model.dropout.p


def replaces(model, images, targets):
    """As libraries that load parameters by assignment, and pytorch-grad-cam's guided backpropagation (modules)."""
    model.relu = nn.ReLU()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def raises(model, images, targets):
    """After having done all of it."""
    for harm in (leaves_gradients, changes_modes, freezes, leaves_hooks_and_attributes, replaces):
        harm(model, images, targets)
    raise ArithmeticError("harm")


def writes_into_arguments(model, images, targets):
    """Into its copies."""
    images.data.zero_()
    targets.zero_()


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize(
    "harm", [leaves_gradients, changes_modes, freezes, leaves_hooks_and_attributes, replaces, raises]
)
def test_the_model_is_as_before_whatever_the_function_does(harm, with_gradients):
    """Gradients by object and value, modes, requires_grad, hooks, attributes, modules, parameter objects."""
    model = small_net().train()
    model.bn2.eval()
    if with_gradients:
        model(random_images()).sum().backward()
    model.conv1.bias.requires_grad_(False)
    before, modules = state_of(model), list(model.modules())

    def function(*arguments):
        harm(*arguments)
        return torch.zeros(4, 8, 8)

    try:
        explain(model, random_images(), attributions=FromCallable(function))
    except ArithmeticError:
        assert harm is raises
    assert_same_state(before, state_of(model))
    assert all(one is other for one, other in zip(modules, model.modules(), strict=True))


def test_handles_of_hooks_still_remove_them():
    """The user's own hook, registered before the function ran."""
    model, calls = small_net(), []
    handle = model.conv1.register_forward_hook(lambda *_: calls.append(1))
    explain(model, random_images(), attributions=FromCallable(lambda *_: torch.zeros(4, 8, 8)))
    handle.remove()
    calls.clear()
    model(random_images())
    assert calls == []


def test_other_methods_of_the_same_pass_are_not_disturbed():
    """A function that writes into what it is given, between two CAMs."""
    model, images = small_net(), random_images()

    def function(*arguments):
        writes_into_arguments(*arguments)
        return torch.zeros(4, 8, 8)

    expected, copy = explain(model, images, 1, attributions=GradCAM("conv2")), images.clone()
    methods = {"first": GradCAM("conv2"), "wild": FromCallable(function), "second": GradCAM("conv2", score=pre_softmax)}
    maps = explain(model, images, 1, attributions=methods)
    assert torch.equal(maps["first"], expected)
    alone = explain(model, images, 1, attributions=GradCAM("conv2", score=pre_softmax))
    assert torch.equal(maps["second"], alone)
    assert torch.equal(images, copy)


def test_listeners_do_not_hear_the_function():
    """Its passes are not passes of the one they listen to, and they hear the next one again."""
    model, images = small_net(), random_images()
    with Listener(model, Capture()) as listener, torch.no_grad():
        model(images)
        with torch.no_grad():
            listener.traces[0].call(lambda model, images, targets: model(images), torch.zeros(4).long())
        assert len(listener.traces) == 1
        model(images)
    assert len(listener.traces) == 2


def test_maps_can_be_differentiated_where_the_function_keeps_the_graph():
    """A penalty on the wrapped gradient reaches the parameters as the penalty on ours does."""
    model, images = small_net().double(), random_images(dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(
            explain(model, images, 0, attributions=method, create_graph=True).square().sum(), model.conv1.weight
        )[0]
        for method in (FromCallable(gradient), InputGradient(score=pre_softmax))
    )
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0], TypeError, r"`function` expected to return a tensor, got list.*torch.as_tensor"),
        (torch.zeros(4, 8), ValueError, r"\(N, D, H, W\) with N = 4, got \(4, 8\)"),
        (torch.zeros(3, 8, 8), ValueError, r"with N = 4, got \(3, 8, 8\)"),
        (torch.zeros(8, 8), ValueError, r"got \(8, 8\)"),
    ],
)
def test_maps_of_another_kind_are_refused(returned, error, message):
    """With the remedy."""
    with pytest.raises(error, match=message):
        explain(small_net(), random_images(), attributions=FromCallable(lambda *_: returned))


def test_a_function_that_cannot_be_called_is_refused():
    """When the method is made."""
    with pytest.raises(TypeError, match=r"`function` expected a function, got 3"):
        FromCallable(3)
