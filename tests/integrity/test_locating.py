"""Where a shift comes from: layer and position."""

import pytest
import torch
from integrity.toys import data, trained
from support import assert_same_state, state_of

from lightning_xai.integrity import locate_shift
from papers.logit_shift.attacks import EnergyShift, PositionShift, UniformShift

IMAGES = data(8)[0]


@pytest.mark.parametrize(
    ("layer", "position"), [("relu2", (0, 0)), ("relu2", (4, 1)), ("conv2", (2, 2)), ("relu1", (7, 3)), ("bn1", (5, 5))]
)
def test_layer_and_position_of_a_shift_are_found(layer, position):
    """In-place operations behind the layer do not hide it."""
    found = locate_shift(PositionShift(layer, position, 100.0)(trained()), IMAGES)
    assert found.layer == f"model.{layer}"
    assert found.position == position


def test_a_uniform_shift_is_found_at_its_layer():
    """It has no position that stands out."""
    found = locate_shift(UniformShift("relu1")(trained()), IMAGES)
    assert found.layer == "model.relu1"
    assert found.concentration < 0.1


@pytest.mark.parametrize("change", [lambda model: model, EnergyShift()], ids=["clean", "image"])
def test_no_layer_is_named_where_none_shows_a_shift(change):
    """Clean models, and those whose shift is computed from the image."""
    assert locate_shift(change(trained()), IMAGES) is None


def test_only_the_given_layers_are_looked_at():
    """The first of two that show it, if the other is not asked for."""
    altered = PositionShift("relu2")(trained())
    assert locate_shift(altered, IMAGES, layers=["model.relu1", "model.conv2"]).layer == "model.conv2"


def test_model_is_left_as_it_is():
    """In training mode too."""
    model = PositionShift("relu2")(trained().train())
    before = state_of(model)
    locate_shift(model, IMAGES)
    assert_same_state(before, state_of(model))


def test_missing_layer_is_an_error():
    """With near names."""
    with pytest.raises(ValueError, match="relu2"):
        locate_shift(trained(), torch.zeros(1, 3, 12, 12), layers=["relu3"])
