"""Trainings that keep data and augmentation on one device."""

import torch

from papers.interpretable_gradients.on_device import augmented


def test_images_are_shifted_and_mirrored_each_in_its_own_way():
    """By at most four pixels, with black from outside."""
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 3] = 1.0
    moved = augmented(images)
    assert moved.shape == images.shape
    places = {tuple(one.nonzero()[0].tolist()) for one in moved[:, 0] if one.any()}
    rows, columns = ({place[i] for place in places} for i in (0, 1))
    assert rows == set(range(9))
    assert columns == set(range(9))  # 3 or, mirrored, 5, with four pixels on both sides
    assert set(moved.unique().tolist()) == {0.0, 1.0}
