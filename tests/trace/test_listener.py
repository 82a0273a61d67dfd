"""Hearing a forward pass that somebody else makes."""

import pytest
import torch
from support import assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai.scores import centered
from lightning_xai.trace import Capture, Listener, run

TARGETS = torch.tensor([0, 1, 2, 0])


def capture(model, image_gradient=False):
    """The second convolution, and the image if asked."""
    return Capture({"conv2": model.conv2}, image_gradient)


@pytest.mark.parametrize("image_gradient", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_notices_nothing(mode, image_gradient):
    """Same logits bit for bit, without a graph, usable as before; and the model is as before after."""
    model, images = small_net(), random_images()
    expected = model(images).detach()
    before = state_of(model)
    with mode():
        batch = images.clone()
        with Listener(model, capture(model, image_gradient)) as listener:
            logits = model(batch)
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
            assert not torch.is_grad_enabled()
        assert not logits.requires_grad
        assert torch.equal(logits, expected)
        logits.add_(1)  # the trace keeps its own
    assert torch.equal(listener.traces[0].logits, expected)
    assert_same_state(before, state_of(model))


def test_a_heard_trace_gives_what_an_own_forward_gives():
    """Activations and gradients, in inference mode, bit for bit."""
    model, images = small_net(), random_images()
    own = run(model, images, capture(model, True))
    with torch.inference_mode(), Listener(model, capture(model, True)) as listener:
        model(images.clone())
        heard = listener.traces[0]
        gradient = heard.gradient(centered, TARGETS, of="conv2")
        image_gradient = heard.image_gradient(centered, TARGETS)
    assert torch.equal(gradient, own.gradient(centered, TARGETS, of="conv2"))
    assert torch.equal(image_gradient, own.image_gradient(centered, TARGETS))
    assert torch.equal(heard.activation("conv2"), own.activation("conv2"))


def test_every_call_leaves_its_own_trace():
    """Test-time augmentation calls the classifier several times a batch."""
    model, images = small_net(), random_images()
    with torch.no_grad(), Listener(model, capture(model)) as listener:
        model(images)
        model(images.flip(3))
    assert len(listener.traces) == 2
    assert torch.equal(listener.traces[1].images, images.flip(3))


def test_listeners_share_one_forward_and_one_trace():
    """Two callbacks on one classifier: the forward runs once and captures what either wants."""
    model, images, calls = small_net(), random_images(), []
    model.conv1.register_forward_hook(lambda module, args, output: calls.append(1))
    first, second = Listener(model, capture(model)), Listener(model, Capture({}, image_gradient=True))
    first.__enter__()
    second.__enter__()
    with torch.no_grad():
        model(images)
    first.__exit__()  # in the order in which a Trainer calls its callbacks, not in that of nested contexts
    assert "forward" in model.__dict__
    second.__exit__()
    assert "forward" not in model.__dict__
    assert len(calls) == 1
    assert first.traces[0] is second.traces[0]
    first.traces[0].gradient(centered, TARGETS, of="conv2")
    first.traces[0].image_gradient(centered, TARGETS)


def test_calls_with_gradients_pass_unheard():
    """A training step inside the context keeps its graph."""
    model = small_net()
    with Listener(model, capture(model)) as listener:
        logits = model(random_images())
    assert logits.requires_grad
    assert listener.traces == []


def test_calls_without_images_or_logits_pass_unheard():
    """Features of another kind are none of our business."""
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad(), Listener(model, Capture()) as listener:
        assert model(torch.ones(5, 3)).shape == (5, 2)
        assert model(torch.ones(1, 2, 4, 3)).shape == (1, 2, 4, 2)
    assert listener.traces == []


def test_images_may_come_as_a_keyword():
    """As in models that call them pixel_values."""

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_net()

        def forward(self, *, pixel_values, extra=None):
            return self.inner(pixel_values)

    model, images = ByKeyword(), random_images()
    with torch.inference_mode(), Listener(model, Capture(image_gradient=True)) as listener:
        model(pixel_values=images.clone(), extra=torch.ones(1))
    assert torch.equal(listener.traces[0].images, images)


def test_a_forward_that_was_shadowed_before_is_put_back():
    """Lightning itself redirects forward on the instance under DDP."""
    model = small_net()
    original = model.forward
    shadow = lambda images: original(images)  # noqa: E731
    model.forward = shadow
    with Listener(model, Capture()):
        assert model.forward is not shadow
    assert model.forward is shadow


def test_an_exception_in_the_forward_restores_grad_and_inference_mode():
    """The hook turns gradients on inside; the head raises after it."""
    model = small_net()
    model.head = nn.Linear(5, 2)  # does not fit
    before = state_of(model)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), Listener(model, capture(model)):
            model(random_images())
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    assert_same_state(before, state_of(model))


def test_in_place_operations_after_the_layer_do_not_reach_the_capture():
    """A convolution followed by an in-place ReLU keeps its signed output (wrong in two peers)."""
    conv = nn.Conv2d(3, 4, 3)
    model, images = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()), random_images()
    trace = run(model, images, Capture({"0": conv}))
    assert torch.equal(trace.activation("0"), conv(images))
    assert trace.activation("0").min() < 0


def test_a_compiled_model_is_run_eagerly():
    """Compiled code ignores hooks that come later; the maps are those of the plain model."""
    model, images = small_net(), random_images()
    expected = run(model, images, capture(model)).gradient(centered, TARGETS, of="conv2")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(images)
    trace = run(compiled, images, capture(model))
    torch.testing.assert_close(trace.gradient(centered, TARGETS, of="conv2"), expected)
    model.compile(backend="eager")
    with torch.no_grad():
        model(images)
    trace = run(model, images, capture(model))
    torch.testing.assert_close(trace.gradient(centered, TARGETS, of="conv2"), expected)


def test_rerun_makes_a_trace_of_other_images_and_predict_no_graph():
    """What path methods and masked scores need."""
    model, images = small_net(), random_images()
    trace = run(model, images, capture(model))
    other = trace.rerun(images + 1)
    assert torch.equal(other.logits, model(images + 1))
    assert other.gradient(centered, TARGETS, of="conv2").shape == (4, 8, 4, 4)
    assert not trace.predict(images).requires_grad


def test_gradients_are_computed_once():
    """The same score, targets and layer give the very same tensor."""
    model = small_net()
    trace = run(model, random_images(), capture(model))
    first = trace.gradient(centered, TARGETS, of="conv2")
    assert trace.gradient(centered, TARGETS, of="conv2") is first
    assert trace.gradient(centered, TARGETS.clone(), of="conv2") is not first


def test_a_layer_after_the_explained_logits_is_refused():
    """A layer on which the score does not depend gives no map of zeros."""

    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.side = small_net(), nn.Conv2d(3, 2, 1)

        def forward(self, images):
            self.side(images)
            return self.inner(images)

    model = Side().eval()
    trace = run(model, random_images(), Capture({"side": model.side}))
    with pytest.raises((ValueError, RuntimeError), match="does not"):
        trace.gradient(centered, TARGETS, of="side")


def test_image_gradient_needs_a_capture_that_asks_for_it():
    """The message says what the author of a method forgot."""
    model = small_net()
    trace = run(model, random_images(), capture(model))
    with pytest.raises(RuntimeError, match="needs_image_gradient = True"):
        trace.image_gradient(centered, TARGETS)
