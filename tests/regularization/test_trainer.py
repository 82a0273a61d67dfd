"""The term under a real Trainer trains as plain PyTorch does, in fp32 in one process, in every configuration."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from callbacks.trainers import trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from regularization.plain_training import (
    IMAGES,
    LABELS,
    LR,
    Net,
    Trained,
    assert_same_training,
    dropping,
    plain_loss,
    term,
    trained_plainly,
)
from regularization.test_mixin import Recorder
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai.regularization import AdaptiveWeight, GradientShare

ONE_HOT = F.one_hot(LABELS, 3).float()


def batches(size: int = 4, targets: Tensor = LABELS) -> DataLoader:
    """Sixteen images in order."""
    return DataLoader(TensorDataset(IMAGES, targets), size)


def fitted(module: pl.LightningModule, data: DataLoader | None = None, **options: Any) -> nn.Module:
    """The network after training."""
    trainer(**options).fit(module, batches() if data is None else data)
    return module.model


@pytest.mark.parametrize(
    "model",
    [Net(), Net(nn.BatchNorm2d(6)), Net(nn.BatchNorm2d(6, momentum=None)), Net(nn.GroupNorm(2, 6)), dropping()],
    ids=["plain", "batch norm", "cumulative batch norm", "group norm", "dropout and stochastic depth"],
)
def test_training_is_that_of_plain_pytorch(model: nn.Module) -> None:
    """Parameters and statistics; where something is dropped both backward passes see the same mask."""
    assert_same_training(fitted(Trained(model, term())), trained_plainly(model, batches()), model)


def test_accumulated_batches_are_one_batch() -> None:
    """Two of four images have the gradient of one of eight."""
    found = fitted(Trained(Net(), term()), accumulate_grad_batches=2)
    assert_same_training(found, trained_plainly(Net(), batches(8)), Net())


def test_clipping_sees_the_whole_gradient() -> None:
    """Of both losses, by norm."""

    def clip(model: nn.Module) -> None:
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.1

    found = fitted(Trained(Net(), term()), gradient_clip_val=0.05)
    assert_same_training(found, trained_plainly(Net(), batches(), change=clip), Net())


def fp16() -> MixedPrecision:
    """With a loss scale; asked for by name, Lightning would take bf16 on CPUs."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"plugins": fp16()}], ids=["bf16", "fp16"])
def test_mixed_precision_trains_in_the_direction_of_fp32(options: dict[str, Any]) -> None:
    """Up to its rounding."""
    found = fitted(Trained(Net(nn.BatchNorm2d(6)), term()), **options)
    expected, start = (
        nn.utils.parameters_to_vector(one.parameters())
        for one in (trained_plainly(Net(nn.BatchNorm2d(6)), batches()), Net(nn.BatchNorm2d(6)))
    )
    change, wanted = nn.utils.parameters_to_vector(found.parameters()) - start, expected - start
    assert F.cosine_similarity(change, wanted, dim=0) > 0.98
    assert change.norm().item() == pytest.approx(wanted.norm().item(), rel=0.05)


class Frozen(Trained):
    """Part of the network stays in evaluation mode, as Lightning would put it into training mode."""

    def on_train_epoch_start(self) -> None:
        self.model.body.eval()


@pytest.mark.parametrize("parameters", [False, True], ids=["batch norm", "backbone"])
def test_what_is_frozen_stays_and_the_rest_learns(parameters: bool) -> None:
    """Statistics alone, or the whole body with its parameters."""
    model = Net(nn.BatchNorm2d(6))
    model(IMAGES)
    model.body.eval().requires_grad_(not parameters)
    expected = trained_plainly(model, batches())
    module = Frozen(model, term())
    module.train()  # Lightning warns of parts that are in evaluation mode before training
    found = fitted(module)
    assert_same_training(found, expected, model)
    assert torch.equal(found.body[1].running_mean, model.body[1].running_mean)
    assert torch.equal(found.body[0].weight, model.body[0].weight) == parameters


class ChannelsLast(Trained):
    """The memory format that convolutions like on GPUs."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].to(memory_format=torch.channels_last), batch[1]


def test_channels_last_trains_the_same() -> None:
    """The format is kept by the parameters."""
    model = Net(nn.BatchNorm2d(6))
    found = fitted(ChannelsLast(copy.deepcopy(model).to(memory_format=torch.channels_last), term()))
    assert_same_training(found, trained_plainly(model, batches()), model)
    assert found.conv.weight.is_contiguous(memory_format=torch.channels_last)


class TwoOptimizers(Trained):
    """Body and head have optimizers of their own, stepped by hand; batches are counted, not steps."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss, _ = self.guided_gradient_loss(*batch, step=batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        parts = [*self.model.body.parameters(), *self.model.conv.parameters()], self.model.head.parameters()
        return [torch.optim.SGD(part, LR) for part in parts]


def test_several_optimizers_train_as_one() -> None:
    """In manual optimization."""
    module = TwoOptimizers(Net(), term())
    module.automatic_optimization = False
    assert_same_training(fitted(module), trained_plainly(Net(), batches()), Net())


def test_the_users_count_decides_when_the_term_is_computed() -> None:
    """Lightning's would count both optimizers, and every second step would be every batch."""
    module, recorder = TwoOptimizers(Net(), term(every_n_steps=2)), Recorder()
    module.automatic_optimization = False
    fitted(module, logger=recorder)
    values = [row["train/guided_gradient/regularization_loss"] for row in recorder.rows.values()]
    assert values[0] == values[1] != values[2] == values[3]  # Lightning logs the last value again


def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    """Label smoothing."""
    return F.cross_entropy(logits, targets, label_smoothing=0.2)


def mixed(logits: Tensor, targets: Tensor) -> Tensor:
    """Mixup as two losses, of the labels (N,2) of both images."""
    return 0.3 * F.cross_entropy(logits, targets[:, 0]) + 0.7 * F.cross_entropy(logits, targets[:, 1])


@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (smoothed, LABELS),
        (F.cross_entropy, 0.3 * ONE_HOT + 0.7 * ONE_HOT.roll(1, 0)),
        (mixed, torch.stack([LABELS, LABELS.roll(1)], 1)),
        (F.binary_cross_entropy_with_logits, (ONE_HOT + ONE_HOT.roll(1, 0)).clamp(max=1)),
    ],
    ids=["label smoothing", "soft labels", "mixup", "multi-label"],
)
def test_other_targets_and_criteria(criterion: Any, targets: Tensor) -> None:
    """As in plain PyTorch."""
    found = fitted(Trained(Net(), term(), criterion), batches(targets=targets))
    assert_same_training(found, trained_plainly(Net(), batches(targets=targets), criterion), Net())


def test_mixup_is_soft_labels() -> None:
    """Both ways of writing it down are one loss."""
    two, soft = torch.stack([LABELS, LABELS.roll(1)], 1), 0.3 * ONE_HOT + 0.7 * ONE_HOT.roll(1, 0)
    losses = plain_loss(Net(), IMAGES, two, mixed), plain_loss(Net(), IMAGES, soft)
    ours = [
        term()(Net(), IMAGES, targets, criterion, 0).loss
        for targets, criterion in ((two, mixed), (soft, F.cross_entropy))
    ]
    torch.testing.assert_close(torch.stack(ours), torch.stack(losses))


def test_exponential_means_of_weights_are_those_of_plain_training() -> None:
    """Lightning's callback copies the module with its loss, and puts the mean into it at the end."""
    mean = WeightAveraging(avg_fn=lambda averaged, current, n: 0.5 * averaged + 0.5 * current)
    found = fitted(Trained(Net(), term()), callbacks=[mean])
    # the callback's first mean is the first step's parameters, not the start
    model, expected = Net(), None
    for batch in batches():
        model = trained_plainly(model, [batch])
        state = copy.deepcopy(model.state_dict())
        expected = state if expected is None else {k: 0.5 * expected[k] + 0.5 * state[k] for k in state}
    torch.testing.assert_close(found.state_dict(), expected, rtol=1e-4, atol=1e-5)


def test_stochastic_weight_averaging_is_that_of_plain_training() -> None:
    """The mean over epochs. With batch normalisation Lightning 2.6 steps once more after it, in plain training too."""
    averaging = StochasticWeightAveraging(LR, swa_epoch_start=2, annealing_epochs=1)
    found = fitted(Trained(Net(), term()), callbacks=[averaging], max_epochs=3)
    first = trained_plainly(Net(), batches())
    second = trained_plainly(first, batches())  # it takes the mean at the start of each epoch
    expected = {name: (value + second.state_dict()[name]) / 2 for name, value in first.state_dict().items()}
    torch.testing.assert_close(found.state_dict(), expected, rtol=1e-4, atol=1e-5)


def adaptive_run(folder: Path, epochs: int, resume: Path | None = None) -> tuple[Trained, dict[Any, Any]]:
    """Training with an adaptive weight and momentum, and what was logged."""
    weight = AdaptiveWeight(GradientShare(0.3), start=0.1, smoothing=0.5, every_n_steps=3)
    module, recorder = Trained(Net(nn.BatchNorm2d(6)), term(weight=weight)), Recorder()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    running = trainer(logger=recorder, max_epochs=epochs)
    running.fit(module, batches(), ckpt_path=resume)
    running.save_checkpoint(folder / "last.ckpt")
    return module, recorder.rows


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """From the end of an epoch: parameters, statistics, the weight that sets itself, and every logged row."""
    whole, rows = adaptive_run(tmp_path, 3)
    _, first_rows = adaptive_run(tmp_path, 1)
    resumed, later_rows = adaptive_run(tmp_path, 3, tmp_path / "last.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert {**first_rows, **later_rows} == rows
    key = "train/guided_gradient/weight"
    weights = [row[key] for row in rows.values()]
    assert len(set(weights)) == 4  # measured at steps 0, 3, 6 and 9 of 12
    cosines = [row.get("train/guided_gradient/parameter_cosine") for row in rows.values()]
    assert len(set(cosines[:4])) == 2


def test_a_layer_has_its_own_name_in_the_logs() -> None:
    """Beside a term at the image in another run."""
    recorder = Recorder()
    fitted(Trained(Net(), term(layer="model.body")), logger=recorder)
    assert "train/guided_gradient/model.body/regularization_loss" in recorder.rows[0]
    assert all(key.startswith("train/guided_gradient/model.body/") for key in recorder.rows[0])


def test_strategies_that_split_parameters_are_refused() -> None:
    """At the first step, with what to use instead; the Trainer builds them on GPUs only."""
    from pytorch_lightning.strategies import FSDPStrategy

    module, running = Trained(Net(), term()), trainer()
    running.strategy.connect(module)
    module.trainer = running
    running._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(RuntimeError, match=r'cannot be trained with FSDPStrategy.*strategy="ddp"'):
        module.training_step((IMAGES, LABELS), 0)


def not_finite(gradients: Tensor, guided: Tensor) -> Tensor:
    """An error function that fails."""
    return gradients.flatten(1).sum(1) * torch.nan


def test_steps_that_are_not_finite_are_plain_steps_and_counted() -> None:
    """In the log, from the first one on."""
    recorder = Recorder()
    module = Trained(Net(), term(error=not_finite, max_nonfinite=5))
    fitted(module, logger=recorder)
    assert [row["train/guided_gradient/nonfinite_steps"] for row in recorder.rows.values()] == [1, 2, 3, 4]
    assert module.interpretability.nonfinite_steps == 4
    plain = Net()
    optimizer = torch.optim.SGD(plain.parameters(), LR)
    for images, labels in batches():
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    assert_same_training(module.model, plain, Net())


def test_training_stops_where_steps_go_on_being_not_finite() -> None:
    """With what to do."""
    with pytest.raises(RuntimeError, match=r"not finite in 3 steps in a row. Lower or warm up its weight"):
        fitted(Trained(Net(), term(error=not_finite, max_nonfinite=3)))
