"""Two real processes train with the term as one does with the joint batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from regularization import two_ranks
from regularization.plain_training import IMAGES, LABELS, WEIGHT, Net, assert_same_training, plain_loss, trained_plainly
from regularization.two_ranks import adaptive
from torch.nn import functional as F


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run."""
    folder = tmp_path_factory.mktemp("ddp")
    script = Path(two_ranks.__file__)
    paths = [str(script.parents[1]), str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_train_as_one_with_the_joint_batch(run: Path) -> None:
    """Nothing couples the images here; each process has half of each batch of eight."""
    start = Net().double()
    found = Net().double()
    found.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    joint = [(IMAGES[i : i + 8].double(), LABELS[i : i + 8]) for i in (0, 8)]
    assert_same_training(found, trained_plainly(start, joint), start, rtol=1e-6)


def test_processes_agree_on_the_weight(run: Path) -> None:
    """It follows the mean of what each measures on its own images, and the parameters stay equal."""
    first, second = (json.loads((run / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    products = []
    for rank in range(2):
        model, batch = Net().double(), (IMAGES[rank:8:2].double(), LABELS[rank:8:2])
        classification = F.cross_entropy(model(batch[0]), batch[1])
        c = gradient(model, classification)
        r = (gradient(model, plain_loss(model, *batch)) - c) / WEIGHT
        products.append(torch.stack([c @ c, r @ r]))
    size_c, size_r = torch.stack(products).mean(0).sqrt()
    expected = (0.1 * 0.3 * size_c / size_r) ** 0.5  # half of both logarithms
    assert first["lambda"] == pytest.approx(expected.item(), rel=1e-9)
    assert adaptive()(0) == pytest.approx(0.1)


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """At all parameters, in one vector."""
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))])
