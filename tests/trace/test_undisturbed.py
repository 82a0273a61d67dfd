"""What a model is to others while it is listened to, and after it was explained: copies, threads, what it keeps."""

import copy
import io
import pickle
import threading

import pytest
import torch
from support import SmallNet, assert_same_state, random_images, small_net, state_of
from torch import nn

from lightning_xai import LRP, GradCAM, InputGradient, explain
from lightning_xai.attribution import FromCallable
from lightning_xai.integrity import center_logits, inspect_model
from lightning_xai.trace import Capture, Listener, Observer, run

METHODS = {"cam": GradCAM("conv2"), "auto": GradCAM(), "gradient": InputGradient(), "lrp": LRP()}


def scripted(model):
    """The model as TorchScript."""
    return torch.jit.script(model)


def exported(model):
    """The model as an exported program."""
    return torch.export.export(model, (random_images(),)).module()


def pickled(model):
    """The model after a round trip."""
    return pickle.loads(pickle.dumps(model))


def saved(model):
    """The model after a round trip through a file of torch."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("form", [copy.deepcopy, pickled, saved, scripted, exported])
@pytest.mark.parametrize("watch", [Observer, lambda model: Listener(model, Capture({"conv2": model.conv2}))])
def test_a_model_can_be_copied_and_exported_while_it_is_listened_to(form, watch):
    """And what comes out gives the same logits, inside and after."""
    model, images = small_net(), random_images()
    with torch.no_grad():
        expected = model(images)
        with watch(model):
            other = form(model)
            torch.testing.assert_close(other(images), expected)
        torch.testing.assert_close(other(images), expected)
    if form is copy.deepcopy:
        assert "forward" not in other.__dict__


class Keeping(SmallNet):
    """Keeps features in an attribute and a list, and makes a weight anew in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.every = []
        self.head = torch.nn.utils.weight_norm(self.head)

    def forward(self, images):
        self.features = self.conv1(images)
        self.every.append(self.features)
        return super().forward(images)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", ["cam", "auto", "gradient"])
def test_what_a_model_keeps_of_a_pass_has_no_graph(name):
    """After an explanation it keeps what it kept before; after a step that was heard, the step's features."""
    model, images = Keeping().eval(), random_images()
    with torch.no_grad():
        model(images + 1)
    before, features = state_of(model), model.features
    explain(model, images, 1, attributions=METHODS[name])
    assert_same_state(before, state_of(model))
    assert model.features is features
    assert len(model.every) == 1
    copy.deepcopy(model)
    with torch.no_grad(), Listener(model, Capture(image_gradient=True)):
        model(images)
    torch.testing.assert_close(model.features, model.conv1(images).detach())
    assert not model.features.requires_grad
    assert not model.every[1].requires_grad
    copy.deepcopy(model)


class Features(SmallNet):
    """Keeps a pair of features."""

    def forward(self, images):
        self.features = self.conv1(images), self.conv1(images).mean()
        return super().forward(images)


def test_a_foreign_function_may_copy_a_model_that_keeps_features():
    """As quantus does; the pass of another method of the same call has left them in the model."""
    model, images = Features().eval(), random_images()
    foreign = FromCallable(lambda model, images, targets: images.sum(1) + len(list(copy.deepcopy(model).modules())))
    explain(model, images, 1, attributions={"gradient": InputGradient(), "foreign": foreign})
    assert not hasattr(model, "features")


class Stateful(SmallNet):
    """Adds what its pass before gave."""

    def __init__(self) -> None:
        super().__init__()
        self.before = None

    def forward(self, images):
        found = super().forward(images)
        found = found if self.before is None else found + self.before.relu()
        self.before = found
        return found


def test_the_pass_that_finds_the_layer_leaves_nothing_to_the_one_that_is_explained():
    """Maps of the same layer are the same, whoever named it."""
    model, images = Stateful().eval(), random_images()[:1]
    found, named = (explain(model, images, 1, attributions=GradCAM(layer)) for layer in (None, "last"))
    torch.testing.assert_close(found, named)


class Caching(SmallNet):
    """Keeps what it makes of a weight until it is trained, as the attention biases of LeViT in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {}

    def forward(self, images):
        if "bias" not in self.cache:
            self.cache["bias"] = 2 * self.conv1.bias[:, None, None]
        return super().forward(images + self.cache["bias"][:3])


def test_what_the_users_own_pass_left_in_a_model_is_a_constant():
    """With a graph, where it ran with gradients: no rule goes through it, and no copy fails on it."""
    model, images = Caching().eval(), random_images()
    expected = explain(model, images, 1, attributions=LRP())
    model(images)
    bias = model.cache["bias"]
    torch.testing.assert_close(explain(model, images, 1, attributions=LRP()), expected)
    assert model.cache["bias"] is bias
    assert bias.requires_grad
    inspect_model(model, images)
    center_logits(model, images)


class HeadOnly(nn.Module):
    """As in Lightning's transfer learning: the backbone runs without gradients."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
        self.head = nn.Linear(8, 3)
        self.hidden = hidden

    def forward(self, images):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.hidden):
            features = self.body(images)
        return self.head(features.mean((2, 3)))


@pytest.mark.parametrize("method", [GradCAM("body.1"), GradCAM(), InputGradient(), LRP()])
def test_a_backbone_under_no_grad_is_explained_as_any_other(method):
    """The map of the same network without it."""
    hidden, free, images = HeadOnly(True), HeadOnly(False), random_images()
    hidden.load_state_dict(free.state_dict())
    expected = explain(free, images, 1, attributions=method)
    torch.testing.assert_close(explain(hidden, images, 1, attributions=method), expected, rtol=0, atol=0)
    assert hidden(images).grad_fn.next_functions[1][0] is None  # in the model's own passes nothing changes


def in_threads(function, n=4):
    """What a function gives in each of n threads, which begin together; what one raises is raised."""
    results, errors, together = [None] * n, [], threading.Barrier(n)

    def work(i):
        together.wait()
        try:
            results[i] = function(i)
        except BaseException as error:  # what a thread raises is lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_threads_explain_one_model_as_one_thread_does():
    """Equal maps, and the model in training mode is as before."""
    model, images = small_net().train(), random_images()
    expected, before = explain(model, images, 1, attributions=METHODS), state_of(model)
    for found in in_threads(lambda i: [explain(model, images, 1, attributions=METHODS) for _ in range(4)]):
        for maps in found:
            for name, values in maps.items():
                assert torch.equal(values, expected[name])
    after = state_of(model)
    after["random state"] = before["random state"]
    assert_same_state(before, after)


def test_another_thread_uses_the_model_meanwhile_and_notices_nothing():
    """It passes through no stand-in and no hook, and leaves no trace."""
    model, images = small_net(), random_images()
    with torch.no_grad():
        expected = model(images)

    def use(i):
        if i == 0:
            return [explain(model, images, 1, attributions=METHODS["cam"]) for _ in range(8)]
        with torch.no_grad():
            return [model(images) for _ in range(8)]

    for results in in_threads(use)[1:]:
        assert all(torch.equal(one, expected) and not one.requires_grad for one in results)
    with torch.no_grad(), Listener(model, Capture({"conv2": model.conv2})) as listener:
        (found,) = in_threads(lambda i: model(images), 1)
        assert found.requires_grad  # grad mode is of each thread
        assert not listener.traces
        model(images)
    assert len(listener.traces) == 1


def test_listeners_of_two_threads_end_in_any_order():
    """As two Trainers in one process do: the model's forward is back after the last."""
    model, images, inside, leave = small_net(), random_images(), threading.Event(), threading.Event()

    def listen():
        with torch.no_grad(), Listener(model, Capture()) as listener:
            inside.set()
            leave.wait(60)
            model(images)
            traces.extend(listener.traces)

    traces, thread = [], threading.Thread(target=listen)
    with Listener(model, Capture()):
        thread.start()
        inside.wait(60)
        run(model, images, Capture())
    assert "forward" in model.__dict__
    leave.set()
    thread.join()
    assert len(traces) == 1
    assert "forward" not in model.__dict__


def test_a_layer_on_another_batch_is_refused():
    """As in test-time augmentation inside the model; the factor is named."""

    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, images):
            return sum(self.net(torch.cat([images, images.flip(3)])).chunk(2))

    with pytest.raises(
        ValueError, match=r"'net.conv2' expected an output for each of 4 images, got 8, 2 times as many"
    ):
        explain(Mirrored().eval(), random_images(), attributions=GradCAM("net.conv2"))


def test_a_container_that_checkpointing_takes_apart_says_so():
    """Its parts are called one by one."""

    class Checkpointed(nn.Sequential):
        def forward(self, images):
            return self[2](self[1](self[0][0](images)))

    model = Checkpointed(nn.Sequential(nn.Conv2d(3, 2, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"`layer` '0' was not called.*set_grad_checkpointing"):
        explain(model, random_images(), attributions=GradCAM("0"))
