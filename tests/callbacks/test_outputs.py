"""What classifiers give: probabilities are refused, and logits are found in what holds them."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from callbacks.trainers import MEAN, STD, classifier, confident_net, loader, trainer
from pytorch_lightning.loggers.logger import DummyLogger
from support import random_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import (
    LRP,
    AverageDrop,
    Faithfulness,
    GradCAM,
    GuidedGradientLoss,
    GuidedGradientMixin,
    InputGradient,
    ModelIntegrity,
    SaliencyMaps,
    explain,
    inspect_model,
)
from lightning_xai.attribution import Random
from lightning_xai.integrity import Fingerprint, Threshold, Verdict
from lightning_xai.regularization import keep_saturated
from lightning_xai.scores import log_sigmoid, sigmoid
from lightning_xai.trace import Calling

IMAGES = random_images(6)
DATA = DataLoader(TensorDataset(random_images(8), torch.arange(8) % 2), 4)


class Ending(nn.Module):
    """A small network with something behind its logits."""

    def __init__(self, end: Callable[[Tensor], Any], classes: int = 3) -> None:
        super().__init__()
        self.net, self.end = confident_net(classes), end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.net(images))


PROBABILITIES = {
    "softmax": (lambda z: z.softmax(1), 3, torch.log),
    "hand-written softmax": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), 3, torch.log),
    "one sigmoid": (torch.sigmoid, 1, torch.logit),
    "one sigmoid in another shape": (lambda z: torch.sigmoid(z[:, 0]).unsqueeze(1), 1, torch.logit),
    "many sigmoids": (F.sigmoid, 3, torch.logit),
}
all_probabilities = pytest.mark.parametrize("kind", PROBABILITIES)


def callbacks_of(methods: Any, k: int, **options: Any) -> list[Any]:
    """All three."""
    probability: dict[str, Any] = {"log_probability": log_sigmoid} if k == 1 else {}
    return [
        SaliencyMaps(methods, mean=MEAN, std=STD, **probability, **options),
        Faithfulness(methods, [AverageDrop()], mean=MEAN, std=STD, **probability, **options),
        ModelIntegrity(**options),
    ]


@all_probabilities
@pytest.mark.parametrize(
    "method", [GradCAM("net.conv2"), InputGradient(), LRP(), Random()], ids=lambda one: type(one).__name__
)
def test_explain_refuses_probabilities(kind: str, method: Any) -> None:
    """Whether the method wants gradients or not; what the message says works."""
    end, k, back = PROBABILITIES[kind]
    if k == 1 and hasattr(method, "score"):
        method = method.with_score(sigmoid)
    with pytest.raises(ValueError, match=r"`model` expected to give logits, got probabilities"):
        explain(Ending(end, k), IMAGES, attributions=method)
    if isinstance(method, GradCAM):
        found = explain(Ending(end, k), IMAGES, attributions=method, calling=Calling(logits_of=back))
        expected = explain(Ending(lambda z: z, k), IMAGES, attributions=method)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


@all_probabilities
@pytest.mark.parametrize("which", range(2))
def test_callbacks_refuse_probabilities(kind: str, which: int) -> None:
    """Before the first epoch; with the function that turns them back they work."""
    end, k, back = PROBABILITIES[kind]
    methods = {"gradcam": GradCAM("net.conv2", score=sigmoid)}
    module = classifier(model=Ending(end, k))
    for options in ({}, {"logits_of": back}):
        callback = callbacks_of(methods, k, classifier="model", **options)[which]
        running = trainer(callbacks=[callback], logger=DummyLogger())
        if options:
            running.validate(module, DATA, verbose=False)
        else:
            with pytest.raises(ValueError, match="got probabilities"):
                running.validate(module, DATA, verbose=False)


def test_integrity_refuses_probabilities() -> None:
    """Functions and fingerprints; the callback says it and lets the run go on."""
    model = Ending(lambda z: z.softmax(1))
    with pytest.raises(ValueError, match="got probabilities"):
        inspect_model(model, IMAGES)
    with pytest.raises(ValueError, match="got probabilities"):
        Fingerprint.of(model, IMAGES)
    running = trainer(callbacks=[ModelIntegrity(classifier="model")])
    with pytest.warns(UserWarning, match=r"could not be checked.*got probabilities.*The run goes on"):
        running.validate(classifier(model=model), loader(), verbose=False)


@all_probabilities
def test_the_term_refuses_probabilities(kind: str) -> None:
    """At its first step; with logits made of them it is the term of the logits."""
    end, k, back = PROBABILITIES[kind]
    targets = torch.arange(6) % 3 if k == 3 else torch.arange(6.0)[:, None] % 2
    criterion: Any = F.cross_entropy if k == 3 else F.binary_cross_entropy_with_logits
    model, options = Ending(end, k), {"image_weights": keep_saturated}
    with pytest.raises(ValueError, match="got probabilities"):
        GuidedGradientLoss(**options)(model, IMAGES, targets, criterion, step=0)
    found = GuidedGradientLoss(logits_of=back, **options)(model, IMAGES, targets, criterion, step=0)
    assert found.regularization is not None


@pytest.mark.parametrize("gate", [lambda z: z.sigmoid() * 3, lambda z: z.abs() + z.sigmoid(), torch.relu])
def test_logits_that_are_positive_are_no_probabilities(gate: Callable[[Tensor], Tensor]) -> None:
    """A sigmoid somewhere before the logits is none at the end."""
    explain(Ending(gate), IMAGES, attributions=InputGradient())
    explain(Ending(lambda z: gate(z) / 100), IMAGES, attributions=InputGradient())


def test_more_numbers_than_the_dataset_has_classes_are_noticed() -> None:
    """An embedding, from which the step makes class scores, looks like logits; labels below K do not tell."""
    module = classifier(model=confident_net(classes=32))
    data = loader()
    data.dataset.classes = ["cat", "dog", "bird"]  # type: ignore[attr-defined]
    method = {"gradcam": GradCAM("conv2")}
    running = trainer(callbacks=[Faithfulness(method, [AverageDrop()], mean=MEAN, std=STD)])
    with pytest.warns(UserWarning, match=r"'model' \(SmallNet\), 32 classes.*each of the 3 classes of the dataset"):
        running.validate(module, data, verbose=False)
    running.validate(classifier(), data, verbose=False)


# Logits in what holds them


def tiny_vit() -> Any:
    """A classifier of Hugging Face, with tokens."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**size, image_size=16, patch_size=4, num_labels=3, hidden_act="relu")
    return transformers.ViTForImageClassification(config)


def tiny_resnet() -> Any:
    """Another one, with feature maps."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


class FineTuning(GuidedGradientMixin, pl.LightningModule):
    """The step that Hugging Face's users write."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.interpretability = GuidedGradientLoss(weight=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.guided_gradient_loss(*batch, model=self.model)[0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        logits = self.model(pixel_values=images).logits
        self.log("val/loss", F.cross_entropy(logits, labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.filterwarnings("ignore:ModelIntegrity", "ignore:LRP expected")  # what they find is not the point
@pytest.mark.parametrize("make", [tiny_vit, tiny_resnet])
@pytest.mark.parametrize("named", [None, "model"])
def test_a_model_of_hugging_face_is_trained_explained_and_checked(make: Any, named: str | None) -> None:
    """With all three callbacks and the term, and in functions, as the same model that gives its logits alone."""
    torch.manual_seed(0)
    model, images = make(), random_images(8, size=16)
    callbacks = callbacks_of({"gradcam": GradCAM(), "gradient": InputGradient()}, 3, classifier=named)
    running = trainer(callbacks=callbacks, logger=DummyLogger())
    running.fit(FineTuning(model), loader(images=images), loader(images=images))
    assert {"val/xai/gradcam/AverageDrop", "val/xai/gradient/AverageDrop"} <= set(running.callback_metrics)
    assert callbacks[2].finding is not None
    assert -1 <= running.callback_metrics["train/guided_gradient/regularization_loss"] < 0

    plain = OnlyLogits(model)
    for method in (GradCAM(), InputGradient(), LRP()):
        found, expected = (explain(one, images, attributions=method) for one in (model, plain))
        torch.testing.assert_close(found, expected)
    found, expected = (inspect_model(one, images).figures for one in (model, plain))
    assert found == pytest.approx(expected)
    assert Fingerprint.of(model, images).compare(model, images).verdict is Verdict.UNCHANGED
    term, labels = GuidedGradientLoss(), torch.arange(8) % 3
    found, expected = (term(one.eval(), images, labels, F.cross_entropy, step=0).loss for one in (model, plain))
    torch.testing.assert_close(found, expected)


class OnlyLogits(nn.Module):
    """What users were told to write around such a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


class Outputs(NamedTuple):
    """What Inception and GoogLeNet give while they are trained."""

    logits: Tensor
    aux_logits: Tensor


HOLDING: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any]]] = {
    "auxiliary outputs": (lambda z: Outputs(z, 0.5 * z), {}),
    "a tuple": (lambda z: (z, [z]), {}),
    "a dict": (lambda z: {"features": z.unsqueeze(2), "out": z}, {}),
    "somewhere else": (lambda z: {"others": -z, "main": z}, {"logits_of": itemgetter("main")}),
}


@pytest.mark.parametrize("kind", HOLDING)
@pytest.mark.parametrize("options", [{}, {"layer": "net.conv1"}, {"fraction": 0.5}, {"weight": 0.0}], ids=str)
def test_the_term_finds_the_logits(kind: str, options: dict[str, Any]) -> None:
    """It is that of the same model that gives its logits alone."""
    end, where = HOLDING[kind]
    data = IMAGES, torch.arange(6) % 3, F.cross_entropy
    found = GuidedGradientLoss(**options, **where)(Ending(end), *data, step=0)
    expected = GuidedGradientLoss(**options)(Ending(lambda z: z), *data, step=0)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.logits)


def test_the_term_says_where_there_are_no_logits() -> None:
    """In the words of `explain`."""
    with pytest.raises(ValueError, match=r"`model` expected to give logits \(N, K\) = \(6, K\), got dict"):
        GuidedGradientLoss()(Ending(lambda z: {"a": 1}), IMAGES, torch.zeros(6).long(), F.cross_entropy, step=0)


@pytest.mark.parametrize("kind", HOLDING)
def test_callbacks_find_the_logits(kind: str) -> None:
    """They log what they log of the same model that gives its logits alone."""
    end, where = HOLDING[kind]
    logged = []
    for model, options in ((Ending(end), where), (Ending(lambda z: z), {})):
        callbacks = callbacks_of({"gradcam": GradCAM("net.conv2")}, 3, classifier="model", **options)
        callbacks[2].threshold = Threshold(2.0, 1)
        running = trainer(callbacks=callbacks, logger=DummyLogger())
        running.validate(classifier(model=model), DATA, verbose=False)
        logged.append({key: value.item() for key, value in running.callback_metrics.items()})
    assert any("integrity" in key for key in logged[0])
    assert logged[0] == pytest.approx(logged[1], nan_ok=True)
