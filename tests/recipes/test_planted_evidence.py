"""Planted evidence: nothing but the cross tells the class, and a trained network's maps find it."""

import doctest

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import common.data.planted as module
from common import planted_network
from common.data.planted import CLASSES, PlantedEvidence, planted_evidence
from common.planted_network import fitted, small_network
from lightning_xai import GradCAM, explain
from lightning_xai.metrics import EnergyInBox, PointingGame


def drawn(n: int, seed: int, size: int = 40) -> PlantedEvidence:
    """Images of all classes in turn."""
    return planted_evidence(torch.arange(n) % len(CLASSES), seed=seed, size=size)


def test_the_examples_run() -> None:
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(module).failed == 0


def test_other_labels_change_the_evidence_and_nothing_else() -> None:
    """Every pixel of the mask changes, none outside: the class depends on the mask alone."""
    labels = torch.arange(40) % 4
    before, after = (planted_evidence(shown, seed=3) for shown in (labels, (labels + 1) % 4))
    assert torch.equal(before.masks, after.masks)
    assert torch.equal((before.images != after.images).any(1), before.masks)


def test_evidence_has_the_colour_of_its_class() -> None:
    """One colour in all of a mask; the same for all images of the class."""
    planted = drawn(40, seed=4)
    for label in range(4):
        own = planted.labels == label
        pixels = planted.images[own].permute(0, 2, 3, 1)[planted.masks[own]]
        assert len(pixels.unique(dim=0)) == 1


def test_images_depend_on_the_seed_and_leave_the_global_random_state_alone() -> None:
    """Equal seeds, equal images."""
    state = torch.get_rng_state()
    first, again, other = drawn(3, seed=5), drawn(3, seed=5), drawn(3, seed=6)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [20, 40, 57])
def test_glyphs_are_whole_and_lie_apart(size: int) -> None:
    """All of the cross is there, for any size of the image, and no distractor covers it."""
    placed = module._placed(module._glyphs(), 50, size, torch.Generator().manual_seed(0))
    assert torch.equal(placed.sum((2, 3)), module._glyphs().sum((1, 2)).expand(50, -1))
    assert placed.sum(1).max() == 1


def test_place_says_nothing_about_the_class() -> None:
    """The evidence covers the image about evenly: no place holds it five times as often as the mean."""
    share = drawn(2000, seed=7).masks.float().mean(0)
    assert F.avg_pool2d(share[None, None], 10).max() < 1.5 * share.mean()
    assert F.avg_pool2d(share[None, None], 10).min() > 0.6 * share.mean()


def test_too_small_a_size_is_refused() -> None:
    """Four glyphs need four cells."""
    with pytest.raises(ValueError, match="`size` expected at least 20 pixels, got 19"):
        planted_evidence(torch.tensor([0]), size=19)


def trained() -> nn.Module:
    """Two convolutions and the largest response of each channel, trained for a few seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = drawn(768, seed=0, size=30)
        model = small_network()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        return fitted(model, data.images - 0.5, data.labels, optimizer, epochs=4, batch_size=64)


def test_maps_of_a_trained_network_find_the_evidence() -> None:
    """New images are classified well, which takes the cross, and Grad-CAM is there, far above the random level."""
    model, data = trained(), drawn(100, seed=1, size=30)
    images = data.images - 0.5
    assert (model(images).argmax(1) == data.labels).float().mean() > 0.9
    maps = explain(model, images, data.labels, attributions=GradCAM("6"))
    energy, pointing = EnergyInBox(), PointingGame(tolerance=2)
    for metric in (energy, pointing):
        metric.update(maps, data.masks)
        assert metric.compute() > 5 * metric.random_level


def test_the_network_of_the_recipes_knows_its_classes() -> None:
    """With too large a step it now and then ends with one class for all images, and every table says nothing."""
    model, data = planted_network.trained(1, 1024), drawn(100, seed=2)
    assert (model(planted_network.standardized(data.images)).argmax(1) == data.labels).float().mean() > 0.95
