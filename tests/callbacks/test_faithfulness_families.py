"""Faithfulness runs every family of metrics: each number is that of the pure functions, on the same images."""

import re
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from callbacks.trainers import MEAN, STD, Forwards, classifier, loader, trainer
from support import random_images, small_net
from torch import Tensor, nn
from torchmetrics import MaxMetric, SumMetric

from lightning_xai import Faithfulness, GradCAM, GradCAMPlus, InputGradient, explain, metrics, trace
from lightning_xai.baselines import black, blurred
from lightning_xai.metrics import (
    ADCC,
    ROAD,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    ClassSensitivity,
    Complexity,
    Deletion,
    EnergyInBox,
    ExplanationMetric,
    FromMetric,
    GradientAlignment,
    GridPointingGame,
    Infidelity,
    Insertion,
    MaximalPatchMasking,
    MaxSensitivity,
    ParameterRandomization,
    PointingGame,
    RelativePerformance,
    Sample,
    gradient_alignment,
    infidelity,
    parameter_randomization,
    perturbation_curves,
)
from lightning_xai.scores import centered

METHODS = {"cam": GradCAM("conv2"), "plus": GradCAMPlus("conv2")}
BOX = torch.tensor([[1, 1, 5, 5]])


def with_boxes(batch: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The same box in every image."""
    images, labels = batch
    return images, labels, [BOX] * len(images)


def run(metrics: Any, methods: Any = METHODS, **options: Any) -> tuple[Any, Any, dict[str, float]]:
    """Module, data and what was logged."""
    module, data, running = classifier(), loader(7), None
    callback = Faithfulness(methods, metrics, mean=MEAN, std=STD, controls={}, **options)
    running = trainer(callbacks=[callback])
    running.validate(module, data, verbose=False)
    values = {key.removeprefix("val/xai/"): value.item() for key, value in running.callback_metrics.items()}
    return module, data.dataset.tensors[0], values


def test_every_family_logs_finite_numbers_under_its_names() -> None:
    """Localisation, curves, patches, imputation, robustness, sensitivity, coherence, gradients and comparisons."""
    metrics = [
        AverageDrop(), ADCC(), Complexity(), Deletion(steps=3), Insertion(steps=3), MaximalPatchMasking(sizes=(1, 3)),
        ROAD(percentages=(50,)), Infidelity(n_samples=2, normalize=True), MaxSensitivity(n_samples=2), PointingGame(),
        EnergyInBox(), ClassSensitivity(), GradientAlignment(), RelativePerformance(("cam", "plus"), threshold=0.0),
        GridPointingGame(n=1, confidence=0.0),
    ]  # fmt: skip
    _, _, values = run(metrics, unpack=with_boxes)
    cam = {key.removeprefix("cam/") for key in values if key.startswith("cam/")}
    assert cam >= {"AverageDrop", "ADCC", "Deletion", "patch_change_3", "road_gap", "PointingGame", "class_ssim"}
    assert {"model/GradientAlignment", "RelativePerformance/plus_vs_cam", "RelativePerformance/n_used"} <= set(values)
    assert not any(key.startswith(("cam/Gradient", "cam/plus_vs")) for key in values)
    assert values["RelativePerformance/n_used"] == 7
    assert {key for key, value in values.items() if value != value} == set()


def test_alignment_in_a_network_of_smooth_rectifiers_takes_them_where_it_is_told() -> None:
    """The cosine is that of the two gradients; without a word they are refused, and the word is named."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model, data = nn.Sequential(*layers, nn.Linear(6, 3)).eval(), loader(4)
    for rectifiers, raised in (("all", nullcontext()), ("relu", pytest.raises(ValueError, match='`rectifiers="all"`'))):
        metrics = [GradientAlignment(rectifiers=rectifiers)]
        running = trainer(callbacks=[Faithfulness({"cam": GradCAM("2")}, metrics, mean=MEAN, std=STD, controls={})])
        with raised:
            running.validate(classifier(model=model), data, verbose=False)
            pass_ = trace.run(model, data.dataset.tensors[0], trace.Capture(image_gradient=True))
            targets = pass_.logits.argmax(1)
            plain, guided = (pass_.image_gradient(centered, targets, rectifiers=rule) for rule in (None, "all"))
            expected = gradient_alignment(plain, guided).mean().item()
            found = running.callback_metrics["val/xai/model/GradientAlignment"].item()
            assert found == pytest.approx(expected, abs=1e-5)


def test_curves_are_those_of_the_functions_and_share_their_ends() -> None:
    """Deletion to black, insertion from the blurred image; the image's score is known, and one black image will do."""
    module, data = classifier(), loader(4)
    forwards = Forwards(module.model)
    callback = Faithfulness(
        {"cam": METHODS["cam"]}, [Deletion(steps=3), Insertion(steps=3)], mean=MEAN, std=STD, controls={},
        classifier="model",
    )  # fmt: skip
    running = trainer(callbacks=[callback])
    running.validate(module, data, verbose=False)
    assert forwards.sizes == [4] + [1] + 2 * [4] + [4] + 2 * [4]

    images = data.dataset.tensors[0]
    with torch.no_grad():
        targets = module.model.eval()(images).argmax(1)
        curves = perturbation_curves(
            module.model, images, explain(module.model, images, attributions=METHODS["cam"]), targets, steps=3,
            baseline=black(images, MEAN, STD), insertion_baseline=blurred(images, MEAN, STD),
        )  # fmt: skip
    for name, curve in (("Deletion", curves.deletion_curve), ("Insertion", curves.insertion_curve)):
        expected = torch.trapezoid(curve, curves.fractions, dim=1).mean().item()
        assert running.callback_metrics[f"val/xai/cam/{name}"].item() == pytest.approx(expected, rel=1e-4)


def test_drop_increase_gain_and_comparison_of_m_methods_cost_m_masked_passes() -> None:
    """Beside the validation step's own pass, for each batch."""
    module, data = classifier(), loader(7)
    forwards = Forwards(module.model)
    metrics = [AverageDrop(), AverageIncrease(), AverageGain(), RelativePerformance(tuple(METHODS))]
    callback = Faithfulness(METHODS, metrics, mean=MEAN, std=STD, controls={}, classifier="model")
    trainer(callbacks=[callback]).validate(module, data, verbose=False)
    assert forwards.sizes == [4] * 3 + [3] * 3


def test_metrics_of_several_methods_keep_their_values_within_reach() -> None:
    """As those of one method do: what a recipe draws after the epoch."""
    metric = RelativePerformance(tuple(METHODS), threshold=0.0, keep_values=True)
    callback = Faithfulness(METHODS, [metric, AverageDrop()], mean=MEAN, std=STD)
    trainer(callbacks=[callback]).validate(classifier(), loader(7), verbose=False)
    [shared] = callback.shared_states
    assert list(shared) == ["RelativePerformance"]
    assert shared["RelativePerformance"].values.shape == (7, 2, 2)


def test_options_of_a_metric_reach_its_measurement() -> None:
    """Infidelity of the raw gradient, with its own number of samples."""
    module, images, values = run([Infidelity(n_samples=3)], {"gradient": InputGradient()})
    with torch.no_grad():
        targets = module.model.eval()(images).argmax(1)
        maps = explain(module.model, images, attributions=InputGradient())
        expected = infidelity(module.model, images, maps, targets, n_samples=3).mean().item()
    assert values["gradient/Infidelity"] == pytest.approx(expected, rel=1e-4)


def test_named_metrics_of_one_class_log_apart() -> None:
    """Numbers of several parts keep both names."""
    _, _, values = run({"small": MaximalPatchMasking(sizes=(1,)), "large": MaximalPatchMasking(sizes=(5,))})
    assert {"cam/small_patch_change_1", "cam/large_patch_change_5"} <= set(values)


def test_two_metrics_of_one_class_need_names() -> None:
    """One would hide the other."""
    with pytest.raises(ValueError, match=r"`metrics` expected one metric of each class.*Name them"):
        run([Insertion(steps=2), Insertion(steps=3)])


def test_missing_boxes_are_told_about() -> None:
    """With the way to get them."""
    with pytest.raises(ValueError, match=r"A metric expected boxes, got none. Let `unpack` take them"):
        run([PointingGame()])


def test_a_metric_of_something_else_is_told_about() -> None:
    """With the way to wrap it."""
    with pytest.raises(TypeError, match=r"got \[SumMetric\(\)\]. Wrap other metrics of torchmetrics: `FromMetric"):
        run([SumMetric()])


def test_comparisons_of_unknown_methods_are_told_about() -> None:
    """The names there are."""
    with pytest.raises(ValueError, match=r"`methods` expected names of attributions, \['cam', 'plus'\], got \['x'\]"):
        run([RelativePerformance(("cam", "x"))])


class Brightest(ExplanationMetric):
    """A metric of a user's own."""

    higher_is_better = True
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")

    def measure(self, sample: Sample) -> None:
        assert len(sample.maps) == len(sample.labels)
        self.update(sample.maps)

    def update(self, maps: Tensor) -> None:
        self.largest = torch.maximum(self.largest, maps.max())

    def compute(self) -> Tensor:
        return self.largest


@pytest.mark.parametrize("metric", [Brightest(), FromMetric(MaxMetric(), lambda sample: {"value": sample.maps})])
def test_a_users_metric_is_handed_the_sample(metric: ExplanationMetric) -> None:
    """One of the contract, or any of torchmetrics that is wrapped."""
    module, images, values = run({"brightest": metric})
    expected = explain(module.model, images, attributions=METHODS["cam"]).max().item()
    assert values["cam/brightest"] == pytest.approx(expected, rel=1e-4)
    assert values["cam/brightest"] != values["plus/brightest"]


def test_randomisation_is_that_of_the_function() -> None:
    """Of each method, though they share the copies of the classifier."""
    module, images, values = run([ParameterRandomization(["head", "conv2"])])
    targets = module.model.eval()(images).argmax(1)
    for name, method in METHODS.items():
        explained = partial(explain, images=images, targets=targets, attributions=method)
        found = parameter_randomization(module.model, explained, layers=["head", "conv2"])
        expected = found.randomization_similarities.nanmean(1).nanmean(0)
        for part, value in zip(("rank_correlation", "absolute_rank_correlation", "ssim"), expected, strict=True):
            assert values[f"{name}/randomization_{part}"] == pytest.approx(value.item(), abs=1e-3)


def table_of_metrics() -> list[str]:
    """The names of the classes in the table of the package's docstring."""
    rows = str(metrics.__doc__).split("| metric | question | better |")[1].split("\n\n")[0]
    return [name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1:2][0] if row else "")]


@pytest.mark.parametrize("name", table_of_metrics())
@pytest.mark.parametrize("channels", [2, 3])
def test_every_metric_of_the_table_runs(name: str, channels: int) -> None:
    """In a Trainer, and whatever the number of channels."""
    kind: Any = getattr(metrics, name)
    arguments: dict[type, Any] = {RelativePerformance: (tuple(METHODS),), ParameterRandomization: (["head"],)}
    options: dict[type, Any] = {GridPointingGame: {"n": 1, "confidence": 0.0}, RelativePerformance: {"threshold": 0.0}}
    metric = kind(*arguments.get(kind, ()), **options.get(kind, {}))
    model, images = small_net(channels=channels), random_images(3, channels=channels)
    standard: dict[str, Any] = {"mean": MEAN[:1] * channels, "std": STD[:1] * channels}
    running = trainer(callbacks=[Faithfulness(METHODS, [metric], controls={}, unpack=with_boxes, **standard)])
    running.validate(classifier(model=model), loader(images=images), verbose=False)
    values = {key: value.item() for key, value in running.callback_metrics.items() if "ConstantMaps" not in key}
    assert len(values) >= 1
    assert all(value == value or key.endswith("_log_std") for key, value in values.items()), values
