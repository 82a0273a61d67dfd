"""Taps keep what layers give, whatever happens to it afterwards."""

import pytest
import torch
import torch.nn.functional as F
from support import SmallNet, Unhappy, assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import LRP, GradCAM, InputGradient, explain
from lightning_xai.explain import capture_for
from lightning_xai.trace import Capture, Listener, last_affine_call, run, spatial_layers, tapped


def test_tap_keeps_the_output_that_an_in_place_operation_overwrites():
    """What is kept is the layer's output, not that of the ReLU behind it."""
    model = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))
    with tapped(model[0]) as outputs:
        model(torch.tensor([[-1.0, 2.0]]))
    torch.testing.assert_close(outputs, [torch.tensor([[-1.0, 2.0]])])


def test_tap_keeps_every_call_in_order():
    """A layer that is used twice gives two outputs."""
    layer = nn.Flatten()
    with tapped(layer) as outputs:
        layer(torch.zeros(1, 1))
        layer(torch.ones(1, 1))
    assert [one.item() for one in outputs] == [0, 1]


def test_gradients_of_a_trace_go_through_the_tap():
    """What is computed from a tap depends on the activation that the trace keeps."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.ReLU(), nn.Flatten())

        def forward(self, images):
            with tapped(self.inner[0]) as outputs:
                logits = self.inner(images)
            return logits + outputs[0].sum((1, 2, 3))[:, None]

    model = Doubled()
    trace = run(model, torch.ones(1, 1, 1, 2), Capture({"inner.0": model.inner[0]}))
    gradient = trace.gradient(lambda logits, targets: logits[:, 0], torch.tensor([0]), of="inner.0")
    assert gradient.flatten().tolist() == [2, 1]


@pytest.mark.parametrize("context", [lambda model: tapped(model[0]), last_affine_call])
def test_taps_are_removed_also_after_an_error(context):
    """The model's state is compared before and after."""
    model = nn.Sequential(nn.Linear(2, 2), Unhappy())
    before = state_of(model)
    with context(model):
        model(torch.zeros(1, 2))
    assert_same_state(before, state_of(model))
    model[1].happy = False
    with pytest.raises(ArithmeticError), context(model):
        model(torch.zeros(1, 2))
    model[1].happy = True
    assert_same_state(before, state_of(model))


def test_last_affine_call_is_the_head():
    """Of all linear and convolutional layers, with its output as it was."""
    model, images = small_net(), random_images()
    with last_affine_call(model) as call:
        logits = model(images)
    assert call.module is model.head
    torch.testing.assert_close(call.output, logits.detach(), rtol=0, atol=0)


def test_no_call_of_a_linear_layer_is_no_module():
    """A model without one gives none."""
    with last_affine_call(nn.ReLU()) as call:
        pass
    assert call.module is None
    assert call.output is None


def test_spatial_layers_come_in_the_order_in_which_they_finish():
    """Containers after what they contain; what gives one position only is left out."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = state_of(model)
    assert spatial_layers(model, random_images()) == ["0.0", "0.1", "0"]
    assert_same_state(before, state_of(model))


def test_a_layer_that_is_used_again_is_no_spatial_layer():
    """A ReLU after each of two convolutions has two maps."""
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 2, 3), relu, nn.Conv2d(2, 2, 3), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert spatial_layers(model, random_images()) == ["0", "2"]


@pytest.mark.parametrize("method", [LRP(), GradCAM("conv2"), InputGradient()])
@pytest.mark.parametrize("heard", [True, False])
def test_hooks_of_the_user_see_what_they_see_without_us(method, heard):
    """`.numpy()` fails on tensors with a graph, and has no relevance rule."""
    model, images = small_net(), random_images()
    seen = []
    model.dropout.register_forward_hook(lambda module, args, output: seen.append((args[0] * 2 + output).numpy()))
    model.dropout.register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    with torch.no_grad():
        model(images)
    expected, seen[:] = list(seen), []
    if heard:
        with Listener(model, capture_for(model, [method])), torch.inference_mode():
            model(images)
    else:
        explain(model, images, attributions=method)
    assert len(seen) == 2
    for one, other in zip(seen, expected, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("method", [LRP(), GradCAM("conv2"), InputGradient()])
@pytest.mark.parametrize("how", ["returned", "in place"])
def test_hooks_that_change_something_take_part(method, how):
    """As if the model itself did so."""

    class Doubled(SmallNet):
        def forward(self, images):
            hidden = F.max_pool2d(self.relu(self.bn1(self.conv1(images))), 2)
            return self.head(self.last(self.bn2(self.conv2(hidden))).mean((2, 3)) * 2)

    model, images = small_net(), random_images()
    model.dropout.register_forward_hook(
        lambda module, args, output: output * 2 if how == "returned" else (output.mul_(2), None)[1]
    )
    doubled = Doubled().eval()
    doubled.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        explain(model, images, attributions=method), explain(doubled, images, attributions=method)
    )


def test_hooks_are_in_place_again_after_an_error():
    """The very ones, in their order; one that removes itself stays away."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

    def fails(module, args, output):
        raise ArithmeticError

    handle = model[0].register_forward_hook(lambda *args: handle.remove())
    model[1].register_forward_hook(fails)
    with pytest.raises(ArithmeticError):
        run(model, torch.ones(1, 1, 2, 2), Capture())
    assert list(model[1]._forward_hooks.values()) == [fails]
    assert not model[0]._forward_hooks


def test_hooks_of_torch_are_part_of_the_model():
    """Called once: sharded modules count their calls, and old weight normalisation makes the weights that run."""
    model, images = small_net(), random_images()
    torch.nn.utils.spectral_norm(model.conv2)
    (hook,) = model.conv2._forward_pre_hooks.values()
    calls, compute = [], hook.compute_weight
    hook.compute_weight = lambda *args, **kwargs: calls.append(1) or compute(*args, **kwargs)
    explain(model, images, attributions=GradCAM("conv2"))
    assert len(calls) == 1
