"""The parts that callbacks are made of, each alone: finding the classifier, listening, probes, and the check."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integrity.toys import data, trained
from support import SmallNet, assert_same_state, random_images, small_net, state_of
from torch import Tensor, nn

from lightning_xai.callbacks.classifier import ClassifierFinder
from lightning_xai.callbacks.integrity_check import IntegrityCheck
from lightning_xai.callbacks.integrity_run import IntegrityRun, Phase, attempt
from lightning_xai.callbacks.listening import StepListener
from lightning_xai.callbacks.probes import Probes
from lightning_xai.integrity import Fingerprint, Verdict, inspect_model
from lightning_xai.trace import Calling, Capture, Observer
from papers.logit_shift.attacks import PositionShift


def module_of(model: nn.Module) -> nn.Module:
    """Something that contains a classifier and calls it."""
    return nn.ModuleDict({"net": model, "other": nn.ReLU()})


# Finding the classifier


def test_a_named_classifier_is_known_without_a_step() -> None:
    """Unless a layer is to be found, too."""
    module = module_of(small_net())
    for layers, known in (([], True), (["conv2"], True), ([None], False)):
        finder = ClassifierFinder("net", layers)
        assert not finder.known
        finder.look_up(module)
        assert finder.model is module["net"]
        assert finder.known == known


@pytest.mark.parametrize(("name", "layer", "near"), [("nett", None, "net"), ("net", "conv3", "conv2")])
def test_a_name_that_does_not_exist_is_told_on_looking_up(name: str, layer: str | None, near: str) -> None:
    """With near names."""
    with pytest.raises(ValueError, match=f"Near names: {near}"):
        ClassifierFinder(name, [layer]).look_up(module_of(small_net()))


def test_what_is_missing_is_found_in_a_step() -> None:
    """Classifier and layer; the layer of a named one, too."""
    module = module_of(small_net())
    with Observer(module) as observer, torch.no_grad():
        module["net"](random_images())
    for name in (None, "net"):
        finder = ClassifierFinder(name, [None, "conv1"])
        finder.look_up(module)
        finder.find(observer)
        assert finder.known
        assert finder.model is module["net"]
        assert finder.automatic is finder.layer(None) is module["net"].last
        assert finder.layer("conv1") == "conv1"


class Overwriting(SmallNet):
    """Standardises its images in place."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(0.5))


class Around(nn.Module):
    """Standardises images in place, for a classifier inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.Identity(), Overwriting()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.norm(images).add_(1))


CALLS = {
    "module": lambda net, images: net(images),
    "forward": lambda net, images: net.forward(images),
    "keyword": lambda net, images: net(images=images),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_images_and_logits_of_an_observed_step_are_those_of_the_call(call: Any) -> None:
    """Not what the model made of the ones in place, and the step of the others."""
    module = module_of(Overwriting().eval())
    with Observer(module) as observer, torch.inference_mode():
        logits = call(module["net"], random_images())
        expected = logits.tolist()
        logits.neg_()
    found = observer.images_of(module["net"])
    assert torch.equal(found, random_images())
    assert not found.is_inference()
    assert observer.logits_of(module["net"]).tolist() == expected


def test_images_of_a_classifier_are_those_that_it_got() -> None:
    """Not those of the module around it, which changed them in place before."""
    module = module_of(Around().eval())
    with Observer(module) as observer, torch.no_grad():
        module["net"](random_images())
    assert observer.classifier() is module["net"].net
    assert torch.equal(observer.images_of(observer.classifier()), random_images() + 1)


def test_logits_that_a_hook_of_the_module_has_yet_to_see_are_not_known() -> None:
    """Such a hook may change them."""
    module = module_of(small_net())
    module["net"].register_forward_hook(lambda module, args, output: -output)
    with Observer(module) as observer, torch.no_grad():
        module["net"](random_images())
    assert observer.images_of(module["net"]) is not None
    assert observer.logits_of(module["net"]) is None


def test_an_unknown_classifier_is_an_error() -> None:
    """Of the caller."""
    with pytest.raises(RuntimeError, match="known only from the first"):
        _ = ClassifierFinder(None, []).model


# Listening


def test_a_step_is_observed_until_the_classifier_is_known_and_heard_from_then_on() -> None:
    """The first pass of as many images as the batch has is the one."""
    module, images = module_of(small_net()), random_images()
    before = state_of(module)
    listener = StepListener(ClassifierFinder(None, ["conv2"]))
    steps = []
    for _ in range(2):
        listener.start(module, lambda: Capture({"conv2": module["net"].conv2}))
        with torch.no_grad():
            module["net"](images[:1])
            logits = module["net"](images)
        steps.append(listener.stop())
        if steps[-1].observer is not None:
            listener.finder.find(steps[-1].observer)
    first, second = steps
    assert first.trace(4) is None
    assert first.images_of(module["net"]) is not None
    heard = second.trace(4)
    assert heard is not None
    assert torch.equal(heard.logits, logits)
    assert second.trace(3) is None
    assert_same_state(before, state_of(module))


def test_nothing_is_heard_where_nobody_wants_it() -> None:
    """The classifier's forward stays its own."""
    module = module_of(small_net())
    listener = StepListener(ClassifierFinder("net", []))
    listener.finder.look_up(module)
    listener.start(module, None)
    assert "forward" not in module["net"].__dict__
    assert listener.stop().trace(4) is None


def test_a_step_that_was_broken_off_leaves_nothing() -> None:
    """The next one begins anew."""
    module = module_of(small_net())
    before = state_of(module)
    listener = StepListener(ClassifierFinder("net", []))
    listener.finder.look_up(module)
    for _ in range(2):
        listener.start(module, Capture)
    listener.stop()
    assert_same_state(before, state_of(module))


# Probes


def test_probes_are_the_first_images_with_their_labels() -> None:
    """Copies, of which no batch is kept."""
    probes, images = Probes(6), random_images(8)
    for rows in (slice(0, 4), slice(4, 8)):
        assert not probes.complete
        probes.take(images[rows], torch.arange(8)[rows])
    assert probes.complete
    assert torch.equal(torch.cat(probes.images), images[:6])
    assert torch.cat(probes.labels).tolist() == list(range(6))
    assert probes.images[1].untyped_storage().nbytes() == 2 * 3 * 8 * 8 * 4


def test_probes_of_an_epoch_that_was_broken_off_are_forgotten() -> None:
    """Those of one that ended are kept, though there were fewer than wanted."""
    probes = Probes(6)
    probes.take(random_images())
    probes.restart()
    assert probes.count == 0
    probes.finish()
    assert not probes.complete
    probes.take(random_images())
    probes.finish()
    probes.restart()
    assert probes.complete
    assert probes.count == 4


# The check


def test_the_check_is_an_inspection_and_a_comparison() -> None:
    """The reference's fingerprint is taken once, of the first probes."""
    images, reference = data(16)[0], trained()
    check = IntegrityCheck(reference=reference)
    altered = PositionShift("relu2", strength=0.01)(trained())
    first = check.look(altered, images, "model.relu2", 3, Calling())
    assert first.step == 3
    assert first.inspection.figures == inspect_model(altered, images, layer="model.relu2").figures
    expected = Fingerprint.of(reference, images).compare(altered, images, layer="model.relu2")
    assert first.comparison is not None
    assert first.comparison.figures == expected.figures
    assert first.verdict is Verdict.LOGIT_SHIFT
    with torch.no_grad():
        reference.head.weight.zero_()  # nobody looks at it again
    again = check.look(altered, images, "model.relu2", 3, Calling())
    assert again.figures == first.figures


def test_the_origin_of_a_shift_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes three sweeps for each layer."""
    from lightning_xai.callbacks import integrity_check

    calls: list[int] = []
    found = integrity_check.origin_of_shift
    monkeypatch.setattr(integrity_check, "origin_of_shift", lambda *args: calls.append(1) or found(*args))
    model, images, check = PositionShift("relu2", (1, 2))(trained()), data(16)[0], IntegrityCheck()
    for _ in range(2):
        finding = check.look(model, images, "model.relu2", 0, Calling())
        located, shown, _ = check.traced_back(model, images, finding, Calling())
        assert (located.place.layer, located.place.position) == ("model.relu2", (1, 2))
        assert len(shown) == 4
    assert calls == [1]


@pytest.mark.parametrize(
    ("every", "expected"), [(1, ["DUE", "DUE", "DUE"]), (2, ["NOT_DUE", "DUE", "NOT_DUE"])], ids=["each", "second"]
)
def test_every_nth_validation_is_due(every: int, expected: list[str]) -> None:
    """The sanity check is none."""
    run = IntegrityRun(Probes(1), IntegrityCheck())
    run.validation_begins(rehearsal=True, every=every)
    assert run.phase is Phase.NOT_DUE
    found = []
    for _ in expected:
        run.validation_begins(rehearsal=False, every=every)
        found.append(run.phase.name)
    assert found == expected


def test_an_attempt_gives_what_hindered_it() -> None:
    """But does not stop an interruption."""

    def fail(error: BaseException) -> None:
        raise error

    error = ValueError("no probes")
    assert attempt(lambda: fail(error)) == (None, error)  # type: ignore[arg-type, return-value]
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: fail(KeyboardInterrupt()))  # type: ignore[arg-type, return-value]
