"""The main recipe after it was killed: the resumed run is, bit for bit, the run that was never interrupted."""

import csv
import json
import re

import imagenet_interp
import pytest
import torch
from imagenet_interp import Classifier, main
from recipes.image_files import write_images
from recipes.test_imagenet_interp import NETWORK, TINY, same, weights_of
from support import killed_once_there_is

from common.run import write_whole
from common.training import RandomStates, checkpoint_in, forget_after, next_attempt

pytestmark = [
    # epochs of eight batches are shorter than what is logged
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # a resumed run finds its own checkpoints
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
EPOCHS, STEPS = 3, 8


class Killed(BaseException):
    """Nobody catches it, as nobody catches a signal."""


def rows_in(arm):
    """All rows that were logged, in the order of the attempts, without empty cells."""
    rows = []
    for path in sorted(arm.glob("csv_*/metrics.csv")):
        with path.open() as file:
            rows += [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return rows


def pictures_in(arm):
    """The pictures of the followed images as they are now, by key and step; those of a later attempt count."""
    found = sorted(arm.rglob("step=*/*.webp"))
    return {re.sub(r"^csv_\d+/", "", str(path.relative_to(arm))): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images that are shifted and mirrored at random, and so depend on torch's random state."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", {"cat": 16, "dog": 16}, (40, 40))
    write_images(folder / "val", {"cat": 8, "dog": 8}, (40, 40))
    return folder


def options(data, folder):
    """Of a small run that logs within epochs."""
    small = [*TINY, *NETWORK, "--batch-size", "4", "--no-compare", "--adaptive", "0.1", "--lr", "1e-3"]
    return [*small, "--lr-schedule", "onecycle", "--data", str(data), "--epochs", str(EPOCHS), "--run", str(folder)]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    main(options(data, folder))
    return folder


def assert_same_run(folder, whole):
    """Weights, values of every image, logged rows and pictures."""
    assert same(weights_of(folder, "guided"), weights_of(whole, "guided"))
    first, second = (json.loads((one / "parts" / "guided.json").read_text()) for one in (folder, whole))
    assert first == second
    assert rows_in(folder / "guided") == rows_in(whole / "guided")
    assert pictures_in(folder / "guided") == pictures_in(whole / "guided")


def test_the_whole_run_logs_steps_epochs_and_the_test(whole):
    """Or there would be nothing to compare below."""
    rows = rows_in(whole / "guided")
    assert [row["step"] for row in rows if "train/guided_gradient/weight" in row] == ["9", "19"]
    assert [row["step"] for row in rows if "val/accuracy" in row] == ["7", "15", "23"]
    assert sum("test/xai/gradcam/AverageDrop" in row for row in rows) == 1
    assert pictures_in(whole / "guided")


PHASES = {
    "first epoch": ("on_train_batch_start", lambda module: module.global_step == 3),
    "first validation": ("on_validation_epoch_end", lambda module: module.global_step == STEPS),
    "between epochs": ("on_train_epoch_start", lambda module: module.current_epoch == 1),
    "second epoch": ("on_train_batch_start", lambda module: module.global_step == 12),
    "second validation": ("on_validation_epoch_end", lambda module: module.global_step == 2 * STEPS),
    "last epoch": ("on_train_batch_start", lambda module: module.global_step == 22),
    "test": ("on_test_epoch_end", lambda module: True),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_was_killed_resumes_to_the_same_run(phase, data, whole, tmp_path, monkeypatch):
    """In each phase: order of the images, random states, schedules, followed images, and no row twice."""
    hook, due = PHASES[phase]

    def kill(self, *args):
        if due(self) and not self.trainer.sanity_checking:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, hook, kill)
        with pytest.raises(Killed):
            main(options(data, tmp_path / "run"))
    torch.manual_seed(1234)  # another process would have another random state
    main([*options(data, tmp_path / "run"), "--resume"])
    assert_same_run(tmp_path / "run", whole)


def test_a_run_that_was_killed_before_its_results_were_kept_logs_its_test_once(data, whole, tmp_path, monkeypatch):
    """The row of the test is made again."""

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(imagenet_interp, "save_weights", kill)
        with pytest.raises(Killed):
            main(options(data, tmp_path / "run"))
    main([*options(data, tmp_path / "run"), "--resume"])
    assert_same_run(tmp_path / "run", whole)


def test_a_process_that_gets_a_signal_leaves_what_resuming_needs(data, whole, tmp_path):
    """Killed by the system as soon as there is a checkpoint, wherever it is then."""
    words = options(data, tmp_path / "run")
    killed_once_there_is(tmp_path / "run" / "guided" / "checkpoints" / "last.ckpt", imagenet_interp, *words)
    main([*words, "--resume"])
    assert_same_run(tmp_path / "run", whole)


def test_a_damaged_checkpoint_is_named(tmp_path):
    """With what to do; nothing to resume is no error."""
    assert checkpoint_in(tmp_path) == (None, 0)
    (tmp_path / "checkpoints").mkdir()
    for content in (b"", b"half of a checkpoint"):
        (tmp_path / "checkpoints" / "last.ckpt").write_bytes(content)
        with pytest.raises(SystemExit, match=r"last.ckpt, which is damaged .* Remove it"):
            checkpoint_in(tmp_path)


def test_a_damaged_part_is_named(data, whole):
    """Instead of a traceback of JSON."""
    path = whole / "parts" / "guided.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(SystemExit, match=r"guided.json, which is damaged"):
        main([*options(data, whole), "--resume"])
    path.write_text(text)


def test_rows_after_the_checkpoint_are_forgotten(tmp_path):
    """Those of a test, too, which has step 0, and one that was cut off."""
    path = tmp_path / "csv_0" / "metrics.csv"
    write_whole(path, "step,test/a,val/a\r\n3,,1.0\r\n0,2.0,\r\n7,,1.0\r\n8,,1.0\r\n,")
    forget_after(tmp_path, 8)
    assert path.read_text().split() == ["step,test/a,val/a", "3,,1.0", "7,,1.0"]


def test_a_new_log_takes_the_place_of_none(tmp_path):
    """Also where earlier ones were removed, and beyond ten."""
    assert next_attempt(tmp_path) == 0
    for name in ("csv_2", "csv_10"):
        (tmp_path / name).mkdir()
    assert next_attempt(tmp_path) == 11


def test_random_states_go_on_where_they_were_kept():
    """Of the CPU here; GPUs likewise."""
    kept = RandomStates().state_dict()
    drawn = torch.rand(3)
    RandomStates().load_state_dict(kept)
    assert torch.equal(torch.rand(3), drawn)


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """Where writing fails, the earlier one is there."""
    path = tmp_path / "results.json"
    write_whole(path, "first")
    with pytest.raises(TypeError):
        write_whole(path, 2)
    assert path.read_text() == "first"
    write_whole(path, "third")
    assert path.read_text() == "third"
    assert list(tmp_path.glob("*.json")) == [path]
