"""Boxes and masks: which pixels a box holds, and what lies near a mask."""

import pytest
import torch

from lightning_xai.metrics import box_masks
from lightning_xai.metrics.boxes import as_masks, dilated


def columns(*box: float) -> list[int]:
    """Columns that a box of full height holds in an image of 1 x 6."""
    return box_masks([torch.tensor([[box[0], 0, box[1], 1]])], 1, 6)[0, 0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (0, 6, [0, 1, 2, 3, 4, 5]),
        (1, 3, [1, 2]),
        (2, 2, []),
        (0.5, 2.5, [0, 1]),
        (0.6, 2.4, [1]),
        (0.6, 2.6, [1, 2]),
        (1.6, 1.9, []),
        (-5, 1, [0]),
        (5, 99, [5]),
        (-9, -1, []),
        (6, 9, []),
    ],
)
def test_box_holds_the_pixels_whose_centres_it_holds(left, right, expected):
    """Integers: the minimum is in, the maximum is out. Fractions, points and boxes outside the image likewise."""
    assert columns(left, right) == expected


def test_area_of_integer_boxes_is_torchvisions():
    """(xmax - xmin) (ymax - ymin) pixels, rows by y and columns by x."""
    box = torch.tensor([[1, 2, 4, 7]])
    mask = box_masks([box], 9, 8)[0]
    assert mask.sum() == 3 * 5
    assert mask[2:7, 1:4].all()


def test_boxes_of_one_image_are_united():
    """Two boxes that overlap hold each pixel once."""
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3]])
    assert box_masks([boxes], 4, 4).sum() == 4 + 4 - 1


def test_images_have_any_number_of_boxes():
    """None, one and two; a tensor of equally many each is taken, too."""
    one = torch.tensor([[0, 0, 1, 1]])
    masks = box_masks([torch.zeros(0, 4), one, torch.cat([one, one + 1])], 3, 3)
    assert masks.sum((1, 2)).tolist() == [0, 1, 2]
    assert torch.equal(box_masks(torch.stack([one, one + 1]), 3, 3), torch.cat([masks[1:2], masks[2:] & ~masks[1:2]]))


def test_no_images_have_no_masks():
    """A rank without images may still be asked."""
    assert box_masks([], 3, 4).shape == (0, 3, 4)


@pytest.mark.parametrize("box", [(3, 0, 1, 2), (0, 3, 2, 1), (float("nan"), 0, 1, 1)])
def test_box_with_a_minimum_above_its_maximum_is_refused(box):
    """Probably another form, such as (x, y, width, height)."""
    with pytest.raises(ValueError, match=r"`boxes` expected \(xmin, ymin, xmax, ymax\).*box_convert"):
        box_masks([torch.tensor([box])], 4, 4)


@pytest.mark.parametrize("boxes", [torch.zeros(2, 4), torch.zeros(2, 4, 5), torch.zeros(2, 6, 7)])
def test_boxes_without_a_dimension_and_masks_of_numbers_are_refused(boxes):
    """The error names both remedies."""
    with pytest.raises(ValueError, match=r"got torch.float32 of shape .*Write `masks > 0`.*`boxes\[:, None\]`"):
        as_masks(torch.zeros(2, 6, 7), boxes)


def test_masks_of_another_shape_are_refused():
    """No broadcasting of one mask over all images."""
    with pytest.raises(ValueError, match=r"`boxes` expected a mask.*\(2, 6, 7\), got masks \(1, 6, 7\)"):
        as_masks(torch.zeros(2, 6, 7), torch.ones(1, 6, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`maps` expected shape \(N,H,W\), got \(2, 1, 6, 7\)"):
        as_masks(torch.zeros(2, 1, 6, 7), torch.ones(2, 6, 7, dtype=torch.bool))


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 30])
def test_dilated_mask_holds_what_is_within_the_radius(radius):
    """Against the distance to every pixel of the mask; the radius may exceed the image."""
    masks = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0)) < 0.02
    masks[2] = False
    expected = torch.zeros_like(masks)
    for n, y, x in masks.nonzero().tolist():
        rows, cols = torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij")
        expected[n] |= (rows - y) ** 2 + (cols - x) ** 2 <= radius**2
    assert torch.equal(dilated(masks, radius), expected)


def test_negative_radius_is_refused():
    """Shrinking is something else."""
    with pytest.raises(ValueError, match="`radius` expected 0 or more pixels, got -1"):
        dilated(torch.ones(1, 2, 2, dtype=torch.bool), -1)
