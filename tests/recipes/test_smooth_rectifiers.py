"""The guided rule at smooth rectifiers beside ReLU: what is trained, swapped and measured."""

import json

import pytest
import torch
from smooth_rectifiers import RECTIFIERS, main, network, swapped
from torch import nn


def test_a_run_measures_each_rectifier_and_method(tmp_path, capsys):
    """A small one; the rows are written with what they come from."""
    frame = main(["--fast-dev-run", "--out", str(tmp_path / "rows.json")])
    assert "mean of 1 seeds" in capsys.readouterr().out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["machine"]
    assert [(row["rectifier"], row["method"]) for row in found["rows"]] == [
        (name, method) for name in RECTIFIERS for method in ("guided", "plain")
    ]
    shares = frame[["accuracy", "area", "pointing", "energy"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)
    assert frame["agreement"][0] == pytest.approx(1)  # of the ReLU network's guided map with itself
    assert (frame["agreement"][1:] < 0.99).all()


def test_swapping_keeps_the_weights_and_the_first_network():
    """Only the rectifiers are others."""
    torch.manual_seed(0)
    model = network().eval()
    other = swapped(model, nn.SiLU)
    assert [type(one) for one in other if isinstance(one, nn.SiLU)] == [nn.SiLU] * 4
    assert not any(isinstance(one, nn.SiLU) for one in model)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not torch.allclose(other(torch.ones(1, 3, 48, 48)), model(torch.ones(1, 3, 48, 48)))
