"""Two real processes: one checks, both know, and neither waits for the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks import two_processes_integrity
from support import in_two_processes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of one run of both cases, and what each process reports of it."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, in_two_processes(two_processes_integrity, folder)


def test_both_processes_log_the_same(run: Any) -> None:
    """So that both monitor the same number; weights stay equal."""
    first, second = (results["told"] for results in run[1])
    assert first["logged"] == second["logged"]
    assert first["logged"]["val/xai/integrity/flagged"] == 1
    assert first["weights"] == second["weights"]


def test_the_first_process_checks_for_both(run: Any) -> None:
    """The other makes the passes of the validation step alone, and its function is not called."""
    first, second = (results["told"] for results in run[1])
    assert (first["calls"], second["calls"]) == ([0, 4], [])
    assert (
        second["passes"] == 2 + 4 + 1
    )  # batches of the sanity check and of one epoch, and an image that shows the layer
    assert first["passes"] > second["passes"]


def test_verdict_is_in_the_checkpoint(run: Any) -> None:
    """Written once, by the first process."""
    states = torch.load(run[0] / "told/kept.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if "integrity" in key and "ModelIntegrity" in key)
    assert state["verdict"] == "LOGIT_SHIFT"
    assert set(state["digest"]) == {"parameters", "buffers", "modules", "code", "hooks"}


def test_raise_ends_both_processes(run: Any) -> None:
    """Before the first step; one that went on alone would wait for ever."""
    for results in run[1]:
        assert "raw-logit maps of the classifier are not to be trusted" in results["raised"]["error"]
        assert results["raised"]["trained"] == 0
