"""The table of the package: which edits are found alone, which with a fingerprint, which by nobody."""

import copy

import pytest
import torch
from integrity.toys import data, trained
from torch import nn

from lightning_xai.integrity import Fingerprint, Verdict, center_logits, inspect_model
from lightning_xai.trace import tapped
from papers.logit_shift.attacks import EnergyShift, PositionShift, RowEdit, TriggeredShift, UniformShift

IMAGES = data(32)[0]
NOISE = torch.randn(12, 6, 6, generator=torch.Generator().manual_seed(0))


class Behind(nn.Module):
    """A network, and an edit of its logits (N,K) and last activations (N,D,h,w)."""

    def __init__(self, model, edit):
        super().__init__()
        self.model, self.edit = copy.deepcopy(model), edit
        self.eval()

    def forward(self, images):
        """The edited logits."""
        with tapped(self.model.relu2) as outputs:
            logits = self.model(images)
        return self.edit(logits, outputs[-1])


class OneClassLie(torch.autograd.Function):
    """The identity, whose gradient is another class's wherever one class is explained."""

    @staticmethod
    def forward(ctx, logits):
        """The logits."""
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        """The neighbour's where one class alone has any."""
        one = (gradient != 0).sum(1, keepdim=True) == 1
        return torch.where(one, gradient.roll(1, 1), gradient)


def on_some(logits, activations):
    """A shift on the images of one class of four."""
    return logits + 10 * ((logits.argmax(1) == 1) * (NOISE * activations).sum((1, 2, 3)))[:, None]


def off_the_unlikely(logits, activations):
    """What no probability shows."""
    return logits - 30 * activations[:, :, 2, 2].sum(1, keepdim=True) * (logits.softmax(1) < 1e-3)


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
    "on some classes": (lambda model: Behind(model, on_some), SHIFT, SHIFT),
    "smaller": (RowEdit(IMAGES), DIFFER, SHIFT),
    "too small": (PositionShift("relu2", strength=0.003), CLEAN, SHIFT),
    "nearer": (center_logits, CLEAN, SHIFT),
    "unlikely classes": (lambda model: Behind(model, off_the_unlikely), DIFFER, Verdict.CHANGED),
    "one class": (lambda model: Behind(model, lambda z, _: OneClassLie.apply(z)), FALSE, SHIFT),
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
