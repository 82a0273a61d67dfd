"""The table of costs: what is run, in which order, and what is made of the times."""

import json
import os

import benchmark
import pytest
import torch
from benchmark import Result, Row, chosen, leaders, main, measure
from support import process_of
from torch import nn
from torchvision.models import resnet18

OURS = [row for row in benchmark.ROWS if row.library == "lightning_xai"]


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_every_method_of_ours_is_measured(row):
    """On two small images."""
    found = measure(row, resnet18().eval(), torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), rounds=1)
    assert found.row == row
    assert found.quartiles[1] > 0


def test_a_run_prints_its_rows(capsys):
    """One round on small images; each row is a line, under the machine."""
    results = main(["--fast-dev-run", "--only", "guided", "--threads", "1", "--device", "cpu"])
    assert results[0].row == Row("guided gradient", "lightning_xai", results[0].row.method, 2.2)
    assert all(len(result.ratios) == 1 and result.quartiles[1] > 0 for result in results)
    printed = capsys.readouterr().out
    assert "ResNet-18, batch 2, 32 px, 1 rounds" in printed
    assert benchmark.machine(torch.device("cpu")) in printed
    for result in results:
        assert f"{result.row.name} " in printed


def test_each_row_has_a_process_of_its_own(monkeypatch):
    """Not this one, nor that of another row."""
    monkeypatch.setattr(benchmark, "numbers", process_of)
    found = [*benchmark.apart(benchmark.Settings(), [3, 4])]
    assert [i for i, _ in found] == [3, 4]
    assert len({os.getpid(), *(one for _, one in found)}) == 3


class Counting(nn.Module):
    """Answers with zeros and writes down who ran it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def __deepcopy__(self, memo):
        return self  # the copy that other libraries get writes into the same log

    def forward(self, images):
        self.log.append(f"forward {len(images)}")
        return torch.zeros(len(images), 2)


@pytest.mark.parametrize(("one_image", "n"), [(False, 3), (True, 1)])
def test_a_row_runs_after_a_forward_pass_of_its_batch(one_image, n):
    """The first round warms up and does not count."""
    model = Counting()
    row = Row("a", "captum", lambda model, images, targets: model.log.append(f"a {len(images)}"), one_image=one_image)
    result = measure(row, model, torch.zeros(3, 1, 2, 2), torch.zeros(3).long(), rounds=2)
    assert model.log == [f"forward {n}", f"a {n}"] * 3
    assert len(result.ratios) == len(result.seconds) == 2


def test_libraries_that_are_not_installed_are_left_out():
    """The other rows stay."""

    def absent(model, images, targets):
        raise ModuleNotFoundError("no such library")

    assert measure(Row("a", "absent", absent), Counting(), torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), 1) is None


def test_a_row_gets_a_model_and_images_of_its_own():
    """Some leave gradients and hooks behind; the images require gradients, as captum wants them."""
    given = []
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2)
    measure(Row("a", "captum", lambda *one: given.append(one)), model, images, torch.zeros(1).long(), rounds=1)
    assert given[0][0] is not model
    assert given[0][1].requires_grad
    assert not images.requires_grad


def test_medians_and_quartiles_are_those_of_the_ratios():
    """Of one round, the round itself."""
    result = Result(benchmark.ROWS[0], [1.0, 5.0, 2.0, 3.0, 4.0], [0.1] * 5)
    assert result.quartiles == (2.0, 3.0, 4.0)
    assert Result(benchmark.ROWS[0], [2.0], [0.1]).quartiles == (2.0, 2.0, 2.0)


def test_rows_are_chosen_by_the_beginning_of_a_method_or_by_library():
    """In any case of letters; all of them where nothing is said."""
    assert chosen(None) == benchmark.ROWS
    assert {row.name for row in chosen(["grad-cam++"])} == {"Grad-CAM++"}
    assert {row.library for row in chosen(["zennit"])} == {"zennit"}
    assert {row.name for row in chosen(["rsi", "Guided"])} == {"RSI Grad-CAM, 50 steps", "guided gradient"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "lime"], "--only expected.*got lime"), (["--rounds", "0"], "2")],
    ids=["unknown method", "no round"],
)
def test_a_bad_command_line_is_refused(arguments, message):
    """Before anything runs."""
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_who_leads_is_told_of_methods_that_several_have():
    """By the median."""
    found = {("a", "x"): [1.0, 9.0, 2.0], ("a", "y"): [3.0], ("b", "x"): [5.0], ("b", "y"): [4.0], ("c", "x"): [1.0]}
    results = [Result(Row(name, library, print), ratios, ratios) for (name, library), ratios in found.items()]
    assert leaders(results) == "Fastest: x at a; y at b"


def test_a_validation_is_measured_with_each_callback(tmp_path, capsys):
    """What is added is told in passes, and for a validation of 2,000 images."""
    main(["--validation", "--fast-dev-run", "--only", "SaliencyMaps", "the three", "--out", str(tmp_path / "a.json")])
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["validation"] for row in rows] == ["SaliencyMaps", "the three"]
    for row in rows:
        assert row["passes"] == pytest.approx((row["median"] - 1) * 4, abs=0.01)
        assert row["ratio_of_2000"] == pytest.approx(1 + row["passes"] / 2000, abs=0.01)
