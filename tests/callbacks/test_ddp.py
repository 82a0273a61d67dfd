"""Two real processes measure what one does: no image counts twice, pictures come from rank zero, nobody waits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks import two_processes
from callbacks.definitions import by_hand
from callbacks.trainers import confident_net
from callbacks.two_processes import CASES, METHODS
from support import in_two_processes, random_images

METRICS = ("AverageDrop", "AverageIncrease", "AverageGain")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of one run of all cases, and what each process reports of it."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, in_two_processes(two_processes, folder)


def expected(model: torch.nn.Module, images: torch.Tensor) -> Any:
    """What one process logs."""
    values = by_hand(model.double(), images.double(), METHODS["gradcam"])
    return {f"val/xai/gradcam/{metric}": pytest.approx(values[metric], rel=1e-6) for metric in METRICS}


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_measure_what_one_does(run: Any, name: str) -> None:
    """Copies that fill the last batch are dropped, n_images is global, and both log the same."""
    images = CASES[name]["images"][: CASES[name]["n_images"]]
    images = images[images.flatten(1).isfinite().all(1)]
    first, second = (results[name]["logged"] for results in run[1])
    assert first == second
    assert {**first, **expected(confident_net(), images)} == first


def test_work_is_shared(run: Any) -> None:
    """Each process explains its own share; one that has none makes the validation step's passes alone."""
    passes = {name: [results[name]["passes"] for results in run[1]] for name in CASES}
    assert passes["all"] == [[2, 2, 2, 2], [2, 2, 2, 1]]
    assert passes["first 3"] == [[2, 2, 2], [2, 1, 2]]
    assert passes["first 1"] == [[2, 1, 2], [2, 2]]


def test_training_with_all_of_it_ends_with_equal_weights(run: Any) -> None:
    """The term's double backward pass, and own passes of rank zero for pictures, keep the processes in step."""
    folder, (first, second) = run
    assert first["fit"]["weights"] == second["fit"]["weights"]
    model = confident_net().double()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    logged = first["fit"]["logged"]
    assert {**logged, **expected(model, random_images(7))} == logged


def test_pictures_are_drawn_once(run: Any) -> None:
    """By rank zero, at each epoch; the other process makes no pass for them."""
    one_validation = [2, 2, 2, 1]  # step and masked images of its two batches, the last image a copy
    assert run[1][1]["fit"]["passes"] == 3 * one_validation
    drawn = 3 * 3  # images of each epoch's panel
    masked = drawn  # for the drop of each
    assert sum(run[1][0]["fit"]["passes"]) == 3 * sum([2, 2, 2, 2]) + drawn + masked
    pictures = sorted(path.name for path in (run[0] / "run/xai/val/xai/maps").iterdir())
    assert pictures == ["step=00000002", "step=00000004"]
