"""The main recipe after its process was killed: it goes on from the last checkpoint, and no earlier log is touched."""

import csv

import imagenet_interp
import pytest
from imagenet_interp import curve, main, next_attempt, write_whole
from recipes.image_files import write_images
from recipes.test_imagenet_interp import NETWORK, TINY
from support import killed_once_there_is

pytestmark = [
    # epochs of two batches are shorter than what is logged
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # a resumed run finds its own checkpoints
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
EPOCHS = 3


def rows_of(path):
    """Of a log."""
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Folder of an arm that was killed after an epoch and resumed, and what its first log held in between."""
    folder = tmp_path_factory.mktemp("killed")
    for split in ("train", "val"):
        write_images(folder / "data" / split, {"cat": 8, "dog": 8}, (40, 40))
    options = [*TINY, *NETWORK, "--no-compare", "--data", folder / "data", "--epochs", EPOCHS, "--run", folder / "run"]
    options = [*map(str, options), "--adaptive", "0.1"]
    arm = folder / "run" / "guided"
    killed_once_there_is(arm / "checkpoints" / "last.ckpt", imagenet_interp, *options)
    log = (arm / "csv_0" / "metrics.csv").read_bytes()
    main([*options, "--resume"])
    return arm, log


def test_the_log_of_the_killed_process_stays(resumed):
    """Byte by byte; the resumed run has one of its own."""
    arm, log = resumed
    assert log
    assert (arm / "csv_0" / "metrics.csv").read_bytes() == log
    assert sorted(path.name for path in arm.glob("csv_*")) == ["csv_0", "csv_1"]


def test_it_goes_on_from_the_last_checkpoint(resumed):
    """Both logs together hold every epoch, and the second one does not begin anew."""
    arm, _ = resumed
    first, second = (rows_of(arm / f"csv_{i}" / "metrics.csv") for i in range(2))
    ends = [2 * epoch + 1 for epoch in range(EPOCHS)]
    assert [step for step, _ in curve([*first, *second], "val/accuracy")] == ends
    assert curve(first, "val/accuracy")[0][0] == 1
    assert curve(second, "val/accuracy")[0][0] > 1
    assert (arm / "results.json").exists()


def test_a_step_done_again_counts_once():
    """As it was done last, in the order of the steps."""
    rows = [{"step": "9", "a": "1"}, {"step": "19", "a": "2"}, {"step": "14", "b": "7"}, {"step": "19", "a": "3"}]
    assert curve(rows, "a") == [(9, 1.0), (19, 3.0)]


def test_a_new_log_takes_the_place_of_none(tmp_path):
    """Also where earlier ones were removed, and beyond ten."""
    assert next_attempt(tmp_path) == 0
    for name in ("csv_2", "csv_10"):
        (tmp_path / name).mkdir()
    assert next_attempt(tmp_path) == 11


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """Where writing fails, the earlier one is there."""
    path = tmp_path / "results.json"
    write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "second \ud800")
    assert path.read_text() == "first"
    write_whole(path, "third")
    assert path.read_text() == "third"
    assert list(tmp_path.glob("*.json")) == [path]
