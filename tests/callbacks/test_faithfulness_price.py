"""What Faithfulness costs, in forwards that are counted, and the shares that bound it."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from callbacks.trainers import MEAN, STD, Forwards, classifier, loader, trainer
from torch import Tensor

from common.data.cifar import MEAN as CIFAR_MEAN
from common.data.cifar import STD as CIFAR_STD
from common.data.cifar import CifarResNet, cifar10
from lightning_xai import (
    ADCC,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Deletion,
    Faithfulness,
    GradCAM,
    Insertion,
    SmoothGrad,
)
from lightning_xai.attribution import Random, Shuffled
from lightning_xai.callbacks import faithfulness as module_under_test
from lightning_xai.metrics import ExplanationMetric, Infidelity, RelativePerformance
from lightning_xai.networks import load_weights

DATA = os.environ.get("LIGHTNING_XAI_DATA")
METHODS = {"cam": GradCAM("conv2")}
DROP = "val/xai/{}/AverageDrop"


def faithfulness(metrics: Any = None, **options: Any) -> Faithfulness:
    """One CAM, named classifier: no pass is needed to find it."""
    return Faithfulness(
        options.pop("methods", METHODS), metrics or [AverageDrop()], mean=MEAN, std=STD, classifier="model", **options
    )


def validated(callback: Faithfulness, n: int = 8, batch_size: int = 4) -> tuple[dict[str, float], list[int]]:
    """What is logged for n images, and the sizes of all forwards."""
    module = classifier()
    forwards = Forwards(module.model)
    running = trainer(callbacks=[callback])
    running.validate(module, loader(n, batch_size), verbose=False)
    return {key: value.item() for key, value in running.callback_metrics.items()}, forwards.sizes


# Passes


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        ([AverageDrop(), AverageIncrease(), AverageGain()], 3.0),
        ([AverageDrop(), AverageIncrease(), AverageGain(), Insertion(), Deletion()], 25.0),
    ],
)
def test_an_explained_image_costs_few_passes_with_the_default_controls(
    metrics: list[ExplanationMetric], passes: float
) -> None:
    """The validation step's own included; of images that were not asked for only that one."""
    _, sizes = validated(faithfulness(metrics), n=272, batch_size=16)
    explained = 256
    assert (sum(sizes) - 16) / explained <= passes


@pytest.mark.skipif(not DATA, reason="needs the folder $LIGHTNING_XAI_DATA")
def test_curves_of_a_trained_network_cost_what_the_readme_says() -> None:
    """A ResNet-20 on CIFAR-10, whose curves bend as real ones do."""
    network, data = CifarResNet(3), Path(str(DATA))
    load_weights(network, data / "weights" / "cifar10_resnet20.safetensors")
    forwards, metrics = Forwards(network), [AverageDrop(), AverageIncrease(), AverageGain(), Insertion(), Deletion()]
    callback = Faithfulness(
        {"cam": GradCAM("layer3")}, metrics, mean=CIFAR_MEAN, std=CIFAR_STD, classifier="model", control_images=8
    )
    images = cifar10(data, "test", 64)[0]
    trainer(callbacks=[callback]).validate(classifier(model=network), loader(64, 16, images), verbose=False)
    assert sum(forwards.sizes) / 64 == pytest.approx(23, abs=2)


def test_maps_of_several_methods_fill_passes_together() -> None:
    """Three images of a batch of four, under two methods."""
    _, sizes = validated(faithfulness(methods=METHODS | {"random": Random()}, controls={}, n_images=3))
    assert sizes == [4, 4, 2, 4]


def test_confidence_metrics_share_one_masked_pass_with_any_other() -> None:
    """However many there are."""
    _, sizes = validated(faithfulness([AverageDrop(), AverageGain(), ADCC()], controls={}), n=4)
    assert sizes == [4, 4, 4]  # the step's, the masked images' scores, their maps


# Shares


def test_controls_see_the_first_images_only() -> None:
    """A batch that holds the last of them is taken apart."""
    values, sizes = validated(faithfulness(controls={"random": Random(), "other": Random(seed=1)}, control_images=6))
    assert sizes == [4, 4, 4, 4, 4, 4, 2, 2]
    few, _ = validated(faithfulness(controls={"random": Random(), "other": Random(seed=1)}, n_images=6))
    every, _ = validated(faithfulness(controls={}))
    for name in ("random", "other"):
        assert values[DROP.format(name)] == pytest.approx(few[DROP.format(name)], rel=1e-4)
    assert values[DROP.format("cam")] == pytest.approx(every[DROP.format("cam")], rel=1e-4)


def test_methods_are_compared_with_the_best_control_on_images_that_both_have() -> None:
    """In the metric's unit; below 0 where a control wins."""
    controls = {"random": Random(), "other": Random(seed=1)}
    metrics: list[ExplanationMetric] = [AverageDrop(), AverageGain()]
    values, _ = validated(faithfulness(metrics, controls=controls, control_images=3))
    few, _ = validated(faithfulness(metrics, controls=controls, n_images=3))
    for metric, best in {"AverageDrop": min, "AverageGain": max}.items():
        cam, *others = (few[f"val/xai/{name}/{metric}"] for name in ("cam", *controls))
        margin = values[f"val/xai/cam/{metric}_over_controls"]
        assert margin == pytest.approx((cam - best(others)) * (1 if best is max else -1), abs=1e-3)
    assert not any("over_controls" in key for key in values if "/cam/" not in key)


def test_all_images_can_be_asked_of_the_controls() -> None:
    """As experiments do that pair them image by image."""
    callback = faithfulness([AverageDrop(keep_values=True)], controls={"random": Random()}, control_images=None)
    validated(callback, n=40)
    assert [len(one["AverageDrop"].values) for one in callback.states[0].values()] == [40, 40]


def test_comparisons_count_the_images_that_all_their_methods_have() -> None:
    """With a control the control's, without one all."""
    metrics = {
        "with": RelativePerformance(("cam", "random"), threshold=0.0),
        "without": RelativePerformance(("cam", "plain"), threshold=0.0),
    }
    methods = METHODS | {"plain": GradCAM("conv1")}
    values, _ = validated(faithfulness(metrics, methods=methods, controls={"random": Random()}, control_images=3))
    assert values["val/xai/with/with_n_used"] == 3
    assert values["val/xai/without/without_n_used"] == 8


@pytest.mark.parametrize(("every", "measured"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (9, [0])])
def test_epochs_can_be_left_out(every: int, measured: list[int]) -> None:
    """Without a pass; the first one is always measured."""
    module, epochs = classifier(), []
    forwards = Forwards(module.model)

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if len(forwards.sizes) > 2:
                epochs.append(trainer.current_epoch)
            forwards.sizes.clear()

    callback = faithfulness(controls={}, every_n_epochs=every)
    running = trainer(callbacks=[callback, Watch()], max_epochs=4, num_sanity_val_steps=0)
    running.fit(module, loader(), loader())
    assert epochs == measured


def test_validate_and_test_measure_always() -> None:
    """Whatever the epoch of the checkpoint."""
    running, module = trainer(max_epochs=2, callbacks=[faithfulness(every_n_epochs=9)]), classifier()
    running.fit(module, loader(), loader())
    for stage in ("validate", "test"):
        getattr(running, stage)(module, loader(), verbose=False)
        assert f"{'val' if stage == 'validate' else 'test'}/xai/cam/AverageDrop" in running.callback_metrics


def test_the_best_checkpoint_can_be_watched_where_epochs_are_left_out(tmp_path: Any) -> None:
    """The value stands until there is another."""
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor=DROP.format("cam"), mode="min")
    running = trainer(max_epochs=3, callbacks=[faithfulness(every_n_epochs=2), best], enable_checkpointing=True)
    running.fit(classifier(), loader(), loader())
    assert best.best_model_path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the callback informs of."""
    messages: list[str] = []
    monkeypatch.setattr(module_under_test, "rank_zero_info", messages.append)
    return messages


def clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A clock that goes on by so much while Faithfulness works, and by 1 while the network does."""
    now, attribute = [0.0], module_under_test.attribute

    def slow(*args: Any) -> Any:
        now[0] += seconds
        return attribute(*args)

    def step(*args: Any) -> None:
        now[0] += 1.0

    monkeypatch.setattr(module_under_test, "attribute", slow)
    monkeypatch.setattr(module_under_test.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.nn.Module, "_price_step", step, raising=False)


@pytest.mark.parametrize(("seconds", "said"), [(0.1, False), (3.0, True)])
def test_a_dear_share_of_the_validation_is_told_once(
    monkeypatch: pytest.MonkeyPatch, told: list[str], seconds: float, said: bool
) -> None:
    """In training alone; with what makes it less."""
    clock(monkeypatch, seconds)

    def step(module: Any, images: Tensor) -> Tensor:
        module._price_step()
        return module.model(images)

    running = trainer(callbacks=[faithfulness()], max_epochs=2)
    running.fit(classifier(step=step), loader(), loader())
    assert len(told) == said
    if said:
        assert "75% of the validation (6.0 of 8.0 s) went into 6 methods and controls. `n_images`" in told[0]


@pytest.mark.parametrize("name", ["n_images", "control_images", "every_n_epochs"])
def test_shares_are_positive(name: str) -> None:
    """None is all, where there is a None."""
    with pytest.raises(ValueError, match=f"`{name}` expected 1 or more"):
        faithfulness(**{name: 0})


# Noise


@pytest.mark.parametrize("metric", [ADCC(), Infidelity(normalize=True)])
@pytest.mark.parametrize("method", [SmoothGrad(n_samples=3), Shuffled(GradCAM("conv2")), Random()])
def test_values_do_not_depend_on_the_batch_size(metric: ExplanationMetric, method: Any) -> None:
    """Though methods draw noise, and masked images hold the rounding of maps."""
    values = []
    for batch_size in (1, 3, 8):
        callback = faithfulness([copy.deepcopy(metric)], methods={"noisy": method}, controls={})
        found, _ = validated(callback, 8, batch_size)
        values.append(found[f"val/xai/noisy/{type(metric).__name__}"])
    assert values == pytest.approx([values[0]] * 3, rel=1e-3)
