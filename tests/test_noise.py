"""Noise that belongs to an image."""

import torch
from support import random_images

from lightning_xai.noise import noisy_copies


def test_noise_does_not_depend_on_how_many_copies_are_drawn_at_once():
    """Also for sizes at which torch.randn fills a larger tensor with other numbers."""
    images = random_images(2, size=5)
    whole, one_by_one = noisy_copies(images, 0.1, seed=0), noisy_copies(images, 0.1, seed=0)
    numbers = [0, 1, 0, 1, 0]
    expected = whole(torch.tensor(numbers))
    assert torch.equal(torch.cat([one_by_one(torch.tensor([number])) for number in numbers]), expected)
    assert torch.equal(noisy_copies(images[1:], 0.1, seed=0)(torch.tensor([0, 0])), expected[[1, 3]])


def test_the_standard_deviation_is_a_share_of_each_images_range():
    """Images of ranges 1 and 10."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1] *= 10
    noise = noisy_copies(images, 0.2, seed=0)(torch.tensor([0, 1])) - images
    torch.testing.assert_close(noise.flatten(1).std(1), torch.tensor([0.2, 2.0]), rtol=0.05, atol=0)


def test_without_a_noise_level_copies_are_the_images():
    """Bit for bit."""
    images = random_images(2)
    assert torch.equal(noisy_copies(images, 0.0, seed=0)(torch.tensor([1, 0])), images.flip(0))
