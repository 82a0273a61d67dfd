"""Two real processes that share the parameters of one network, or of which one fails: nobody waits for ever."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from callbacks import two_processes_sharded
from support import in_two_processes

from lightning_xai.callbacks.processes import require_whole_parameters


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of one run of all cases, and what each process reports of it."""
    folder = tmp_path_factory.mktemp("sharded")
    return folder, in_two_processes(two_processes_sharded, folder, limit=120)


def test_each_process_explains_its_own_images(run: Any) -> None:
    """Five of seven images are measured, three by one process, and rank zero alone draws; training sees nothing."""
    folder, results = run
    first, second = (one["explained"] for one in results)
    assert first["logged"] == second["logged"]
    assert set(first["logged"]) >= {"val/xai/gradcam/AverageDrop", "val/xai/gradient/AverageDrop"}
    for one in results:
        assert one["explained"]["weights"] == one["plain"]["weights"]
    pictures = sorted(path.name for path in (folder / "explained/run/xai/val/xai/maps").iterdir())
    assert pictures == ["step=00000002"]


def test_the_first_process_judges_for_both(run: Any) -> None:
    """The layer and the position that were altered are found in the whole network."""
    first, second = (one["judged"] for one in run[1])
    assert first["logged"] == second["logged"]
    assert first["logged"]["val/xai/integrity/flagged"] == 1
    assert first["position"] == [1, 2]


def test_strategies_under_which_nothing_can_be_gathered_are_refused() -> None:
    """Before any batch, with what to use instead; they need GPUs, so that only their names are here."""
    flat = type("FSDPStrategy", (), {})()
    spread = type("DeepSpeedStrategy", (), {"zero_stage_3": True})()
    for strategy in (flat, spread):
        with pytest.raises(RuntimeError, match=f"got {type(strategy).__name__}. Use ModelParallelStrategy"):
            require_whole_parameters(SimpleNamespace(strategy=strategy))  # type: ignore[arg-type]
    require_whole_parameters(SimpleNamespace(strategy=type("DDPStrategy", (), {})()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "rank", "told"),
    [
        ("drawing", 0, "failed in another process"),
        ("acting", 0, "`action` failed"),
        ("measuring", 1, "failed in another process"),
    ],
)
def test_a_failure_in_one_process_ends_both(run: Any, stage: str, rank: int, told: str) -> None:
    """One says why, the other that it ends with it; it would wait for half an hour else."""
    failed, other = run[1][rank][stage], run[1][1 - rank][stage]
    assert failed["error"] == "unhappy"
    assert told in other["error"]
    assert other["seconds"] < 60
