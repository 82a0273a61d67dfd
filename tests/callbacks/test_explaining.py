"""What every explaining callback does in a Trainer: finds the classifier, hears its forward, leaves all as it was."""

import copy
import pickle
import signal
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from callbacks.trainers import (
    MEAN,
    STD,
    Forwards,
    calls_model,
    classifier,
    imported,
    loader,
    packages,
    run_stage,
    trainer,
)
from support import assert_same_state, random_images, small_net, state_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from lightning_xai import (
    AverageDrop,
    Faithfulness,
    GradCAM,
    GuidedGradient,
    InputGradient,
    ModelIntegrity,
    SaliencyMaps,
)
from lightning_xai.callbacks import base
from lightning_xai.callbacks.base import ExplainingCallback
from lightning_xai.callbacks.batches import first_two
from lightning_xai.explain import capture_for
from lightning_xai.scores import centered
from lightning_xai.trace import Trace, plain_tensors, run

METHODS = {"gradcam": GradCAM("conv2"), "gradient": InputGradient()}


class Probe(ExplainingCallback):
    """Wants everything, and keeps what it heard."""

    def __init__(self, attributions: Any = METHODS, **options: Any) -> None:
        super().__init__(attributions, **options)
        self.traces: list[Trace] = []
        self.labels: list[Tensor | None] = []
        self.found: nn.Module | None = None

    def names(self) -> set[str]:
        return set()

    def wants(self, trainer: Any, dataloader_idx: int) -> bool:
        return True

    def heard(self, trainer: Any, trace: Trace, labels: Any, boxes: Any, dataloader_idx: int) -> None:
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        self.found = self.model
        if not trainer.sanity_checking:
            self.traces.append(trace)
            self.labels.append(labels)


def faithfulness(**options: Any) -> Faithfulness:
    """One method and one metric, without controls."""
    return Faithfulness(
        {"gradcam": GradCAM("conv2")}, [AverageDrop()], **{"mean": MEAN, "std": STD, "controls": {}, **options}
    )


def saliency_maps(**options: Any) -> SaliencyMaps:
    """Four images of one method."""
    return SaliencyMaps({"gradcam": GradCAM("conv2")}, **{"mean": MEAN, "std": STD, "n_images": 4, **options})


BOTH = [pytest.param(faithfulness, id="Faithfulness"), pytest.param(saliency_maps, id="SaliencyMaps")]


class NoLogs(pl.loggers.logger.DummyLogger):
    """Somebody looks: without a logger, SaliencyMaps does nothing."""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What callbacks tell the user."""
    messages: list[str] = []
    monkeypatch.setattr(base, "rank_zero_info", messages.append)
    return messages


# Both packages


@pytest.mark.parametrize("name", packages())
@pytest.mark.parametrize("make", BOTH)
def test_callbacks_are_callbacks_of_both_packages(name: str, make: Callable[[], Any]) -> None:
    """Each Trainer checks for its own class."""
    assert isinstance(make(), imported(name).Callback)


# Mean and std that the data say


def unsaid(kind: type, **options: Any) -> Any:
    """A callback that is not told by what images are standardised."""
    return kind(GradCAM("conv2"), *([[AverageDrop()]] if kind is Faithfulness else []), **options)


def test_mean_and_std_come_from_the_data(said: list[str]) -> None:
    """From the dataset's transforms, also of a subset, or from the datamodule's; told once for all callbacks."""
    plain, told = loader(), loader()
    told.dataset.transform = v2.Compose([v2.Normalize(MEAN, STD)])
    datamodule = pl.LightningDataModule()
    datamodule.val_dataloader = lambda: plain
    datamodule.val_transform = v2.Normalize(MEAN, STD)
    for data in (told, DataLoader(Subset(told.dataset, range(4)), 4), datamodule):
        said.clear()
        both = [unsaid(SaliencyMaps), unsaid(Faithfulness)]
        trainer(callbacks=both, logger=NoLogs()).validate(classifier(), data, verbose=False)
        (one,) = [text for text in said if text.startswith("Images are standardised")]
        assert one.startswith(f"Images are standardised by mean {MEAN} and std {STD}, as the transforms of ")
    for kind in (SaliencyMaps, Faithfulness):
        with pytest.raises(ValueError, match=r"the data say no mean and std \(dataset TensorDataset.*Pass one number"):
            trainer(callbacks=[unsaid(kind)], logger=NoLogs()).validate(classifier(), plain, verbose=False)


def test_a_wrong_standardisation_of_the_data_is_noticed() -> None:
    """What was found is checked like what was given."""
    data = loader()
    data.dataset.transform = v2.Normalize((0.0,) * 3, (255.0,) * 3)
    with pytest.raises(ValueError, match="standardised with mean"):
        trainer(callbacks=[unsaid(Faithfulness)]).validate(classifier(), data, verbose=False)


# The forward is heard


@pytest.mark.parametrize("name", packages())
@pytest.mark.parametrize(
    ("stage", "inference_mode"), [("fit", True), ("validate", True), ("validate", False), ("test", True)]
)
def test_the_steps_own_forward_is_heard(name: str, stage: str, inference_mode: bool) -> None:
    """No pass is added, and its trace gives what an own pass gives, bit for bit, once per batch with its labels."""
    lightning, probe, data = imported(name), Probe(classifier="model"), loader()
    module = classifier(lightning)
    forwards = Forwards(module.model)
    settings = {"callbacks": [probe], "inference_mode": inference_mode, "num_sanity_val_steps": 0}
    run_stage(stage, trainer(lightning, **settings), module, data)

    assert forwards.sizes == [4, 4]
    assert torch.equal(torch.cat(probe.labels), data.dataset.tensors[1])
    for trace, (images, _) in zip(probe.traces, data, strict=True):
        own = run(module.model, images, capture_for(module.model, METHODS.values()))
        targets = torch.zeros(4, dtype=torch.long)
        assert torch.equal(trace.images, images)
        assert torch.equal(trace.logits, own.logits)
        assert torch.equal(trace.image_gradient(centered, targets), own.image_gradient(centered, targets))
        heard, expected = (one.gradient(centered, targets, of="conv2") for one in (trace, own))
        assert torch.equal(heard, expected)


def test_two_callbacks_share_one_forward() -> None:
    """They get the very same trace, so that gradients are shared, too."""
    first, second, module = Probe(classifier="model"), Probe(classifier="model"), classifier()
    forwards = Forwards(module.model)
    trainer(callbacks=[first, second]).validate(module, loader(), verbose=False)
    assert forwards.sizes == [4, 4]
    assert all(one is other for one, other in zip(first.traces, second.traces, strict=True))


@pytest.mark.parametrize("order", [("model.inner", None), (None, "model.inner")])
def test_one_callback_may_explain_a_part_of_what_the_other_explains(order: tuple[str | None, ...]) -> None:
    """The outer classifier's graph is cut where the inner one is heard: it is run once more, and both agree."""
    layers = ["conv2" if name == "model.inner" else "inner.conv2" for name in order]
    callbacks = [Probe({"gradcam": GradCAM(layer)}, classifier=name) for layer, name in zip(layers, order, strict=True)]
    module = classifier(model=Around(lambda logits: 2 * logits))
    trainer(callbacks=callbacks).validate(module, loader(), verbose=False)
    targets = torch.zeros(4, dtype=torch.long)
    for traces in zip(*(one.traces for one in callbacks), strict=True):
        gradients = {
            name: trace.gradient(centered, targets, of=layer)
            for name, layer, trace in zip(order, layers, traces, strict=True)
        }
        assert torch.equal(gradients[None], 2 * gradients["model.inner"])


def test_own_passes_of_one_callback_are_not_heard_by_the_next() -> None:
    """Images that another callback runs in between are none of the step's."""

    class Busy(Probe):
        def heard(self, trainer: Any, trace: Trace, labels: Any, boxes: Any, dataloader_idx: int) -> None:
            trace.predict(trace.images + 1)
            trace.rerun(trace.images + 2)
            super().heard(trainer, trace, labels, boxes, dataloader_idx)

    def in_parts(module: Any, images: Tensor) -> None:
        module.model.forward(images)  # neither module hooks nor a shadowed forward see the parts

    busy, probe, data = Busy(classifier="model"), Probe(classifier="model"), loader()
    for step in (calls_model, in_parts, lambda module, images: None):
        probe.traces.clear()
        trainer(callbacks=[busy, probe]).validate(classifier(step=step), data, verbose=False)
        assert torch.equal(torch.cat([trace.images for trace in probe.traces]), data.dataset.tensors[0])


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("step", [calls_model, lambda module, images: None], ids=["heard", "own"])
def test_all_passes_have_the_trainers_precision(precision: str, step: Callable[..., Any]) -> None:
    """Otherwise scores of images and of masked images would differ for rounding alone."""
    probe = Probe(classifier="model")
    validation = trainer(callbacks=[probe], precision=precision)
    validation.validate(classifier(step=step), loader(), verbose=False)
    for trace in probe.traces:
        assert trace.logits.dtype == {"3": torch.float32, "6": torch.float64, "b": torch.bfloat16}[precision[0]]
        with plain_tensors():
            assert torch.equal(trace.predict(trace.images), trace.logits)


def test_test_time_augmentation_explains_the_first_pass() -> None:
    """Several passes of the batch, in the order in which they were made."""
    probe, data = Probe(classifier="model"), loader()
    module = classifier(step=lambda module, images: [module.model(images), module.model(images.flip(3))])
    trainer(callbacks=[probe]).validate(module, data, verbose=False)
    assert torch.equal(torch.cat([trace.images for trace in probe.traces]), data.dataset.tensors[0])


# The classifier is found


class Around(nn.Module):
    """A classifier in a module that does something with its logits."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.last = small_net(), last

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.inner(images))


@pytest.mark.parametrize(
    ("step", "model", "found"),
    [
        pytest.param(lambda module, images: module(images), None, "model", id="the LightningModule hands it on"),
        pytest.param(calls_model, None, "model", id="a module inside is called"),
        pytest.param(lambda module, images: module.forward(images), None, "model", id="its forward hands it on"),
        pytest.param(lambda module, images: module.model.forward(images), None, "model", id="the forward of a module"),
        pytest.param(calls_model, Around(lambda logits: logits.softmax(1)), "model.inner", id="softmax around it"),
        pytest.param(calls_model, Around(torch.sigmoid), "model.inner", id="sigmoid around it"),
        pytest.param(calls_model, Around(lambda logits: 2 * logits - 1), "model", id="temperature around it"),
    ],
)
def test_the_classifier_is_found(step: Callable[..., Any], model: nn.Module | None, found: str) -> None:
    """The outermost module that took the images and gave logits."""
    probe, module = Probe({"gradcam": GradCAM()}), classifier(step=step, model=model)
    trainer(callbacks=[probe]).validate(module, loader(), verbose=False)
    assert probe.found is module.get_submodule(found)
    assert len(probe.traces) == 2


@pytest.mark.parametrize("call", ["__call__", "forward"])
def test_the_lightning_module_itself_may_be_the_classifier(call: str) -> None:
    """Where its forward makes the logits, whether the step calls that or the module."""

    class Whole(type(classifier())):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            return 2 * self.model(images) - 1

    probe, module = Probe({"gradcam": GradCAM("model.conv2")}), Whole()
    module.validation_step = lambda batch, batch_idx: getattr(module, call)(batch[0])
    trainer(callbacks=[probe]).validate(module, loader(), verbose=False)
    assert probe.found is module
    assert len(probe.traces) == 2


def test_a_backbone_and_a_head_in_the_forward_of_the_lightning_module_are_heard(said: list[str]) -> None:
    """As in lightly's classifiers and Lightning's fine-tuning example: neither of the two is the classifier."""

    class Benchmark(type(classifier())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.head = nn.Linear(6, 3)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.model(images).flatten(start_dim=1)
            return self.head(features)

    module, methods = Benchmark(), {"gradcam": GradCAM(), "gradient": InputGradient()}
    module.validation_step = lambda batch, batch_idx: module.forward(batch[0])
    probe, integrity = Probe(methods), ModelIntegrity()
    trainer(callbacks=[probe, integrity]).validate(module, loader(), verbose=False)
    assert probe.found is module
    assert integrity.finding is not None
    assert "forward" not in module.__dict__
    assert "forward" not in module.model.__dict__
    assert not any("was not heard" in one for one in said)


def test_the_first_batch_is_not_lost_and_costs_one_pass() -> None:
    """Nobody can listen before the classifier is known; to find the layer, one image is passed."""
    probe, module, data = Probe({"gradcam": GradCAM()}), classifier(), loader(12)
    forwards = Forwards(module.model)
    trainer(callbacks=[probe]).validate(module, data, verbose=False)
    assert forwards.sizes == [4, 1, 4, 4, 4]
    assert torch.equal(torch.cat([trace.images for trace in probe.traces]), data.dataset.tensors[0])


def test_images_are_those_that_the_classifier_got() -> None:
    """A step may standardise pixels; the first batch, too, is explained as the classifier saw it."""
    probe, data = Probe({"gradcam": GradCAM()}), loader()
    module = classifier(step=lambda module, images: module.model((images - 0.5) / 0.25))
    trainer(callbacks=[probe]).validate(module, data, verbose=False)
    expected = (data.dataset.tensors[0] - 0.5) / 0.25
    assert torch.equal(torch.cat([trace.images for trace in probe.traces]), expected)


class Parts(nn.Module):
    """A classifier as timm builds it, with a head that takes feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv1(images))


def by_parts(module: Any, images: Tensor) -> None:
    """The classifier is driven through its parts, as by forward_features and forward_head."""
    module.model.head(module.model.conv1(images))


def test_a_classifier_driven_through_its_parts_must_be_named() -> None:
    """Its head takes feature maps and gives logits: it is not the classifier."""
    with pytest.raises(
        RuntimeError, match=r"takes images \(N, C, H, W\) and gives logits.*found none.*classifier='model'"
    ):
        trainer(callbacks=[Probe()]).validate(classifier(step=by_parts, model=Parts()), loader(), verbose=False)


@pytest.mark.parametrize("layer", ["conv1", None])
def test_a_named_classifier_driven_through_its_parts_is_run_once_more(said: list[str], layer: str | None) -> None:
    """Which is said once, and never when the step calls the classifier."""
    probe, module, data = (
        Probe({"gradcam": GradCAM(layer)}, classifier="model"),
        classifier(step=by_parts, model=Parts()),
        loader(12),
    )
    forwards = Forwards(module.model)
    trainer(callbacks=[probe]).validate(module, data, verbose=False)
    assert forwards.sizes == ([4] * 6 if layer else [4, 1, *[4] * 5])
    assert torch.equal(torch.cat([trace.images for trace in probe.traces]), data.dataset.tensors[0])
    assert len(said) == 2
    assert sum("Probe: the validation step was not heard calling the classifier" in one for one in said) == 1


def test_a_step_that_calls_the_classifier_hears_no_complaint(said: list[str]) -> None:
    """Also where the first batch was needed to find it."""
    trainer(callbacks=[Probe({"gradcam": GradCAM()})]).validate(classifier(), loader(), verbose=False)
    expected = "The classifier that is explained: 'model' (SmallNet), 3 classes. `classifier=` names another module."
    assert said == [expected]


def test_a_backbone_is_no_classifier() -> None:
    """It takes images and gives (N, D), which a head turns into logits outside of any module that can be explained."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = small_net(classes=16), nn.Linear(16, 3)

    module = classifier(step=lambda module, images: module.model.head(module.model.backbone(images)), model=Features())
    with pytest.raises(RuntimeError, match="found none"):
        trainer(callbacks=[Probe()]).validate(module, loader(), verbose=False)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_modules_beside_the_classifier_are_passed_over() -> None:
    """A frozen network of a metric, say; hooks cannot be put on it."""
    probe, module = Probe({"gradcam": GradCAM()}), classifier()
    module.other = torch.jit.script(nn.Conv2d(3, 3, 1))
    trainer(callbacks=[probe]).validate(module, loader(), verbose=False)
    assert probe.found is module.model


@pytest.mark.parametrize("layer", [None, "model.conv2"])
def test_the_lightning_module_itself_can_be_named(layer: str | None) -> None:
    """Its `forward` is heard, also where the step calls that and not the module."""
    module, data = classifier(step=lambda module, images: module.forward(images)), loader()
    probe = Probe({"gradcam": GradCAM(layer)}, classifier="self")
    forwards = Forwards(module.model)
    trainer(callbacks=[probe]).validate(module, data, verbose=False)
    assert probe.found is module
    assert forwards.sizes == ([4, 4] if layer else [4, 1, 4, 4])
    assert torch.equal(torch.cat([trace.images for trace in probe.traces]), data.dataset.tensors[0])


def test_student_and_teacher_must_be_told_apart() -> None:
    """Both take the images and give logits; both are named in the error."""
    model = nn.ModuleDict({"student": small_net(), "teacher": small_net()})
    module = classifier(step=lambda module, images: [one(images) for one in module.model.values()], model=model)
    with pytest.raises(RuntimeError, match=r"found 'model\.student', 'model\.teacher'\. Name the right one"):
        trainer(callbacks=[Probe()]).validate(module, loader(), verbose=False)
    probe = Probe(classifier="model.teacher")
    trainer(callbacks=[probe]).validate(module, loader(), verbose=False)
    assert probe.found is model["teacher"]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_an_unknown_classifier_is_told_about_before_any_batch(stage: str) -> None:
    """The argument is named, and near names are listed."""
    module = classifier()
    forwards = Forwards(module.model)
    with pytest.raises(
        ValueError, match=r"`classifier` expected the name of a module, got 'modle'\. Near names: model"
    ):
        run_stage(stage, trainer(callbacks=[Probe(classifier="modle")], num_sanity_val_steps=0), module, loader())
    assert module.trained == len(forwards.sizes) == 0


def test_an_unknown_layer_of_a_named_classifier_is_told_about_before_any_batch() -> None:
    """Near names are listed."""
    module, probe = classifier(), Probe({"gradcam": GradCAM("con2")}, classifier="model")
    forwards = Forwards(module.model)
    with pytest.raises(
        ValueError, match=r"`layer` expected the name of a module, got 'con2'\. Near names: conv2, conv1"
    ):
        trainer(callbacks=[probe], num_sanity_val_steps=0).fit(module, loader(), loader())
    assert module.trained == len(forwards.sizes) == 0


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_a_classifier_made_late_can_be_named(hook: str) -> None:
    """Both hooks of the LightningModule come after the callbacks' setup."""
    module, probe = classifier(), Probe(classifier="model")
    del module.model
    setattr(module, hook, lambda **stage: setattr(module, "model", small_net()))
    trainer(callbacks=[probe]).validate(module, loader(), verbose=False)
    assert probe.found is module.model


# Batches


def test_batches_of_any_form_are_taken_apart_by_unpack() -> None:
    """A dict here."""
    samples = [{"image": image, "class": i % 3} for i, image in enumerate(random_images(8))]
    probe = Probe(classifier="model", unpack=lambda batch: (batch["image"], batch["class"]))
    trainer(callbacks=[probe]).validate(classifier(), torch.utils.data.DataLoader(samples, 4), verbose=False)
    assert torch.cat(probe.labels).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_batch_without_labels_is_the_images() -> None:
    """Nothing but a tensor."""
    images = random_images(2)
    assert first_two(images) == (images, None)
    assert first_two([images]) == (images, None)


@pytest.mark.parametrize(
    ("unpack", "message"),
    [
        (first_two, r"The batch expected to be a sequence.*got dict.*`unpack=lambda batch"),
        (lambda batch: (batch, None), r"`unpack` expected to give images \(N, C, H, W\).*got dict for images"),
        (lambda batch: (batch["image"][0], None), r"got torch.float32 of shape \(3, 8, 8\) for images"),
    ],
)
def test_a_wrong_unpack_is_told_about_in_the_sanity_check(unpack: Any, message: str) -> None:
    """Before anything was trained."""
    samples = [{"image": image, "class": i} for i, image in enumerate(random_images(8))]
    module = classifier()
    with pytest.raises(TypeError, match=message):
        trainer(callbacks=[Probe(unpack=unpack)]).fit(module, loader(), torch.utils.data.DataLoader(samples, 4))
    assert module.trained == 0


# Names


@pytest.mark.parametrize(
    ("make", "other", "names"),
    [
        (faithfulness, {"n_images": 4}, r"\['gradcam'\]"),
        (saliency_maps, {"n_images": 8}, r"\['maps'\]"),
    ],
)
def test_two_callbacks_of_a_kind_need_different_names(make: Callable[..., Any], other: Any, names: str) -> None:
    """Lightning would log the mean of both values, and pictures would overwrite one another."""
    with pytest.raises(ValueError, match=f"expected to log under different names, got {names} in both"):
        trainer(callbacks=[make(), make(**other)]).validate(classifier(), loader(), verbose=False)


def test_two_callbacks_of_a_kind_with_different_names_stand_side_by_side() -> None:
    """Two baselines, say."""
    second = Faithfulness({"other": GradCAM("conv2")}, [AverageDrop()], mean=MEAN, std=STD, controls={})
    running = trainer(callbacks=[faithfulness(), second, saliency_maps()], logger=NoLogs())
    running.validate(classifier(), loader(), verbose=False)
    values = running.callback_metrics
    assert values["val/xai/other/AverageDrop"] == values["val/xai/gradcam/AverageDrop"]


# The sanity check


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (Probe({"gradcam": GradCAM("model.conv2")}), "Near names: conv2"),
        (
            Probe({"gradcam": GradCAM("head")}),
            r"`layer` 'head' expected an output of shape \(N, D, h, w\), got \(4, 3\)",
        ),
        (faithfulness(mean=(0.0,) * 3, std=(255.0,) * 3, classifier="model"), "standardised with mean"),
        (faithfulness(targets=3, classifier="model"), r"`targets` expected classes in \[0, 2\], got 3"),
        (saliency_maps(targets=3, classifier="model"), r"`targets` expected classes in \[0, 2\], got 3"),
    ],
)
def test_what_is_wrong_shows_in_the_sanity_check(callback: Any, error: str, tmp_path: Any) -> None:
    """Not after the first epoch, which may be hours later."""
    module = classifier(step=lambda module, images: module(images))
    logger = pl.loggers.CSVLogger(tmp_path)
    with pytest.raises(ValueError, match=error):
        trainer(callbacks=[callback], logger=logger).fit(module, loader(), loader())
    assert module.trained == 0


@pytest.mark.parametrize("make", BOTH)
def test_a_single_odd_image_ends_no_run(make: Callable[..., Any]) -> None:
    """Alone in the last batch it looks like one that was never standardised: its values fill [0, 1]."""
    odd = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    data = loader(images=torch.cat([random_images(8), odd]))
    trainer(callbacks=[make(n_images=9)], logger=NoLogs()).validate(classifier(), data, verbose=False)
    with pytest.raises(ValueError, match="standardised with mean"):
        trainer(callbacks=[make()], logger=NoLogs()).validate(classifier(), loader(images=odd), verbose=False)


# Everything is as it was


@pytest.fixture
def interruptible() -> Any:
    """Lightning ignores further interrupts once it has seen one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def fails_at(batch: int, error: BaseException, after: bool) -> Callable[..., Any]:
    """A validation step that raises in its n-th batch, before or after it has called the classifier."""
    seen: list[int] = []

    def step(module: Any, images: Tensor) -> None:
        seen.append(1)
        if len(seen) == batch and not after:
            raise error
        module.model(images)
        if len(seen) == batch:
            raise error

    return step


def prepared(step: Callable[..., Any]) -> tuple[Any, Any]:
    """A LightningModule, and data that draw no random numbers from the process; modes are restored by neither."""
    return classifier(step=step).eval(), loader(generator=torch.Generator())


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("named", [{"classifier": "model"}, {}], ids=["named", "found"])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_model_and_process_are_as_before(make: Callable[..., Any], named: dict[str, str], stage: str) -> None:
    """Modes, parameters, gradients, buffers, hooks, forward, random state, grad and inference mode."""
    module, data = prepared(calls_model)
    before = state_of(module.model)
    run_stage(stage, trainer(callbacks=[make(**named)], logger=NoLogs()), module, data)
    assert_same_state(before, state_of(module.model))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("named", [{"classifier": "model"}, {}], ids=["named", "found"])
@pytest.mark.parametrize(
    ("error", "raised"), [(ArithmeticError("unhappy"), ArithmeticError), (KeyboardInterrupt(), SystemExit)]
)
@pytest.mark.parametrize(("batch", "after"), [(1, True), (2, False), (2, True)])
def test_model_and_process_are_as_before_also_after_an_exception(
    make: Callable[..., Any],
    named: dict[str, str],
    error: BaseException,
    raised: type[BaseException],
    batch: int,
    after: bool,
) -> None:
    """While the classifier is still looked for, before it was called, and after."""
    module, data = prepared(fails_at(batch, error, after))
    before = state_of(module.model)
    with pytest.raises(raised):
        trainer(callbacks=[make(**named)], logger=NoLogs()).validate(module, data, verbose=False)
    assert_same_state(before, state_of(module.model))


@pytest.mark.parametrize("make", BOTH)
def test_an_attribution_that_raises_leaves_the_model_as_before(make: Callable[..., Any]) -> None:
    """In the callback's own time, while another callback still listens."""
    bad, (module, data) = make(classifier="model"), prepared(calls_model)
    bad.attributions = {"guided": GuidedGradient(score=lambda logits, targets: logits)}
    before = state_of(module.model)
    with pytest.raises(ValueError, match="one number per image"):
        trainer(callbacks=[bad, Probe(classifier="model")], logger=NoLogs()).validate(module, data, verbose=False)
    assert_same_state(before, state_of(module.model))


@pytest.mark.parametrize("named", [True, False])
def test_training_does_not_see_the_callbacks(named: bool) -> None:
    """Same seed with and without: parameters, buffers and random state are equal bit for bit.

    Dropout draws random numbers, and validation falls between the batches whose gradients are accumulated.
    """
    results = []
    for callbacks in ([], [faithfulness(controls=None), saliency_maps()]):
        for callback in callbacks:
            callback.classifier = "model" if named else None
        pl.seed_everything(0)
        module = classifier()
        settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 1}
        training = trainer(callbacks=callbacks, logger=NoLogs(), **settings)
        training.fit(module, loader(shuffle=True), loader())
        results.append({**module.state_dict(), "random": torch.get_rng_state()})
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("make", BOTH)
def test_no_own_forward_after_the_last_validation_batch(make: Callable[..., Any]) -> None:
    """Callbacks that average weights swap the training weights back in from on_validation_epoch_end on."""

    class Swap(pl.Callback):
        validating = True

        def on_validation_epoch_start(self, *args: Any) -> None:
            self.validating = True

        def on_validation_epoch_end(self, *args: Any) -> None:
            self.validating = False

        on_validation_end = on_validation_epoch_end

    swap, late, module = Swap(), [], classifier()
    module.model.register_forward_pre_hook(
        lambda model, args: None if swap.validating or model.training else late.append(1)
    )
    trainer(callbacks=[swap, make()], max_epochs=2, logger=NoLogs()).fit(module, loader(), loader())
    assert late == []


@pytest.mark.parametrize("how", ["in place", "wrapped", "the LightningModule"])
def test_a_compiled_classifier_is_explained(how: str) -> None:
    """Compiled code would see no hooks that came later; afterwards it runs compiled again."""
    torch.compiler.reset()
    module, probe, data = classifier(), Probe({"gradcam": GradCAM()}), loader()
    expected = run(module.model, data.dataset.tensors[0], capture_for(module.model, METHODS.values())).logits
    plain = module
    if how == "in place":
        module.model.compile(backend="eager")
    elif how == "wrapped":
        module.model = torch.compile(module.model, backend="eager")
    else:
        module = torch.compile(module, backend="eager")
    stance = torch._dynamo.eval_frame._stance
    trainer(callbacks=[probe, Probe(classifier="model"), Probe({"gradcam": GradCAM()})]).validate(
        module, data, verbose=False
    )
    assert torch.equal(torch.cat([trace.logits for trace in probe.traces]), expected)
    assert torch._dynamo.eval_frame._stance == stance
    assert plain.model.training


# Copies, checkpoints


@pytest.mark.parametrize("make", BOTH)
def test_callbacks_can_be_copied_and_pickled(make: Callable[..., Any]) -> None:
    """Before a run, as when processes are spawned; the copies work."""
    for twin in (copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
        trainer(callbacks=[twin], logger=NoLogs()).validate(classifier(), loader(), verbose=False)


@pytest.mark.parametrize("make", BOTH)
def test_callbacks_keep_no_model(make: Callable[..., Any]) -> None:
    """After a run nothing of ours refers to the network; `log` and `log_dict` are Lightning's."""
    callback = make()
    trainer(callbacks=[callback], logger=NoLogs()).fit(classifier(), loader(), loader())
    ours = {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}
    assert b"SmallNet" in pickle.dumps(small_net())
    assert b"SmallNet" not in pickle.dumps(ours)


@pytest.mark.parametrize("make", BOTH)
def test_checkpoints_hold_nothing_of_ours_and_runs_resume(make: Callable[..., Any], tmp_path: Any) -> None:
    """Nothing is needed: metrics begin anew in each epoch."""
    module, path = classifier(), tmp_path / "last.ckpt"
    first = trainer(callbacks=[make()], logger=NoLogs())
    first.fit(module, loader(), loader())
    first.save_checkpoint(path)
    assert not any(torch.load(path, weights_only=True)["callbacks"].values())
    resumed = trainer(callbacks=[make()], max_epochs=2, logger=NoLogs())
    resumed.fit(classifier(), loader(), loader(), ckpt_path=path)
    assert resumed.current_epoch == 2


def test_a_callback_serves_one_module_after_the_other() -> None:
    """The classifier of an earlier run is forgotten."""
    probe = Probe({"gradcam": GradCAM()})
    for module in (classifier(), classifier()):
        trainer(callbacks=[probe]).validate(module, loader(), verbose=False)
        assert probe.found is module.model
    with pytest.raises(RuntimeError, match="known only from the first validation or test batch on"):
        _ = probe.model
