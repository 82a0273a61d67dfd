"""Two real processes train with the term as one does with the joint batch."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.trainers import trainer
from regularization import two_ranks
from regularization.plain_training import (
    IMAGES,
    LABELS,
    WEIGHT,
    Net,
    Trained,
    assert_same_training,
    plain_loss,
    term,
    trained_plainly,
)
from regularization.two_ranks import adaptive
from support import in_two_processes
from torch.nn import functional as F
from torch.utils.data import DataLoader

JOINT = [(IMAGES[i : i + 8].double(), LABELS[i : i + 8]) for i in (0, 8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of one run, and what each process reports of it."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, in_two_processes(two_ranks, folder)


def test_two_processes_train_as_one_with_the_joint_batch(run: Any) -> None:
    """Nothing couples the images here; each process has half of each batch of eight."""
    start = Net().double()
    found = Net().double()
    found.load_state_dict(torch.load(run[0] / "plain.pt", weights_only=True))
    assert_same_training(found, trained_plainly(start, JOINT), start, rtol=1e-6)


def test_synchronised_batch_normalisation_trains_as_one_process_by_running_statistics(run: Any) -> None:
    """The pass of the classification loss joins the batch, that of the term needs no statistics of it."""
    start = Net(torch.nn.BatchNorm2d(6)).double()
    found, module = copy.deepcopy(start), Trained(start, term(batch_norm="evaluation"))
    found.load_state_dict(torch.load(run[0] / "synchronised.pt", weights_only=True))
    trainer(precision="64-true").fit(module, DataLoader(JOINT, batch_size=None))
    assert_same_training(found, module.model, start, rtol=1e-6)


def test_processes_agree_on_the_weight(run: Any) -> None:
    """It follows the mean of what each measures on its own images, and the parameters stay equal."""
    first, second = run[1]
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
