"""Images of a tensor subclass (MONAI's MetaTensor, torchvision's tv_tensors) have the numbers of plain ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from callbacks.test_faithfulness_families import with_boxes
from callbacks.trainers import MEAN, STD, classifier, trainer
from support import Marked, random_images, small_net
from test_explain import EVERY
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from lightning_xai import Faithfulness, GradCAM, GuidedGradientLoss, ModelIntegrity, SaliencyMaps, explain, metrics
from lightning_xai.integrity import inspect_model
from lightning_xai.metrics import masked_scores

KINDS = [
    pytest.param(lambda values: Marked(values, meta={"spacing": 1}), id="metatensor"),
    pytest.param(lambda values: tv_tensors.Image(values) if values.ndim == 4 else tv_tensors.Mask(values), id="tv"),
]
Marking = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("mark", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_maps_are_those_of_plain_images(name: str, mark: Marking) -> None:
    """And plain themselves; targets may be of a subclass, too."""
    model, images, targets = small_net(), random_images(3), torch.tensor([0, 2, 1])
    for classes in (None, targets):
        expected = explain(model, images, classes, attributions=EVERY[name])
        marked = classes if classes is None else mark(classes)
        found = explain(model, mark(images), marked, attributions=EVERY[name])
        assert type(found) is Tensor
        assert torch.equal(found, expected)


def logged(callbacks: list[Any], images: Tensor, labels: Tensor) -> dict[str, float]:
    """What callbacks log of one epoch of training and validation."""
    data = DataLoader(list(zip(images, labels, strict=True)), 4, collate_fn=collated)
    running = trainer(callbacks=callbacks)
    running.fit(classifier(), data, data)
    return {key: value.item() for key, value in running.callback_metrics.items()}


def collated(samples: list[Any]) -> tuple[Tensor, Tensor]:
    """Batches of the samples' own class."""
    images, labels = zip(*samples, strict=True)
    as_images, as_labels = type(images[0]), type(labels[0])
    return torch.stack(images).as_subclass(as_images), torch.stack(labels).as_subclass(as_labels)


@pytest.mark.parametrize("mark", KINDS)
def test_callbacks_log_what_they_log_of_plain_images(mark: Marking) -> None:
    """With metrics of every family."""

    def callbacks() -> list[Any]:
        metric = [
            metrics.AverageDrop(), metrics.ADCC(), metrics.Complexity(), metrics.Deletion(steps=3),
            metrics.Insertion(steps=3), metrics.MaximalPatchMasking(sizes=(1, 3)), metrics.ROAD(percentages=(50,)),
            metrics.Infidelity(n_samples=2, normalize=True), metrics.MaxSensitivity(n_samples=2),
            metrics.PointingGame(), metrics.EnergyInBox(), metrics.ClassSensitivity(), metrics.GradientAlignment(),
            metrics.GridPointingGame(n=1, confidence=0.0), metrics.ParameterRandomization(["head"]),
        ]  # fmt: skip
        methods = {"cam": GradCAM("conv2")}
        return [
            Faithfulness(methods, metric, mean=MEAN, std=STD, unpack=with_boxes),
            SaliencyMaps(methods, mean=MEAN, std=STD),
            ModelIntegrity(mean=MEAN, std=STD),
        ]

    images, labels = random_images(8), torch.arange(8) % 3
    expected = logged(callbacks(), images, labels)
    found = logged(callbacks(), mark(images), mark(labels))
    assert len(expected) > 20
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("mark", KINDS)
@pytest.mark.parametrize("options", [{}, {"batch_norm": "evaluation"}, {"fraction": 0.5}, {"layer": "conv2"}])
def test_the_training_term_is_that_of_plain_images(mark: Marking, options: Any) -> None:
    """The loss, and what it makes of the parameters."""

    def steps(images: Tensor, targets: Tensor) -> tuple[float, list[Tensor]]:
        model = small_net()
        loss = GuidedGradientLoss(**options)(model, images, targets, F.cross_entropy, step=0).loss
        return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))

    images, targets = random_images(4), torch.tensor([0, 2, 1, 1])
    (expected, gradients), (found, own) = steps(images, targets), steps(mark(images), mark(targets))
    assert found == expected
    assert all(torch.equal(*pair) for pair in zip(gradients, own, strict=True))


@pytest.mark.parametrize("mark", KINDS)
def test_functions_and_metrics_alone_give_the_same_numbers(mark: Marking) -> None:
    """Without callbacks, and of maps that are marked themselves."""
    model, images, targets = small_net(), random_images(4), torch.tensor([0, 2, 1, 1])
    maps = explain(model, images, targets, attributions=GradCAM("conv2"))

    def numbers(images: Tensor, maps: Tensor, targets: Tensor) -> list[float]:
        with torch.no_grad():
            masked = masked_scores(model, images, maps, targets, baseline=torch.zeros(()))
            drop = metrics.AverageDrop()
            drop.update(torch.zeros_like(masked), masked)
            complexity = metrics.Complexity()
            complexity.update(maps)
            curve = metrics.deletion_curve(model, images, maps, targets, baseline=torch.zeros(()), steps=3)
        return [*masked.tolist(), drop.compute().item(), complexity.compute().item(), curve.probabilities.sum().item()]

    assert numbers(mark(images), mark(maps), mark(targets)) == pytest.approx(numbers(images, maps, targets))
    assert inspect_model(model, mark(images)).suspicion == inspect_model(model, images).suspicion
