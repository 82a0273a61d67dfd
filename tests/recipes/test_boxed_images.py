"""Boxes lie on the resized and cropped image where they lay on the photograph."""

import csv
import doctest

import numpy as np
import pytest
import torch
from PIL import Image

import common.data.boxed as module
from common.data.boxed import BoxedImages, most_probable_of
from common.data.images import eval_transform


def write(root, size, boxes, label="cat"):
    """A black PNG of the given width and height that is white in its boxes."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 255
    Image.fromarray(pixels).save(root / "a.png")
    lines = [("file", "label", "xmin", "ymin", "xmax", "ymax"), *(("a.png", label, *box) for box in boxes)]
    with (root / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (root / "label_to_imagenet.csv").write_text("label,imagenet_indices\ndog,5 6\ncat,1 2\n")


def test_the_examples_run():
    """The recipes' folder is no package: its doctests are run here."""
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("size", [(256, 256), (400, 256), (256, 341), (300, 500)])
@pytest.mark.parametrize("side", [224, 64], ids=["cropped", "whole"])
@pytest.mark.parametrize("boxes", [[(60, 70, 130, 190)], [(0, 0, 90, 120)], [(40, 50, 80, 90), (120, 140, 200, 180)]])
def test_boxes_follow_the_image(tmp_path, size, side, boxes):
    """What is white in the image given is what the mask says, but for the pixels that resizing blurs."""
    write(tmp_path, size, boxes)
    image, _, mask = BoxedImages(tmp_path, eval_transform(side, (0.0,) * 3, (1.0,) * 3))[0]
    assert image.shape[1:] == mask.shape == (side, side)
    clear = (image[0] - 0.5).abs() > 0.45
    assert mask.any()
    assert clear.float().mean() > 0.9
    assert torch.equal((image[0] > 0.5)[clear], mask[clear])


def test_box_outside_of_the_crop_is_an_empty_mask(tmp_path):
    """The metrics count such images as misses, and count them."""
    write(tmp_path, (600, 256), [(0, 0, 50, 50)])
    _, _, mask = BoxedImages(tmp_path, eval_transform(224, (0.0,) * 3, (1.0,) * 3))[0]
    assert not mask.any()


def test_the_most_probable_class_of_a_label_is_explained(tmp_path):
    """Not the most probable class of all."""
    write(tmp_path, (256, 256), [(60, 70, 130, 190)])
    data = BoxedImages(tmp_path, eval_transform(64, (0.0,) * 3, (1.0,) * 3))
    label = torch.tensor([data[0][1]])
    logits = torch.tensor([[9.0, 1.0, 2.0, 0.0, 0.0, 8.0, 0.0]])
    assert most_probable_of(data.classes)(logits, label).tolist() == [2]


def test_labels_are_needed():
    """To say so is better than a class of the wrong object."""
    with pytest.raises(ValueError, match="`labels` expected the label of each image"):
        most_probable_of([[0]])(torch.zeros(1, 1), None)


def test_a_folder_without_boxes_is_refused(tmp_path):
    """By the name of the file that is missing."""
    with pytest.raises(FileNotFoundError, match=r"`--boxed` expected a folder with boxes\.csv"):
        BoxedImages(tmp_path, eval_transform(64, (0.0,) * 3, (1.0,) * 3))
