"""A training that was stopped in the middle of an epoch, or killed, ends as the one that was not."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from regularization import stopped_training
from regularization.stopped_training import LONG, adaptive, csv_logger, train
from regularization.test_mixin import Recorder
from support import killed_once_there_is

from lightning_xai.regularization import LinearWarmup

# a resumed run finds its own checkpoints
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

OPTIONS: dict[str, dict[str, Any]] = {
    "schedule": {"weight": LinearWarmup(0.5, 8)},
    "adaptive": {"batch_norm": "evaluation"},
    "every second step": {"every_n_steps": 2, "fraction": 0.5},
}


def options(name: str) -> dict[str, Any]:
    """Of the term; the weight sets itself where nothing else is said."""
    return {"weight": adaptive(), **OPTIONS[name]}


def assert_resumed_log(found: dict[Any, Any], whole: dict[Any, Any]) -> None:
    """Bit by bit; a value that was not computed in a step Lightning repeats, if it was in the same process."""
    for step, row in found.items():
        assert row.items() <= whole[step].items()
        for key in whole[step].keys() - row.keys():
            assert whole[step][key] == whole[step - 1][key]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_resumed_in_the_middle_of_an_epoch_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """After each of three checkpoints: parameters, statistics, the weight and the log, though much is random."""
    log = Recorder()
    whole = train(tmp_path, options(name), logger=log, max_epochs=3)
    assert list(log.rows) == list(range(12))
    for step in (3, 6, 9):
        again = Recorder()
        path = tmp_path / "checkpoints" / f"step={step}.ckpt"
        resumed = train(tmp_path, options(name), path, logger=again, max_epochs=3)
        torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
        assert resumed.interpretability.weight(12) == whole.interpretability.weight(12)
        assert list(again.rows) == list(range(step, 12))
        assert_resumed_log(again.rows, log.rows)
        if name == "schedule":  # every value is computed in every step
            assert all(row == log.rows[step] for step, row in again.rows.items())


def rows_of(folder: Path) -> dict[int, dict[str, float]]:
    """What is in a log, by step."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): {key: float(value) for key, value in row.items() if value} for row in rows}


def test_a_killed_run_goes_on_and_loses_at_most_a_row(tmp_path: Path) -> None:
    """From a checkpoint in the middle of an epoch; the earlier log is not touched."""
    checkpoint = tmp_path / "killed" / "checkpoints" / "step=6.ckpt"
    killed_once_there_is(checkpoint, stopped_training, tmp_path / "killed")
    first = tmp_path / "killed" / "version_0"
    announced = (tmp_path / "killed" / "rows.txt").read_text().split()
    assert len(announced) - 1 <= len(rows_of(first)) <= len(announced) < 20
    before = (first / "metrics.csv").read_bytes()

    resumed = train(
        tmp_path / "killed", {"weight": adaptive()}, checkpoint, logger=csv_logger(tmp_path / "killed"), **LONG
    )
    whole = train(tmp_path / "whole", {"weight": adaptive()}, logger=csv_logger(tmp_path / "whole"), **LONG)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert (first / "metrics.csv").read_bytes() == before
    later, expected = (rows_of(tmp_path / name) for name in ("killed/version_1", "whole/version_0"))
    assert list(later) == list(range(6, 20))
    assert_resumed_log({**rows_of(first), **later}, expected)
