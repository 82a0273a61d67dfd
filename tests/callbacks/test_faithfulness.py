"""Faithfulness logs what one computes by hand from the definitions, under every habit of a Trainer."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from callbacks import wandb_reader
from callbacks.definitions import by_hand
from callbacks.trainers import (
    MEAN,
    STD,
    Forwards,
    classifier,
    confident_net,
    imported,
    loader,
    packages,
    run_stage,
    trainer,
)
from support import random_images
from torch import Tensor, nn

from lightning_xai import Attribution, AverageDrop, AverageGain, AverageIncrease, Faithfulness, GradCAM, InputGradient
from lightning_xai.baselines import blurred, mean_color
from lightning_xai.callbacks import faithfulness as module_under_test
from lightning_xai.scores import label, log_sigmoid, second_best, sigmoid
from lightning_xai.trace import Trace

METHODS = {"gradcam": GradCAM("conv2"), "gradient": InputGradient()}


def measured(methods: dict[str, Attribution] | None = None, **options: Any) -> Faithfulness:
    """All three metrics, without controls."""
    metrics = [AverageDrop(), AverageIncrease(), AverageGain()]
    return Faithfulness(methods or METHODS, metrics, **{"mean": MEAN, "std": STD, "controls": {}, **options})


def close_to(expected: Any) -> Any:
    """Up to what float32 loses between one image and a batch; values are percentages."""
    return pytest.approx(expected, rel=1e-4, abs=1e-4)


def logged(trainer: Any, name: str, stage: str = "val", end: str = "") -> dict[str, float]:
    """What is logged for one method."""
    names = ("AverageDrop", "AverageIncrease", "AverageGain")
    return {metric: trainer.callback_metrics[f"{stage}/xai/{name}/{metric}{end}"].item() for metric in names}


class Recorder(pl.loggers.logger.DummyLogger):
    """A logger that keeps every row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, {name: value for name, value in metrics.items() if "/xai/" in name}))


# Values and keys


@pytest.mark.parametrize("name", packages())
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_values_are_those_computed_by_hand(name: str, stage: str) -> None:
    """Over batches of unequal size, of the last epoch alone, and nothing else is logged."""
    lightning, data = imported(name), loader(7)
    module, running = classifier(lightning), trainer(lightning, callbacks=[measured()], max_epochs=2)
    run_stage(stage, running, module, data)

    part = "test" if stage == "test" else "val"
    for method in METHODS:
        expected = by_hand(module.model, data.dataset.tensors[0], METHODS[method])
        assert logged(running, method, part) == close_to(expected)
        assert 0 < expected["AverageDrop"] < 100
    metrics = ("AverageDrop", "AverageIncrease", "AverageGain", "ConstantMaps")
    assert set(running.callback_metrics) == {f"{part}/xai/{method}/{one}" for method in METHODS for one in metrics}


def test_each_method_costs_one_masked_pass_for_all_metrics() -> None:
    """Beside the validation step's own."""
    module, data = classifier(), loader(7)
    forwards = Forwards(module.model)
    trainer(callbacks=[measured(classifier="model")]).validate(module, data, verbose=False)
    assert forwards.sizes == [4] * 3 + [3] * 3


@pytest.mark.parametrize(
    ("targets", "rule"),
    [
        (None, lambda logits, labels: logits.argmax(1)),
        (2, lambda logits, labels: torch.full_like(labels, 2)),
        (label, lambda logits, labels: labels),
        (second_best, lambda logits, labels: logits.argsort(1)[:, -2]),
    ],
)
def test_the_class_is_fixed_from_the_unmasked_image(targets: Any, rule: Callable[..., Tensor]) -> None:
    """Predicted, given, the label or the runner-up."""
    module, data = classifier(), loader()
    running = trainer(callbacks=[measured(targets=targets)])
    running.validate(module, data, verbose=False)
    images, labels = data.dataset.tensors
    classes = rule(module.model.eval()(images), labels)
    expected = by_hand(module.model, images, METHODS["gradcam"], classes)
    assert logged(running, "gradcam") == close_to(expected)


def test_the_baseline_can_be_chosen() -> None:
    """The mean colour is 0 in standardised images."""
    module, data = classifier(), loader()
    running = trainer(callbacks=[measured(baseline=mean_color)])
    running.validate(module, data, verbose=False)
    expected = by_hand(module.model, data.dataset.tensors[0], METHODS["gradcam"], baseline=0.0)
    assert logged(running, "gradcam") == close_to(expected)


def test_a_baseline_may_depend_on_the_images() -> None:
    """A blur is the blur of the images that count."""
    running = trainer(callbacks=[measured(baseline=blurred, n_images=3)])
    running.validate(classifier(), loader(), verbose=False)
    assert logged(running, "gradcam")["AverageDrop"] > 0


def test_heads_with_one_logit_are_measured_by_the_sigmoid() -> None:
    """The confidence is that of the predicted side."""
    methods = {"gradcam": GradCAM("conv2", score=sigmoid)}
    module, data = classifier(model=confident_net(classes=1)), loader()
    data.dataset.tensors[1].remainder_(2)
    running = trainer(callbacks=[measured(methods, log_probability=log_sigmoid)])
    running.validate(module, data, verbose=False)
    expected = by_hand(
        module.model,
        data.dataset.tensors[0],
        methods["gradcam"],
        probability=lambda logits: torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1),
    )
    assert logged(running, "gradcam") == close_to(expected)


def test_metrics_can_be_named() -> None:
    """And are copied: the user's own object is not updated."""
    mine = AverageDrop()
    running = trainer(callbacks=[Faithfulness(METHODS, {"drop": mine}, mean=MEAN, std=STD, controls={})])
    running.validate(classifier(), loader(), verbose=False)
    assert "val/xai/gradcam/drop" in running.callback_metrics
    assert mine.n_images == 0


def test_controls_stand_beside_the_methods() -> None:
    """A Fake-CAM hides one pixel and so loses next to nothing."""
    running = trainer(callbacks=[measured(controls=None)])
    running.validate(classifier(), loader(), verbose=False)
    names = {key.split("/")[2] for key in running.callback_metrics}
    assert names == {"gradcam", "gradient", "random", "gaussian", "edges", "fake_cam", "shuffled"}
    assert logged(running, "fake_cam")["AverageDrop"] < logged(running, "gradcam")["AverageDrop"]


class Blank(Attribution):
    """Shows nothing of images whose first value is negative."""

    def __call__(self, trace: Trace, targets: Tensor) -> Tensor:
        return trace.images[:, 0] * (trace.images[:, :1, 0, 0] > 0)[..., None]


def test_the_share_of_maps_that_show_nothing_is_logged() -> None:
    """In percent of all images."""
    images = random_images(8)
    images[:, 0, 0, 0] = torch.tensor([1.0, 1, 1, -1, 1, 1, 1, -1])
    running = trainer(callbacks=[measured({"blank": Blank()})])
    running.validate(classifier(), loader(images=images), verbose=False)
    assert running.callback_metrics["val/xai/blank/ConstantMaps"] == 25


# Habits of a Trainer


@pytest.mark.parametrize("n_images", [1, 3, 4, 6, 100])
def test_the_first_n_images_count(n_images: int) -> None:
    """Fewer than a batch, a batch, some of the second batch, more than there are; no masked pass more is made."""
    module, data = classifier(), loader(7)
    forwards = Forwards(module.model)
    methods = {"gradcam": METHODS["gradcam"]}
    running = trainer(callbacks=[measured(methods, n_images=n_images, classifier="model")])
    running.validate(module, data, verbose=False)
    masked = {1: [4, 1, 3], 3: [4, 3, 3], 4: [4, 4, 3], 6: [4, 4, 3, 2], 100: [4, 4, 3, 3]}
    assert forwards.sizes == masked[n_images]
    expected = by_hand(module.model, data.dataset.tensors[0][:n_images], METHODS["gradcam"])
    assert logged(running, "gradcam") == close_to(expected)


@pytest.mark.parametrize("as_dict", [True, False])
def test_each_dataloader_has_keys_and_images_of_its_own(as_dict: bool) -> None:
    """The index is the key's last part; n_images counts for each."""
    loaders: Any = [loader(7), loader(5, images=random_images(5).flip(0) / 2)]
    module, running = classifier(), trainer(callbacks=[measured(n_images=6)])
    running.validate(module, dict(zip("ab", loaders, strict=True)) if as_dict else loaders, verbose=False)
    for i, data in enumerate(loaders):
        expected = by_hand(module.model, data.dataset.tensors[0][:6], METHODS["gradcam"])
        assert logged(running, "gradcam", end=f"/dataloader_idx_{i}") == close_to(expected)
    assert all(key.endswith(("/dataloader_idx_0", "/dataloader_idx_1")) for key in running.callback_metrics)


def test_nothing_is_logged_in_the_sanity_check() -> None:
    """The rehearsal leaves nothing, neither in the logger nor in the first epoch's values."""
    recorder, module, data = Recorder(), classifier(), loader()
    running = trainer(callbacks=[measured()], logger=recorder, num_sanity_val_steps=2)
    running.fit(module, data, data)
    assert [step for step, row in recorder.rows if row] == [1]
    expected = by_hand(module.model, data.dataset.tensors[0], METHODS["gradcam"])
    assert logged(running, "gradcam") == close_to(expected)


def test_validation_within_an_epoch_logs_each_time() -> None:
    """Every training batch here."""
    recorder, data = Recorder(), loader()
    trainer(callbacks=[measured()], logger=recorder, val_check_interval=1).fit(classifier(), data, data)
    rows = [(step, row) for step, row in recorder.rows if row]
    assert [step for step, _ in rows] == [0, 1]
    assert rows[0][1] != rows[1][1]


def test_limit_val_batches_limits_the_images() -> None:
    """What is not validated is not measured."""
    module, data = classifier(), loader(7)
    running = trainer(callbacks=[measured()], limit_val_batches=1)
    running.validate(module, data, verbose=False)
    expected = by_hand(module.model, data.dataset.tensors[0][:4], METHODS["gradcam"])
    assert logged(running, "gradcam") == close_to(expected)


def test_no_validation_is_fine() -> None:
    """Nothing to measure, nothing logged."""
    running = trainer(callbacks=[measured()], limit_val_batches=0)
    running.fit(classifier(), loader(), loader())
    assert running.callback_metrics == {}


def test_fast_dev_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And still measures one batch."""
    monkeypatch.chdir(tmp_path)
    running = trainer(callbacks=[measured()], logger=pl.loggers.CSVLogger(tmp_path), fast_dev_run=True)
    running.fit(classifier(), loader(), loader())
    assert "val/xai/gradcam/AverageDrop" in running.callback_metrics
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", packages())
def test_checkpoints_and_stopping_can_watch_our_keys(name: str, tmp_path: Path) -> None:
    """The best model by Average Drop is kept, and training stops when nothing improves by a mile."""
    lightning = imported(name)
    key = "val/xai/gradcam/AverageDrop"
    best = lightning.callbacks.ModelCheckpoint(tmp_path, monitor=key, mode="min", save_top_k=1)
    stop = lightning.callbacks.EarlyStopping(key, mode="min", min_delta=100, patience=1)
    module, data = classifier(lightning), loader()
    running = trainer(lightning, callbacks=[measured(), best, stop], max_epochs=9, enable_checkpointing=True)
    running.fit(module, data, data)
    assert running.current_epoch == 2
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    module.load_state_dict(weights)
    expected = by_hand(module.model, data.dataset.tensors[0], METHODS["gradcam"])
    assert best.best_model_score.item() == close_to(expected["AverageDrop"])


def test_one_callback_serves_validate_fit_and_test_in_turn() -> None:
    """What was made in inference mode is not used outside of it."""
    callback, module, data = measured(controls=None), classifier(), loader()
    for stage in ("validate", "fit", "test", "validate"):
        running = trainer(callbacks=[callback])
        run_stage(stage, running, module.train(), data)
        expected = by_hand(module.model, data.dataset.tensors[0], METHODS["gradcam"])
        assert logged(running, "gradcam", "test" if stage == "test" else "val") == close_to(expected)


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_explained_where_they_are_validated(first: bool) -> None:
    """Lightning's own average takes the place of the weights during validation only."""
    average = pl.callbacks.WeightAveraging()
    callbacks = [average, measured()] if first else [measured(), average]
    module, data = classifier(), loader()
    kept: dict[str, Any] = {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
            kept["trained"] = copy.deepcopy(pl_module.model)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            kept["averaged"] = copy.deepcopy(average._average_model.module.model)

    running = trainer(callbacks=[*callbacks, Keep()], max_epochs=2)
    running.fit(module, data, data)
    averaged, trained = (
        by_hand(kept[name], data.dataset.tensors[0], METHODS["gradcam"]) for name in ("averaged", "trained")
    )
    assert logged(running, "gradcam") == close_to(averaged)
    assert trained != close_to(averaged)


# Numbers that are none


class SometimesNaN(nn.Module):
    """Gives NaN or infinity for images that are brighter in the corner than it can stand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = confident_net()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) / (images[:, :1, 0, 0] < 2.0)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the callback warns of."""
    messages: list[str] = []
    monkeypatch.setattr(module_under_test, "rank_zero_warn", messages.append)
    return messages


@pytest.mark.parametrize("bad", [[1], [0, 1, 2, 3], range(8)])
def test_images_without_finite_logits_are_left_out_with_one_warning(warned: list[str], bad: Sequence[int]) -> None:
    """The others count, the run goes on, and images that were left out count for n_images."""
    images = random_images(9).clamp(-1.9, 1.9)
    images[list(bad), 0, 0, 0] = 3.0
    methods = {"gradcam": GradCAM("inner.conv2")}
    module, data = classifier(model=SometimesNaN()), loader(images=images)
    running = trainer(callbacks=[measured(methods, n_images=8)], max_epochs=2)
    running.validate(module, data, verbose=False)

    good = [i for i in range(8) if i not in bad]
    values = logged(running, "gradcam")
    if good:
        assert values == close_to(by_hand(module.model, images[good], methods["gradcam"]))
    else:
        assert all(value != value for value in values.values())
    assert warned == ["Faithfulness: images whose logits are NaN or infinite are left out of the metrics."]


class NaNForBlack(nn.Module):
    """Gives NaN for what only masked images have: black pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = confident_net()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) / (images != -2.0).all(3).all(2).all(1)[:, None]


def test_masked_images_with_nan_are_left_out_too(warned: list[str]) -> None:
    """An overflow that only the masked image meets ends no run."""
    running = trainer(callbacks=[measured({"gradcam": GradCAM("inner.conv2")})])
    running.validate(classifier(model=NaNForBlack()), loader(), verbose=False)
    assert len(warned) == 1


def test_training_goes_on_after_its_weights_became_nan(warned: list[str]) -> None:
    """A diverged run is the user's to notice."""
    module = classifier()
    nn.init.constant_(module.model.head.bias, torch.nan)
    running = trainer(callbacks=[measured(controls=None)], max_epochs=2)
    running.fit(module, loader(), loader())
    assert running.current_epoch == 2
    assert len(warned) == 1


# Loggers


def test_wandb_gets_values_and_their_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real offline run, read back: every epoch's values by global step, and which end is the good one."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    wandb.teardown()  # it reads the environment once for the whole process
    recorder, data = Recorder(), loader()
    running = trainer(
        callbacks=[measured()], logger=[pl.loggers.WandbLogger(save_dir=tmp_path), recorder], max_epochs=2
    )
    running.fit(classifier(), data, data)
    wandb.finish()
    wandb.teardown()

    key = "val/xai/gradcam/AverageDrop"
    rows = [(row["trainer/global_step"], row[key]) for row in wandb_reader.history(tmp_path) if key in row]
    assert rows == [(step, pytest.approx(row[key])) for step, row in recorder.rows if row]
    assert [step for step, _ in rows] == [1, 3]
    metrics = wandb_reader.metrics(tmp_path)
    assert metrics[key].summary.min
    assert metrics["val/xai/gradcam/ConstantMaps"].summary.min
    assert metrics["val/xai/gradient/AverageGain"].summary.max


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_images": 0}, ValueError, "`n_images` expected 1 or more, or None for all, got 0"),
        ({"controls": {"gradcam": InputGradient()}}, ValueError, r"`controls` expected other names.*\['gradcam'\]"),
        ({"methods": [GradCAM()]}, TypeError, "`attributions` expected an Attribution or a dict of them, got list"),
        ({"methods": {"gradcam": GradCAM}}, TypeError, r"Create it: `GradCAM\(\)`"),
    ],
)
def test_wrong_arguments_are_told_about_at_once(options: Any, error: type[Exception], message: str) -> None:
    """Before there is a Trainer."""
    with pytest.raises(error, match=message):
        measured(**options)


@pytest.mark.parametrize("metrics", [[], AverageDrop(), [AverageDrop], {"drop": 1}, "AverageDrop"])
def test_metrics_are_a_list_or_a_dict_of_metrics(metrics: Any) -> None:
    """Neither one alone nor a class."""
    with pytest.raises(TypeError, match=r"`metrics` expected a list or a dict of metrics such as \[AverageDrop\(\)\]"):
        Faithfulness(METHODS, metrics, mean=MEAN, std=STD)


def test_a_metric_that_was_not_created_is_told_so() -> None:
    """Not that it has to be wrapped."""
    with pytest.raises(TypeError, match=r"Create it: `AverageDrop\(\)` instead of `AverageDrop`"):
        Faithfulness(METHODS, [AverageDrop], mean=MEAN, std=STD)
