"""The mixin puts the guided-gradient term into a training step, under a real Trainer."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from callbacks.trainers import confident_net, imported, loader, packages, trainer
from torch import Tensor

from lightning_xai import GuidedGradientLoss, GuidedGradientMixin, LinearWarmup
from lightning_xai.regularization import ConstantWeight

ALWAYS = {"train/guided_gradient/classification_loss"}
WITH_TERM = ALWAYS | {
    f"train/guided_gradient/{name}" for name in ("regularization_loss", "weight", "cosine", "norm_ratio", "saturated")
}


class Recorder(pl.loggers.logger.DummyLogger):
    """A logger that keeps every row by its step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int | None, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows[step] = {key: value for key, value in metrics.items() if key != "epoch"}


def own_forward(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The LightningModule is the classifier."""
    return module.guided_gradient_loss(images, labels)


def classifier(
    term: GuidedGradientLoss | None, lightning: ModuleType = pl, step: Callable[..., Any] = own_forward
) -> Any:
    """A LightningModule with the term, which trains as told."""

    class Classifier(GuidedGradientMixin, lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = confident_net().train()
            self.model.dropout.p = 0.0
            if term is not None:
                self.interpretability = term

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss, logits = step(self, *batch)
            assert logits.shape == (4, 3)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    torch.manual_seed(0)
    return Classifier()


@pytest.mark.parametrize("name", packages())
def test_every_part_is_logged_in_every_step(name: str) -> None:
    """Under the names that the docstring gives, and nothing else."""
    lightning, recorder = imported(name), Recorder()
    trainer(lightning, logger=recorder).fit(classifier(GuidedGradientLoss(), lightning), loader())
    assert [set(row) for row in recorder.rows.values()] == [WITH_TERM, WITH_TERM]


def test_what_is_logged_are_the_terms() -> None:
    """The step is one of the optimizer on L_C + lambda L_R; logged are the parts as the loss gives them."""
    recorder, data, term = Recorder(), loader(4), GuidedGradientLoss(weight=ConstantWeight(0.5))
    module, twin = classifier(term), classifier(term)
    trainer(logger=recorder).fit(module, data)

    terms = term(twin.model, *data.dataset.tensors, F.cross_entropy, step=0)
    logged = {key.split("/")[-1]: value for key, value in recorder.rows[0].items()}
    assert logged == {
        "classification_loss": pytest.approx(terms.classification.item()),
        "regularization_loss": pytest.approx(terms.regularization.item()),
        "weight": 0.5,
        "cosine": pytest.approx(terms.cosine.item()),
        "norm_ratio": pytest.approx(terms.norm_ratio.item()),
        "saturated": 0.0,
    }
    loss = terms.classification + 0.5 * terms.regularization
    torch.testing.assert_close(terms.loss.detach(), loss)
    terms.loss.backward()
    torch.optim.SGD(twin.parameters(), 0.01).step()
    torch.testing.assert_close(module.state_dict(), twin.state_dict())


def test_the_term_changes_what_is_learned() -> None:
    """With the same seed and data, a weight of zero ends elsewhere."""
    results = []
    for weight in (0.0, 1.0):
        module = classifier(GuidedGradientLoss(weight=ConstantWeight(weight)))
        trainer().fit(module, loader())
        results.append(module.model.conv1.weight.detach())
    assert not torch.allclose(*results, atol=1e-6)


def test_the_weight_follows_the_optimizers_steps() -> None:
    """Not the batches, which are accumulated two at a time; while it is zero the term is not computed."""
    recorder = Recorder()
    module = classifier(GuidedGradientLoss(weight=LinearWarmup(0.4, steps=2)))
    trainer(logger=recorder, accumulate_grad_batches=2, max_epochs=3).fit(module, loader(8, batch_size=4))
    assert module.global_step == 3
    assert set(recorder.rows[0]) == ALWAYS
    weights = {step: row.get("train/guided_gradient/weight") for step, row in recorder.rows.items()}
    assert weights == {0: None, 1: pytest.approx(0.2), 2: pytest.approx(0.4)}


def test_the_term_may_be_computed_in_every_second_step() -> None:
    """With twice the weight, which is what is logged; in between Lightning logs the last values again."""
    recorder = Recorder()
    term = GuidedGradientLoss(weight=ConstantWeight(0.1), every_n_steps=2)
    trainer(logger=recorder).fit(classifier(term), loader(16))
    parts = {name: [row[name] for row in recorder.rows.values()] for name in WITH_TERM}
    assert parts["train/guided_gradient/weight"] == pytest.approx([0.2] * 4)
    first, again, third, again_third = parts["train/guided_gradient/regularization_loss"]
    assert (first, third) == (again, again_third)
    assert first != third
    assert len(set(parts["train/guided_gradient/classification_loss"])) == 4


def test_another_module_may_be_the_classifier() -> None:
    """`model=` runs it instead of the LightningModule's forward."""

    def step(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return module.guided_gradient_loss(images, labels, model=module.model)

    module = classifier(GuidedGradientLoss(), step=step)
    module.forward = None
    recorder = Recorder()
    trainer(logger=recorder).fit(module, loader())
    assert set(recorder.rows[1]) == WITH_TERM


def test_the_criterion_may_give_one_value_for_each_image() -> None:
    """Its mean is then the classification loss."""

    def step(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return module.guided_gradient_loss(images, labels, criterion=torch.nn.CrossEntropyLoss(reduction="none"))

    recorders = Recorder(), Recorder()
    for recorder, how in zip(recorders, (own_forward, step), strict=True):
        trainer(logger=recorder).fit(classifier(GuidedGradientLoss(), step=how), loader())
    first, second = (recorder.rows[0] for recorder in recorders)
    assert first == pytest.approx(second)


def test_manual_optimization_works() -> None:
    """The mixin returns the loss and overrides nothing."""

    def step(module: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = module.guided_gradient_loss(images, labels)
        optimizer = module.optimizers()
        optimizer.zero_grad()
        module.manual_backward(loss)
        optimizer.step()
        return loss.detach(), logits

    by_hand, automatic = (classifier(GuidedGradientLoss(), step=how) for how in (step, own_forward))
    by_hand.automatic_optimization = False
    for module in (by_hand, automatic):
        trainer().fit(module, loader())
    torch.testing.assert_close(by_hand.state_dict(), automatic.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_trainers_precision_is_kept(precision: str) -> None:
    """Finite parts, in mixed precision too."""
    recorder = Recorder()
    trainer(logger=recorder, precision=precision).fit(classifier(GuidedGradientLoss()), loader())
    assert all(abs(value) < 1e3 for row in recorder.rows.values() for value in row.values())
    assert set(recorder.rows[1]) == WITH_TERM


def test_validation_may_fall_between_steps() -> None:
    """The term's graph is that of its own step."""
    module = classifier(GuidedGradientLoss())
    module.validation_step = lambda batch, batch_idx: module(batch[0])
    running = trainer(val_check_interval=1, max_epochs=2)
    running.fit(module, loader(), loader())
    assert running.global_step == 4


def test_a_run_resumes_with_the_schedule_where_it_was(tmp_path: Path) -> None:
    """The step is the Trainer's, so that the checkpoint need not hold the term; its keys are those of the network."""
    schedule = LinearWarmup(0.4, steps=4)
    module, first = classifier(GuidedGradientLoss(weight=schedule)), trainer()
    first.fit(module, loader())
    first.save_checkpoint(tmp_path / "last.ckpt")
    assert all(key.startswith("model.") for key in torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])

    recorder = Recorder()
    resumed = trainer(logger=recorder, max_epochs=2)
    resumed.fit(classifier(GuidedGradientLoss(weight=schedule)), loader(), ckpt_path=tmp_path / "last.ckpt")
    weights = {step: row["train/guided_gradient/weight"] for step, row in recorder.rows.items()}
    assert weights == {2: pytest.approx(0.2), 3: pytest.approx(0.3)}


class WithHyperparameters(GuidedGradientMixin, pl.LightningModule):
    """Keeps how it was made."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = confident_net()
        self.interpretability = GuidedGradientLoss(weight=ConstantWeight(weight))


def test_hyperparameters_survive_a_checkpoint(tmp_path: Path) -> None:
    """As with any LightningModule."""
    running = trainer(fast_dev_run=True)
    running.strategy.connect(WithHyperparameters(weight=0.7))
    running.save_checkpoint(tmp_path / "last.ckpt")
    again = WithHyperparameters.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.interpretability.weight == ConstantWeight(0.7)


@pytest.mark.parametrize(
    ("term", "got"), [(None, "got None"), (GuidedGradientLoss, "got <class"), (F.mse_loss, "got <function")]
)
def test_a_missing_term_is_told_about(term: Any, got: str) -> None:
    """With what to write into __init__."""
    message = rf"`self.interpretability` expected a GuidedGradientLoss, {got}.*self.interpretability = Guided"
    with pytest.raises(RuntimeError, match=message):
        trainer().fit(classifier(term), loader())


def test_a_compiled_lightning_module_is_refused() -> None:
    """It has no double backward."""
    module = torch.compile(classifier(GuidedGradientLoss()), backend="eager")
    with pytest.raises(RuntimeError, match=r"torch\.compile has no double backward"):
        trainer().fit(module, loader())
