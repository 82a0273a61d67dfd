"""Digests see whatever can change a map: hooks of all kinds, functions on instances, helpers, and code by its bytes."""

import functools

import pytest
import torch
from integrity.toys import Toy, trained
from torch import Tensor, nn

from lightning_xai.integrity import Digest
from lightning_xai.integrity.code import hooks_of


def halved(values: Tensor) -> Tensor:
    """A helper that a forward calls."""
    return values / 2


class Helped(Toy):
    """A forward that calls a method, which calls a function of its module."""

    def scaled(self, logits: Tensor) -> Tensor:
        """What the forward calls."""
        return halved(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.scaled(super().forward(images))


def keeps(module, *values):
    """A hook that changes nothing."""


HOOKS = {
    "forward": lambda model: model.conv1.register_forward_hook(keeps),
    "before forward": lambda model: model.conv1.register_forward_pre_hook(keeps),
    "backward": lambda model: model.relu2.register_full_backward_hook(keeps),
    "before backward": lambda model: model.relu2.register_full_backward_pre_hook(keeps),
    "parameter": lambda model: model.head.weight.register_hook(lambda gradient: 2 * gradient),
    "accumulation": lambda model: model.head.weight.register_post_accumulate_grad_hook(lambda parameter: None),
    "all modules": lambda model: nn.modules.module.register_module_full_backward_hook(keeps),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_hook_changes_the_digest_and_is_listed(hook):
    """Whatever it hangs on; it is gone with the hook."""
    model = trained()
    before = Digest.of(model)
    handle = hook(model)
    try:
        assert before.differences(Digest.of(model)) == ("hooks",)
        assert len(hooks_of(model)) == 1
    finally:
        handle.remove()
    assert Digest.of(model) == before


def test_hooks_of_one_place_differ_by_their_code():
    """Two that do different things."""
    first, second = trained(), trained()
    first.head.weight.register_hook(lambda gradient: 2 * gradient)
    second.head.weight.register_hook(lambda gradient: 3 * gradient)
    assert Digest.of(first).differences(Digest.of(second)) == ("hooks",)


def on_the_instance(model, monkeypatch):
    """A function in place of a method, on the module itself."""
    model.scaled = lambda logits: logits


def partial_on_the_instance(model, monkeypatch):
    """The same, partially applied."""
    model.scaled = functools.partial(torch.mul, 3)


def method_of_the_class(model, monkeypatch):
    """Another helper method."""
    monkeypatch.setattr(Helped, "scaled", lambda self, logits: logits)


def call_of_the_class(model, monkeypatch):
    """What comes before the forward."""
    monkeypatch.setattr(Helped, "__call__", lambda self, images: self.forward(images), raising=False)


def call_of_all_modules(model, monkeypatch):
    """The same for the whole process."""
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *images: self.forward(*images))


def helper_function(model, monkeypatch):
    """A function that a method calls."""
    monkeypatch.setitem(globals(), "halved", lambda values: values / 3)


def bytes_under_the_same_source(model, monkeypatch):
    """Other bytecode where `inspect.getsource` reads the old lines."""
    code = Helped.scaled.__code__
    names = tuple("doubled" if name == "halved" else name for name in code.co_names)
    monkeypatch.setattr(Helped.scaled, "__code__", code.replace(co_names=names))


def forward_of_a_torch_class(model, monkeypatch):
    """A class whose code is not read as a rule."""
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, values: values.clamp(min=0))


CODE = (
    on_the_instance,
    partial_on_the_instance,
    method_of_the_class,
    call_of_the_class,
    call_of_all_modules,
    helper_function,
    bytes_under_the_same_source,
    forward_of_a_torch_class,
)


@pytest.mark.parametrize("change", CODE)
def test_changed_code_changes_the_digest(change, monkeypatch):
    """Not only that of ``forward``, and not by its source."""
    model = Helped().eval()
    before = Digest.of(model)
    assert Digest.of(model) == before
    change(model, monkeypatch)
    assert before.differences(Digest.of(model)) == ("code",)


def test_what_a_function_encloses_is_part_of_its_code():
    """The same bytes around another number."""

    def times(number):
        """A function around a number."""
        return lambda values: number * values

    first, second = trained(), trained()
    first.scale, second.scale = times(2.0), times(3.0)
    assert Digest.of(first).differences(Digest.of(second)) == ("code",)


@pytest.mark.parametrize("called", [False, True])
def test_a_method_added_to_torch_counts_if_the_model_calls_it(called, monkeypatch):
    """Other packages add helpers of their own to every module, and no map changes."""
    model = trained()
    if called:
        model.forward = lambda images: model.head.added(images)
    before = Digest.of(model)
    monkeypatch.setattr(nn.Module, "added", lambda self, images: images.added(), raising=False)
    assert before.differences(Digest.of(model)) == (("code",) if called else ())
