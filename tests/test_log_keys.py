"""Keys of logged values and pictures are read as they were written."""

import pytest

from lightning_xai.log_keys import LogKey

KEYS = {
    "val/xai/gradcam/AverageDrop": LogKey("val", "gradcam", "AverageDrop"),
    "test/xai/my map/maps": LogKey("test", "my map", "maps"),
    "val/xai/a/b/AverageDrop": LogKey("val", "a/b", "AverageDrop"),
    "val/xai/maps": LogKey("val", "maps"),
    "test/xai/maps/dataloader_idx_1": LogKey("test", "maps", None, 1),
    "val/xai/gradcam/AverageDrop/dataloader_idx_0": LogKey("val", "gradcam", "AverageDrop", 0),
    "train/guided_gradient/cosine": LogKey("train", "guided_gradient", "cosine"),
    "train/guided_gradient/model.layer3/cosine": LogKey("train", "guided_gradient/model.layer3", "cosine"),
    "val/xai/dataloader_idx_x/a": LogKey("val", "dataloader_idx_x", "a"),
}


@pytest.mark.parametrize(("text", "key"), KEYS.items())
def test_keys_are_read_as_they_were_written(text, key):
    """Stage, name, metric and the index of the dataloader, where there is one, zero included."""
    assert str(key) == text
    assert LogKey.parse(text) == key


@pytest.mark.parametrize(
    "text", ["", "/", "train/loss", "val/loss", "val/xai", "lr-Adam", "xai/maps/a", "epoch", "val//x/a"]
)
def test_keys_of_others_are_none_of_ours(text):
    """Whatever a user logs."""
    assert LogKey.parse(text) is None


def test_pictures_have_a_name_and_no_metric():
    """Which may hold slashes, as a value's cannot be told from its metric."""
    for key in (LogKey("val", "maps"), LogKey("val", "maps/of birds"), LogKey("test", "a/b", None, 3)):
        assert LogKey.parse_pictures(str(key)) == key
