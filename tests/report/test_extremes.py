"""The images on which a metric is worst and best."""

import dataclasses
import re

import pytest
from report.example_run import panel, write_examples

from lightning_xai.panels import save_panel
from lightning_xai.report import Example
from lightning_xai.report.extremes import extremes
from lightning_xai.report.pictures import Pictures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Eight examples of one network, whose values rise with their number."""
    folder = tmp_path_factory.mktemp("run")
    return [("plain", folder, example) for example in write_examples(folder)]


@pytest.fixture
def images(drawn):
    """The same in a list that a test may change."""
    return list(drawn)


def names(shown):
    """Which images."""
    return [one.name for one in shown]


def test_the_worst_of_a_drop_are_the_largest_and_of_a_gain_the_smallest(images):
    """Three at each end, for each attribution; metrics without a direction have no ends."""
    found = extremes(images, {"AverageDrop": False, "AverageGain": True}, Pictures())
    assert [(one.metric.split(",")[0], one.attribution) for one in found] == [
        ("Average drop", "gradcam"),
        ("Average drop", "lrp"),
        ("Average gain", "gradcam"),
        ("Average gain", "lrp"),
    ]
    assert (names(found[0].worst), names(found[0].best)) == (["7", "6", "5"], ["0", "1", "2"])
    assert (names(found[2].worst), names(found[2].best)) == (["0", "1", "2"], ["7", "6", "5"])
    assert found[0].worst[0].value == 70
    assert extremes(images, {}, Pictures()) == []


def test_pictures_that_several_lists_show_are_kept_once(images):
    """Six images, each with two maps, in four lists of worst and best."""
    pictures = Pictures()
    found = extremes(images, {"AverageDrop": False, "AverageGain": True}, pictures)
    assert found[0].worst[0].map == found[2].best[0].map
    assert found[0].worst[0].map != found[1].worst[0].map
    assert len(pictures.uris) == 2 * 6 + 1  # the image itself is the same everywhere


def test_of_few_images_none_is_both_worst_and_best(images):
    """Three images: one at each end; a single one has no ends."""
    (found, _) = extremes(images[:3], {"AverageDrop": False}, Pictures())
    assert (names(found.worst), names(found.best)) == (["2"], ["0"])
    assert extremes(images[:1], {"AverageDrop": False}, Pictures()) == []


def test_values_that_are_not_finite_are_left_out(images):
    """An image that a metric does not define is neither worst nor best."""
    values = {"AverageDrop": {"gradcam": float("nan"), "lrp": 1.0}}
    images[7] = ("plain", images[7][1], dataclasses.replace(images[7][2], values=values))
    gradcam = extremes(images, {"AverageDrop": False}, Pictures())[0]
    assert names(gradcam.worst) == ["6", "5", "4"]


def test_of_ten_thousand_images_only_those_that_are_shown_are_read(tmp_path):
    """The others need no picture."""
    (tmp_path / "images").mkdir()
    for name in ("0", "9999"):
        save_panel(panel(["gradcam"], 1), tmp_path / "images" / name)
    images = [
        ("", tmp_path, Example(str(i), f"images/{i}", {"AverageDrop": {"gradcam": float(i)}})) for i in range(10_000)
    ]
    (found,) = extremes(images, {"AverageDrop": False}, Pictures())
    assert (found.worst[0].name, found.worst[0].note, found.best[0].note) == ("9999", "", "")
    assert found.worst[0].map is not None
    assert found.worst[1].note.startswith("The pictures images/9998 cannot be shown: ")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("images/none", "The pictures images/none cannot be shown: .*No such file"),
        ("../outside", r"expected a path within the run's folder, got '../outside'"),
    ],
)
def test_a_missing_picture_is_told_in_its_place(images, file, told):
    """Files outside of the run are none of the report's business."""
    save_panel(panel(["gradcam"], 1), images[7][1].parent / "outside")
    images[7] = ("plain", images[7][1], dataclasses.replace(images[7][2], file=file))
    worst = extremes(images, {"AverageDrop": False}, Pictures())[0].worst[0]
    assert (worst.name, worst.image, worst.map) == ("7", None, None)
    assert re.search(told, worst.note)


def test_a_map_that_was_not_drawn_is_told(images, tmp_path):
    """The image is shown all the same."""
    save_panel(panel(["lrp"], 1), tmp_path / "lrp")
    images[7] = ("plain", tmp_path, dataclasses.replace(images[7][2], file="lrp"))
    worst = extremes(images, {"AverageDrop": False}, Pictures())[0].worst[0]
    assert (worst.map, worst.note) == (None, "No map was drawn.")
    assert worst.image is not None
