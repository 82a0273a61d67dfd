"""Intervals of means, and the versions behind the numbers."""

import json

import numpy as np
import pytest

from common.measured import origin
from common.options import RunOptions
from common.run import Run, versions
from common.tables import interval
from lightning_xai.report import Table


def test_interval_is_that_of_the_mean():
    """Normal values: about 1.96 standard errors on both sides, the same for the same seed."""
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = interval(values, seed=1)
    error = values.std(ddof=1) / 20
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["mean"] == pytest.approx(1.96 * error, rel=0.15)
    assert found["mean"] - found["low"] == pytest.approx(1.96 * error, rel=0.15)
    assert interval(values, seed=1) == found


def test_no_value_has_no_interval():
    """Neither of nobody nor of images without a value."""
    assert interval([]) is None
    assert interval([None, float("nan")]) is None


def test_equal_values_have_an_interval_without_width():
    """The bootstrap would warn of them."""
    assert interval(np.array([3.0, 3.0]), seed=0) == {"mean": 3.0, "low": 3.0, "high": 3.0}


def test_versions_name_what_numbers_depend_on():
    """The command, the commit, the machine with its torch, other libraries and Python."""
    libraries = {"torchvision", "timm", "pytorch_lightning", "torchmetrics", "python"}
    assert set(versions()) == {"command", "commit", "machine", *libraries}


def test_a_command_names_no_folder_of_the_machine(monkeypatch):
    """It is published; what stands in quotes stays one word."""
    monkeypatch.setattr("sys.argv", ["/a/recipes/x.py", "--data", "/home/me/DIR", "--beside", "--model a"])
    assert origin()["command"] == "python recipes/x.py --data DIR --beside '--model a'"


def test_what_the_tables_say_is_kept_for_the_texts(tmp_path):
    """Word for word, with the command and the commit; where it is kept is no setting of the run."""
    table = Table("Drop", ["", "plain"], [["gradcam", {"mean": 25.71, "low": 24.0, "high": 27.04}]], "4 images.")
    run = Run(RunOptions(tmp_path / "run", numbers=tmp_path / "numbers.json"))
    run.finish("Some", "A summary.", [table])
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert {"command", "commit", "machine"} <= found.keys()
    assert found["rows"][-1] == {"table": "Drop", "cells": ["gradcam", "25.7 [24.0, 27.0]"]}
    assert "numbers" not in run.settings
