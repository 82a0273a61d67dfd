"""What is read of runs: finished ones, half-written ones, and folders that are no runs."""

import json

import pytest
from report.example_run import write_log, write_run

from lightning_xai.report.run_folder import read_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "run"))


def test_a_finished_run_has_results_settings_and_a_log_of_each_network(finished):
    """Nothing is missing, and the networks come in the order of the tables."""
    assert (finished.title, finished.settings["lambda"], finished.notes) == ("Guided gradients", 0.1, [])
    assert [log.model for log in finished.logs] == ["plain", "guided"]
    assert finished.logs[0].values["train/loss"] == {9: 0.1, 19: 0.05, 29: pytest.approx(1 / 30)}


def test_pictures_belong_to_their_network_key_and_step(finished):
    """The step counts what was made: the epoch is that of the step before."""
    log = finished.logs[1]
    assert {key: list(steps) for key, steps in log.panels.items()} == {"val/xai/maps": [10, 20, 30]}
    assert log.panels["val/xai/maps"][20].parent.parts[-4:] == ("xai", "val", "xai", "maps")
    assert [log.epoch(step) for step in (10, 20, 30)] == [0, 1, 2]


def test_a_run_without_results_is_read_as_far_as_it_goes(tmp_path):
    """Settings are those of the start."""
    write_log(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 3}))
    run = read_run(tmp_path)
    assert run.results is None
    assert run.settings == {"seed": 3}
    assert [log.model for log in run.logs] == [""]
    assert run.notes == ["There is no results.json: the run is not finished, or was ended by an error."]
    (tmp_path / "settings.json").unlink()
    assert read_run(tmp_path).notes == []  # a run of one's own has no results


def test_damaged_results_and_settings_are_told(tmp_path):
    """As when a disk was full."""
    write_log(tmp_path)
    (tmp_path / "results.json").write_text('{"title": "Tri')
    (tmp_path / "settings.json").write_text("[1, 2")
    notes = read_run(tmp_path).notes
    assert notes[0].startswith("The file settings.json cannot be read: ")
    assert notes[1].startswith("The file results.json cannot be used: ")


def test_a_later_attempt_replaces_the_steps_that_it_repeats(tmp_path):
    """The logger gives each attempt a folder; the tenth comes after the second."""
    for attempt, text in {2: "0,9,0.9\n0,19,0.8\n", 10: "0,19,0.7\n0,29,0.6\n"}.items():
        folder = tmp_path / "guided" / f"csv_{attempt}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("epoch,step,train/loss\n" + text)
    (log,) = read_run(tmp_path).logs
    assert log.model == "guided"
    assert log.values["train/loss"] == {9: 0.9, 19: 0.7, 29: 0.6}


def test_a_row_that_was_cut_off_counts_as_far_as_it_goes(tmp_path):
    """So do words, which are no curve, and a step that is none."""
    (tmp_path / "metrics.csv").write_text("epoch,step,a,b\n0,1,0.5,0.25\n,x,1,1\n0,2,0.75,best\n0,3,0.1\n0,")
    (log,) = read_run(tmp_path).logs
    assert log.values == {"a": {1: 0.5, 2: 0.75, 3: 0.1}, "b": {1: 0.25}}


def test_values_of_tests_do_not_move_the_epochs(tmp_path):
    """A test begins to count anew, at step 0."""
    (tmp_path / "metrics.csv").write_text("epoch,step,val/loss,test/loss\n4,0,1,\n0,0,,2\n")
    assert read_run(tmp_path).logs[0].epochs == {0: 4}


def test_no_folder_an_empty_one_and_another_one_are_told_apart(tmp_path):
    """With what was found instead."""
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotADirectoryError, match=r"expected the folder of a run, got '.*none', which is no folder"):
        read_run(tmp_path / "none")
    with pytest.raises(ValueError, match=r"metrics.csv or event files, got '.*', which is empty"):
        read_run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"which holds empty, notes.txt"):
        read_run(tmp_path)
