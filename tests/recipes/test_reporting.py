"""Intervals of means, and the versions behind the numbers."""

import numpy as np
import pytest

from common.run import versions
from common.tables import interval


def test_interval_is_that_of_the_mean():
    """Normal values: about 1.96 standard errors on both sides, the same for the same seed."""
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = interval(values, seed=1)
    error = values.std(ddof=1) / 20
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["mean"] == pytest.approx(1.96 * error, rel=0.15)
    assert found["mean"] - found["low"] == pytest.approx(1.96 * error, rel=0.15)
    assert interval(values, seed=1) == found


def test_equal_values_have_an_interval_without_width():
    """The bootstrap would warn of them."""
    assert interval(np.array([3.0, 3.0]), seed=0) == {"mean": 3.0, "low": 3.0, "high": 3.0}


def test_versions_name_what_numbers_depend_on():
    """The command, the commit, the machine with its torch, other libraries and Python."""
    libraries = {"torchvision", "timm", "pytorch_lightning", "torchmetrics", "python"}
    assert set(versions()) == {"command", "commit", "machine", *libraries}
