"""One thread for each test process, as several that use all cores wait for one another; and the same random numbers."""

import os
import random

import numpy as np
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


def seed() -> None:
    """Of all that draws without a generator."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collectstart() -> None:
    """What a module draws when it is imported does not depend on the modules before it."""
    seed()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    seed()
