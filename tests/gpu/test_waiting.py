"""Between loggings the CPU does not wait for the GPU, but where it must know a value to go on."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from callbacks.trainers import MEAN, STD, classifier, trainer
from gpu.device import CUDA, DEVICE, there, waits
from gpu.methods import METHODS
from support import random_images, small_net
from torch.utils.data import DataLoader

from lightning_xai import AverageDrop, AverageGain, Faithfulness, GradCAM, GuidedGradientLoss, GuidedGradientMixin
from lightning_xai.explain import attribute, capture_for
from lightning_xai.scores import predicted, resolve_targets
from lightning_xai.trace import run

pytestmark = there

WHY = {
    "CAM": 1,  # whether the head is what class activation maps need
    "AblationCAM": 1,
    "ScoreCAM": 1,  # which channels vary: the others cost no pass
    "LRP": 40,  # whether inputs have two signs, which costs twice as much, and whether relevance was lost
    "CLRP": 40,
    "NormalizedCLRP": 60,
    "SGLRP": 40,
    "DeepLIFT": 2,
    "IntegratedGradients": 2,  # numbers of its rule, which lie on the CPU
    "Random": 1,  # the images' content seeds the noise
    "Shuffled": 1,
    "SmoothGrad": 1,
    "SmoothGradCAMPlusPlus": 1,
    "FromCallable": 5,  # what others do
}
"""How often a method may wait, and why; all others not at all."""


@pytest.mark.parametrize("name", METHODS)
def test_maps_wait_only_where_a_value_decides_what_comes_next(name: str) -> None:
    """From a trace on; images and targets are there."""
    model, images = small_net().to(DEVICE), random_images(4, 16).to(DEVICE)
    method = METHODS[name]
    trace = run(model, images, capture_for(model, [method], model.last))
    targets = predicted(trace.logits)
    attribute(trace, targets, {name: method})  # what happens once is over
    with waits() as found:
        attribute(run(model, images, capture_for(model, [method], model.last)), targets, {name: method})
    assert len(found) <= WHY.get(name, 0), found


def test_targets_that_the_logits_give_are_not_looked_at() -> None:
    """They are classes."""
    with waits() as found:
        resolve_targets(None, torch.zeros(4, 3, device=DEVICE))
    assert not found


@pytest.mark.parametrize("options", [{}, {"batch_norm": "evaluation"}, {"fraction": 0.5}, {"layer": "relu"}], ids=str)
def test_a_training_step_waits_once(options: dict[str, Any]) -> None:
    """For whether the term is finite: that decides which loss is differentiated."""
    model, term = small_net().to(DEVICE).train(), GuidedGradientLoss(**options)
    images, targets = random_images(4, 16).to(DEVICE), torch.tensor([0, 1, 2, 0]).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(3):
        with waits() as found:
            optimizer.zero_grad()
            term(model, images, targets, F.cross_entropy, step).loss.backward()
            optimizer.step()
    assert len(found) <= 1, found


class Between(pl.Callback):
    """Counts from one batch's start to another's."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.found: list[str] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._at(batch_idx)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self._at(batch_idx)

    def _at(self, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.counting = waits()
            self.found = self.counting.__enter__()
        if batch_idx == self.last:
            self.counting.__exit__(None, None, None)


def on_device(**options: Any) -> Any:
    """A Trainer of these tests' device."""
    return trainer(accelerator="gpu" if CUDA else "cpu", log_every_n_steps=1000, num_sanity_val_steps=0, **options)


def data() -> Any:
    """Twelve batches on the device."""
    batches = [(random_images(4).to(DEVICE), torch.tensor([0, 1, 2, 0]).to(DEVICE)) for _ in range(12)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def waits_of_training(term: GuidedGradientLoss | None) -> list[str]:
    """In eight steps of a Trainer between two loggings."""
    plain = classifier()

    class Guided(GuidedGradientMixin, type(plain)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1]) if term is None else self.guided_gradient_loss(*batch)[0]

    module = Guided()
    module.interpretability = term or GuidedGradientLoss()
    counted = Between(2, 10)
    on_device(callbacks=[counted], limit_val_batches=0).fit(module, data(), data())
    return counted.found


def test_a_trainer_waits_no_more_often_for_what_the_term_logs() -> None:
    """Once a step as above; numbers are made on the device."""
    assert len(waits_of_training(GuidedGradientLoss())) <= len(waits_of_training(None)) + 8


def test_a_validation_batch_waits_for_what_it_is_asked_about() -> None:
    """Labels in range, logits no probabilities, finite, finite when masked; log-probabilities, two for a metric."""
    found = []
    method, metrics = GradCAM(), [AverageDrop(), AverageGain()]
    for callbacks in ([], [Faithfulness(method, metrics, controls={}, mean=MEAN, std=STD)]):
        counted = Between(2, 10)
        on_device(callbacks=[*callbacks, counted]).validate(classifier(), data(), verbose=False)
        found.append(counted.found)
    assert len(found[1]) - len(found[0]) <= 8 * 8, found[1][:8]
