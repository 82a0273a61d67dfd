"""Generated images: reproducible, with boxes that hold the one object that decides the class."""

import doctest

import numpy as np
import pytest
import torch

from common.data import generated as generated_images
from common.data.generated import CLASSES, GeneratedImages, generated_image


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(generated_images).failed == 0


def test_an_image_depends_on_seed_split_and_index_alone():
    """The same image comes in data sets of any length; another seed, split or index gives another one."""
    few, many = GeneratedImages(2, seed=3), GeneratedImages(4, seed=3)
    assert torch.equal(few.images, many.images[:2])
    assert torch.equal(few.boxes, many.boxes[:2])
    alike = (generated_image(1, seed=4), generated_image(1, seed=3, split="val"), generated_image(2, seed=3))
    assert all(not np.array_equal(other[0], generated_image(1, seed=3)[0]) for other in alike)


def test_a_data_set_leaves_the_global_random_state_alone():
    """Neither torch's nor numpy's generator is drawn from."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    GeneratedImages(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("size", [32, 64, 97])
def test_boxes_lie_in_the_image_and_are_about_as_large_as_objects(size):
    """Side between a fifth and a half of the image, for any size of the image."""
    boxes = GeneratedImages(40, size=size).boxes
    sides = (boxes[:, 2:] - boxes[:, :2]) / size
    assert boxes.min() >= 0
    assert boxes.max() <= size
    assert sides.min() > 0.17
    assert sides.max() < 0.5


def test_the_mask_is_the_object_and_nothing_else_of_the_image_changes_with_it(monkeypatch):
    """Without the object's paint the image is the same outside the mask and its half-covered rim, not inside."""
    paint = generated_images._paint
    objects = []

    def painted(canvas, shape, *rest):
        objects.append(shape)
        # the third object painted is the one that decides; it is drawn on a copy
        return paint(canvas if len(objects) < 3 else canvas.copy(), shape, *rest)

    image, _, mask = generated_image(5)
    monkeypatch.setattr(generated_images, "_paint", painted)
    without, _, same = generated_image(5)
    changed = (image != without).any(axis=2)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (3, 3)).any((2, 3))
    assert np.array_equal(mask, same)
    assert not (changed & ~around).any()
    assert changed[mask].mean() > 0.95


def test_boxes_are_those_of_the_masks():
    """The smallest ones, maxima exclusive."""
    data = GeneratedImages(4)
    for mask, (left, top, right, bottom) in zip(data.masks, data.boxes.tolist(), strict=True):
        assert mask.sum() == mask[top:bottom, left:right].sum()
        for edge in (mask[top, :], mask[bottom - 1, :], mask[:, left], mask[:, right - 1]):
            assert edge.any()


def test_distractors_have_shapes_outside_the_classes():
    """No class can be told from them."""
    assert not set(generated_images._SHAPES) & set(generated_images._DISTRACTORS)
    assert len(CLASSES) == 2 * len(generated_images._SHAPES)


def test_shapes_lie_in_the_unit_disc():
    """So that objects drawn within their radius overlap neither each other nor the border."""
    v, u = np.mgrid[-1.5:1.5:121j, -1.5:1.5:121j]
    for shape in (*generated_images._SHAPES.values(), *generated_images._DISTRACTORS.values()):
        assert np.hypot(u, v)[shape(u, v) <= 0].max() <= 1.001, shape


def test_mean_colour_and_position_say_nothing_about_the_class():
    """Per class, the mean colour of the image and the centre of the box are those of all images, up to chance."""
    data = GeneratedImages(480)
    centres = (data.boxes[:, :2] + data.boxes[:, 2:]) / 2.0
    features = torch.cat([data.images.float().mean((2, 3)), centres], 1)
    features = (features - features.mean(0)) / features.std(0)
    for label in range(len(CLASSES)):
        mine = features[data.labels == label]
        assert (mine.mean(0).abs() * len(mine) ** 0.5).max() < 4.0  # standard errors


def test_a_transform_is_applied_at_each_access():
    """The bytes stay as they are."""
    data = GeneratedImages(1, transform=lambda image: image / 255.0)
    image, label = data[0]
    assert image.dtype == torch.float32
    assert image.max() <= 1
    assert data.images.dtype == torch.uint8
    assert label == data.labels[0]


def test_too_small_a_size_is_refused():
    """The textures have a period of several pixels."""
    with pytest.raises(ValueError, match="`size` expected at least 32 pixels, got 16"):
        generated_image(0, size=16)
