"""The table of the package: which edits are found alone, which with a fingerprint, which by nobody."""

import copy

import pytest
import torch
from integrity.toys import data, trained
from torch import nn

from lightning_xai.integrity import Fingerprint, Verdict, center_logits, inspect_model, inspect_trace
from lightning_xai.trace import Capture, Listener
from papers.logit_shift.attacks import EnergyShift, PositionShift, RowEdit, TriggeredShift, UniformShift
from papers.logit_shift.red_team import Edited, OneClassLie, off_unlikely

IMAGES = data(32)[0]
NOISE = torch.randn(12, 6, 6, generator=torch.Generator().manual_seed(0))


def on_some(logits, activations):
    """A shift on the images of one class of four."""
    return logits + 10 * ((logits.argmax(1) == 1) * (NOISE * activations).sum((1, 2, 3)))[:, None]


def turned(model):
    """A hook that mirrors the gradient of every score."""
    model.relu2.inplace = False
    model.relu2.register_full_backward_hook(lambda module, before, after: (before[0].flip(3),))
    return model


def hidden_weights(model):
    """Other weights that no probe shows: of a channel that is always zero."""
    model.conv2.weight.data[0], model.conv2.bias.data[0] = 0.0, -1.0
    reference = copy.deepcopy(model)
    model.head.weight.data[:, 0] += 5.0
    return reference, model


CLEAN, DIFFER, SHIFT, FALSE = Verdict.CLEAN, Verdict.MAPS_DIFFER, Verdict.LOGIT_SHIFT, Verdict.FALSE_GRADIENT
ROWS = {
    "large, in the graph": (PositionShift("relu2"), SHIFT, SHIFT),
    "large, in the rows": (RowEdit(IMAGES, 10.0), SHIFT, SHIFT),
    "on some classes": (lambda model: Edited(model, "relu2", on_some), SHIFT, SHIFT),
    "smaller": (RowEdit(IMAGES), DIFFER, SHIFT),
    "too small": (PositionShift("relu2", strength=0.003), CLEAN, SHIFT),
    "nearer": (center_logits, CLEAN, SHIFT),
    "unlikely classes": (lambda model: Edited(model, "relu2", off_unlikely(30.0, at=(2, 2))), DIFFER, Verdict.CHANGED),
    "one class": (lambda model: Edited(model, "relu2", lambda z, _: OneClassLie.apply(z)), FALSE, SHIFT),
    "trigger": (TriggeredShift(UniformShift("relu2"), torch.full((3, 2, 2), 9.0)), CLEAN, Verdict.OTHER_CODE),
}


@pytest.mark.parametrize(("edit", "alone", "with_fingerprint"), ROWS.values(), ids=ROWS)
def test_what_is_found_alone_and_with_a_fingerprint(edit, alone, with_fingerprint):
    """At the last layer, of the toy, whose maps agree when it is clean."""
    fingerprint = Fingerprint.of(trained(), IMAGES)
    altered = edit(trained())
    assert inspect_model(trained(), IMAGES).verdict is CLEAN
    assert inspect_model(altered, IMAGES).verdict is alone
    assert fingerprint.compare(altered, IMAGES).verdict is with_fingerprint


class Listening(nn.Module):
    """A shift that acts only where a callback's forward stands in for the model's."""

    def __init__(self):
        super().__init__()
        self.shifted = PositionShift("relu2")(trained())

    def forward(self, images):
        return (self.shifted if "forward" in vars(self) else self.shifted.model)(images)


def test_a_model_that_knows_who_listens_is_judged_by_the_pass_that_maps_are_made_of():
    """The check's own pass shows nothing."""
    altered = Listening().eval()
    layer = altered.shifted.model.relu2
    with Listener(altered, Capture({"layer": layer})) as listener, torch.no_grad():
        altered(IMAGES)
    assert inspect_model(altered, IMAGES).verdict is CLEAN
    assert inspect_trace(listener.traces[0], "layer").verdict is SHIFT
    assert Fingerprint.of(trained(), IMAGES).compare(altered, IMAGES).verdict is Verdict.OTHER_CODE


def test_what_comes_from_before_the_layer_is_found_there():
    """At the image, or at the earlier layer."""
    altered = EnergyShift(strength=10.0)(trained())
    assert inspect_model(altered, IMAGES).verdict is CLEAN
    assert inspect_model(altered, IMAGES, image_level=True).verdict is SHIFT


def test_a_hook_that_turns_all_gradients_alike_is_listed_and_with_a_fingerprint_judged():
    """Raw and centred maps agree with one another, and with nothing else."""
    altered = turned(trained())
    inspection = inspect_model(altered, IMAGES, layer="conv2")
    assert inspection.hooks == ("backward hook of 'relu2'",)
    assert not inspection.verdict.alarms
    reference = trained()
    reference.relu2.inplace = False
    comparison = Fingerprint.of(reference, IMAGES, layer="conv2").compare(altered, IMAGES)
    assert comparison.verdict is Verdict.CHANGED
    assert "hooks" in comparison.differing


def test_weights_that_no_probe_asks_are_found_by_nobody_but_named():
    """Where they act, nobody looks."""
    reference, altered = hidden_weights(trained())
    comparison = Fingerprint.of(reference, IMAGES, layer="conv2").compare(altered, IMAGES)
    assert not inspect_model(altered, IMAGES).verdict.alarms
    assert comparison.verdict is Verdict.UNCHANGED
    assert comparison.differing == ("parameters",)
