"""A day's work on a GPU: parts end when they are told to, and what there is so far is kept."""

import json
import os
import tarfile
import time

import gpu_day
import pytest
from gpu_day import Part, Settings, goals, main, parts, run

CHILD = "import subprocess, sys; print(subprocess.Popen(['sleep', '100']).pid, flush=True); {}"


def is_running(pid: int) -> bool:
    """Not counting what is dead and not yet buried."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def ended(pid: int) -> bool:
    """Within a moment."""
    for _ in range(50):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    """Also one that does not listen to signals."""
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(100)"
    log = tmp_path / "log"
    assert run(Part("deaf", 1, ["-c", CHILD.format(deaf)]), 3, "cpu", log) == "out of time"
    assert ended(int(log.read_text().split()[0]))


def test_a_part_says_how_it_ended(tmp_path):
    """What it left running ends, too."""
    assert run(Part("bad", 9, ["-c", CHILD.format("sys.exit(3)")]), 60, "cpu", tmp_path / "log") == "status 3"
    assert ended(int((tmp_path / "log").read_text().split()[0]))


def test_goals_stand_beside_what_was_measured(tmp_path):
    """Or that nothing was."""
    network = "ResNet-50, batch 128, 224 px, channels_last, bf16-mixed"
    row = {"network": network, "term": "exact", "median": 2.5, "memory": 1.75}
    (tmp_path / "gpu_training.json").write_text(json.dumps({"rows": [row | {"term": "fraction=0.25"}, row]}))
    found = list(goals(tmp_path))
    assert found[0].endswith("exact, median: 2.500, at most 2.35")
    assert found[1].endswith("exact, memory: 1.750, at most 2.0")
    assert "not measured" in found[2]


def test_results_are_packed_after_each_part(tmp_path, monkeypatch):
    """So that whoever stops the second has the first."""

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_day, "run", stopped)
    folders = ["--results", str(tmp_path / "results"), "--logs", str(tmp_path / "logs")]
    with pytest.raises(KeyboardInterrupt):
        main([*folders, "--pack", str(tmp_path / "all.tar.gz")])
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        assert "logs/goals.txt" in archive.getnames()


def test_tests_come_first_and_trainings_last():
    """In order of importance; every script that is run is there."""
    found = parts(Settings(device="cpu", small=True))
    assert [one.name for one in found][1] == "tests"
    assert found[-1].name == "cifar"
    assert all((gpu_day.HERE.parent / one.command[0]).exists() for one in found if one.command[0].endswith(".py"))
