"""ModelIntegrity tells altered classifiers from clean ones, at the right moments, and leaves runs as they were."""

from __future__ import annotations

import csv
import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from callbacks.trainers import classifier, imported, packages, trainer
from integrity.toys import Toy, data, inner_lie, trained
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from support import assert_same_state, random_images, small_net, state_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_xai import LRP, AverageDrop, GradCAM, InputGradient, ScoreCAM, SmoothGrad
from lightning_xai.attribution import Random
from lightning_xai.baselines import to_pixels
from lightning_xai.callbacks import Faithfulness, ModelIntegrity, SaliencyMaps
from lightning_xai.callbacks import integrity_finding as finding_module
from lightning_xai.callbacks import model_integrity as module_under_test
from lightning_xai.callbacks.integrity_check import methods_of
from lightning_xai.callbacks.integrity_finding import Finding
from lightning_xai.integrity import Fingerprint, Threshold, Verdict, inspect_model
from papers.logit_shift.attacks import PositionShift

LAYER = "relu2"
IMAGES, LABELS = (part[:32] for part in data(64))
"""What the callback takes as probes."""

EDIT = PositionShift(LAYER, (1, 2))


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Any:
    """Tests of other files may rely on theirs."""
    with torch.random.fork_rng():
        yield


def batches(n: int = 64, batch_size: int = 16, seed: int = 0) -> DataLoader:
    """Images of all classes in turn."""
    return DataLoader(TensorDataset(*data(n, seed)), batch_size)


def module_of(model: nn.Module | None = None, lightning: Any = pl) -> Any:
    """A LightningModule around a trained toy."""
    return classifier(lightning, model=trained() if model is None else model)


def fitted(callback: Any, module: Any, loader: Any = None, **options: Any) -> Any:
    """The Trainer after a fit."""
    running = trainer(callbacks=[callback], **options)
    running.fit(module, batches(), batches() if loader is None else loader)
    return running


def found_by(callback: ModelIntegrity) -> Finding:
    """What the last check found."""
    assert callback.finding is not None
    return callback.finding


class Steps(ModelIntegrity):
    """Notes when it checks, and how many probes there are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.steps: list[int] = []
        self.probes: list[Tensor] = []
        super().__init__(*args, **options)

    def _look(self, trainer: Any) -> Finding:
        self.steps.append(trainer.global_step)
        self.probes.append(torch.cat(self._run.probes.images))
        return super()._look(trainer)


# What is found


@pytest.mark.parametrize("package", packages())
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_altered_classifier_is_flagged_and_located_at_every_stage(package: str, stage: str) -> None:
    """Of either package; the clean one is not (warnings are errors here)."""
    lightning = imported(package)
    for model in (trained(), EDIT(trained())):
        callback, module = ModelIntegrity(action=lambda finding: None), module_of(model, lightning)
        running = trainer(lightning, callbacks=[callback])
        if stage == "fit":
            running.fit(module, batches(), batches())
        else:
            getattr(running, stage)(module, batches(), verbose=False)
        finding = found_by(callback)
        assert finding.flagged == (model is module.model and not isinstance(model, Toy))
        part = "test" if stage == "test" else "val"
        assert running.callback_metrics[f"{part}/xai/integrity/flagged"] == finding.flagged
    assert (finding.place.layer, finding.place.position) == ("model.relu2", (1, 2))


def test_figures_are_those_of_the_inspection() -> None:
    """Of the first 32 validation images, in evaluation mode."""
    callback, module = ModelIntegrity(LAYER), module_of()
    running = trainer(callbacks=[callback])
    running.validate(module, batches(), verbose=False)
    expected = inspect_model(trained(), IMAGES, layer=LAYER)
    for name, value in {**expected.figures, "suspicion": expected.suspicion}.items():
        assert running.callback_metrics[f"val/xai/integrity/{name.replace(' ', '_')}"] == pytest.approx(value)
    assert found_by(callback).inspection.layer == LAYER


def test_image_level_is_on_demand() -> None:
    """It costs sweeps through the whole network."""
    for wanted in (True, False):
        callback = ModelIntegrity(image_level=wanted)
        trainer(callbacks=[callback]).validate(module_of(), batches(), verbose=False)
        assert ("image_share" in found_by(callback).figures) == wanted


SHOWN = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize("first", [True, False], ids=["before the others", "behind the others"])
@pytest.mark.parametrize(
    "other",
    [
        Faithfulness({"inner": GradCAM("relu1")}, [AverageDrop()], controls={}, **SHOWN),
        SaliencyMaps({"image": InputGradient()}, **SHOWN),
    ],
    ids=["Faithfulness", "SaliencyMaps"],
)
def test_a_lie_where_only_another_callback_looks_is_found(other: Any, first: bool) -> None:
    """Its methods, layers and image are checked, wherever in the list it stands; alone the check shows nothing."""
    for others, verdict in (([], Verdict.CLEAN), ([other], Verdict.FALSE_GRADIENT)):
        callback = ModelIntegrity(LAYER, action=lambda finding: None)
        callbacks = [callback, *others] if first else [*others, callback]
        trainer(callbacks=callbacks).validate(module_of(inner_lie()), batches(), verbose=False)
        assert found_by(callback).verdict is verdict


def test_methods_of_the_run_are_those_whose_raw_and_centred_maps_can_be_compared() -> None:
    """Controls and LRP explain no score; further passes would be dear, so that others stand in; one name for each."""
    cam = GradCAM("relu2")
    methods = {
        "cam": cam,
        "Grad-CAM": GradCAM("relu1"),
        "lrp": LRP(),
        "random": Random(),
        "score_cam": ScoreCAM("relu1"),
        "smooth": SmoothGrad(),
    }
    callbacks = [
        Faithfulness({"cam": cam}, [AverageDrop()], **SHOWN),
        SaliencyMaps(methods, **SHOWN),
        SaliencyMaps({"other": GradCAM("relu1")}, classifier="teacher", **SHOWN),
    ]
    assert methods_of(callbacks, trained(), None) == {
        "cam": cam,
        "Grad-CAM (SaliencyMaps)": GradCAM("relu1"),
        "score_cam": GradCAM(["relu1"]),
        "smooth": InputGradient(),
    }
    assert list(methods_of(callbacks, trained(), "teacher")) == ["other"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("altered", [False, True])
def test_verdicts_are_the_same_in_other_precisions(precision: str, altered: bool) -> None:
    """Roundings are no shift; a shift shows through them. Against a reference in float32, too."""
    model = EDIT(trained()) if altered else trained()
    callback = ModelIntegrity(images=IMAGES, reference=trained(), action=lambda finding: None)
    trainer(callbacks=[callback], precision=precision).validate(module_of(model), batches(), verbose=False)
    finding = found_by(callback)
    assert finding.inspection.verdict is (Verdict.LOGIT_SHIFT if altered else Verdict.CLEAN)
    assert finding.comparison is not None
    assert finding.comparison.verdict is (Verdict.LOGIT_SHIFT if altered else Verdict.UNCHANGED)


def test_threshold_of_the_user_decides() -> None:
    """A high one lets the edit pass."""
    callback = ModelIntegrity(threshold=Threshold(2.0, 1))
    trainer(callbacks=[callback]).validate(module_of(EDIT(trained())), batches(), verbose=False)
    assert not found_by(callback).flagged


# References


@pytest.fixture
def fingerprint() -> Fingerprint:
    """Of the clean toy, on the first 32 images."""
    return Fingerprint.of(trained(), IMAGES)


@pytest.mark.parametrize("kind", ["model", "fingerprint", "file"])
def test_reference_comes_in_three_forms(kind: str, fingerprint: Fingerprint, tmp_path: Path) -> None:
    """A small edit that the check alone overlooks is told by each."""
    fingerprint.save(tmp_path / "trusted.safetensors")
    reference = {"model": trained(), "fingerprint": fingerprint, "file": tmp_path / "trusted.safetensors"}[kind]
    callback = ModelIntegrity(reference=reference, action=lambda finding: None)  # type: ignore[arg-type]
    module = module_of(PositionShift(LAYER, strength=0.01)(trained()))
    running = trainer(callbacks=[callback])
    running.validate(module, batches(), verbose=False)
    finding = found_by(callback)
    assert finding.inspection.verdict is Verdict.CLEAN
    assert finding.verdict is Verdict.LOGIT_SHIFT
    assert running.callback_metrics["val/xai/integrity/reference_logit_shift"] > 0


def test_training_away_from_the_reference_is_not_flagged() -> None:
    """At the first step the network is its reference; later it has changed, as it should."""
    findings: list[Finding] = []

    class Kept(ModelIntegrity):
        def _look(self, trainer: Any) -> Finding:
            findings.append(super()._look(trainer))
            return findings[-1]

    fitted(Kept(reference=trained()), module_of())
    verdicts = [one.comparison.verdict for one in findings if one.comparison is not None]
    assert verdicts == [Verdict.UNCHANGED, Verdict.CHANGED]
    assert not any(one.flagged for one in findings)


def test_trusted_model_may_share_a_lot() -> None:
    """What the check alone would flag, the reference has as well."""
    model = EDIT(trained())
    callback = ModelIntegrity(reference=EDIT(trained()))
    trainer(callbacks=[callback]).validate(module_of(model), batches(), verbose=False)
    assert found_by(callback).inspection.verdict is Verdict.LOGIT_SHIFT
    assert found_by(callback).verdict is Verdict.UNCHANGED


# Moments


def test_checks_are_before_the_first_step_and_at_every_nth_validation() -> None:
    """Always on the same probes, those of the sanity check's batches."""
    callback = Steps(every_n_validations=2)
    fitted(callback, module_of(), max_epochs=4)
    assert callback.steps == [0, 8, 16]
    for probes in callback.probes:
        assert torch.equal(probes, IMAGES)


def test_weights_before_the_first_step_are_judged() -> None:
    """Not those that training made of them."""
    callback = ModelIntegrity(action="raise")
    module = module_of(EDIT(trained()))
    with pytest.raises(RuntimeError, match="raw-logit maps of the classifier are not to be trusted"):
        fitted(callback, module)
    assert module.trained == 0


@pytest.mark.parametrize("options", [{"num_sanity_val_steps": 0}, {"limit_val_batches": 0}], ids=["sanity", "none"])
def test_first_training_batch_stands_in_for_validation(options: dict[str, Any]) -> None:
    """Where there was none yet: probes and classifier come from it."""
    callback = Steps()
    running = trainer(callbacks=[callback], **options)
    running.fit(module_of(), batches(seed=5), batches())
    assert callback.steps[0] == 0
    assert torch.equal(callback.probes[0], data(64, seed=5)[0][:16])
    assert {len(probes) for probes in callback.probes} == {16}


def test_fewer_images_than_wanted_are_checked_at_the_end() -> None:
    """All there are."""
    callback = Steps(n_images=100)
    trainer(callbacks=[callback]).validate(module_of(), batches(24), verbose=False)
    assert [len(probes) for probes in callback.probes] == [24]


def test_averaged_weights_are_judged_where_they_are_validated() -> None:
    """Not those that training goes on with, though the averaging callback comes first."""
    judged: list[Tensor] = []
    validated: list[Tensor] = []

    class Noting(ModelIntegrity):
        def _look(self, trainer: Any) -> Finding:
            judged.append(self.model.head.weight.detach().clone())
            return super()._look(trainer)

    def step(module: Any, images: Tensor) -> Tensor:
        validated.append(module.model.head.weight.detach().clone())
        return module.model(images)

    class Training(pl.Callback):
        """Notes what training goes on with."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.weight = pl_module.model.head.weight.detach().clone()

    training = Training()
    callbacks = [pl.callbacks.EMAWeightAveraging(decay=0.5), Noting(), training]
    running = trainer(callbacks=callbacks, num_sanity_val_steps=0)
    running.fit(classifier(step=step, model=trained()), batches(), batches())
    assert torch.equal(judged[-1], validated[-1])
    assert not torch.equal(judged[-1], training.weight)


def test_given_probes_are_used() -> None:
    """And no others taken."""
    callback = Steps(images=data(8, seed=3)[0])
    fitted(callback, module_of())
    assert [len(probes) for probes in callback.probes] == [8, 8]


def test_sanity_check_is_a_rehearsal(tmp_path: Path) -> None:
    """It gives the probes; nothing is checked, logged or counted."""
    callback = Steps()
    logger = CSVLogger(tmp_path, name="", version="run")
    running = trainer(callbacks=[callback], logger=logger, max_steps=1, limit_train_batches=1)
    running.fit(module_of(), batches(), batches())
    assert callback.steps == [0, 1]


# Checkpoints


def run_with_checkpoint(callback: ModelIntegrity, folder: Path, model: nn.Module | None = None, **options: Any) -> Path:
    """Fit for an epoch, and write a checkpoint at its end."""
    kept = ModelCheckpoint(folder, filename="kept", **options)
    running = trainer(callbacks=[callback, kept], enable_checkpointing=True)
    running.fit(module_of(model), batches(), batches())
    return folder / "kept.ckpt"


def resumed(callback: ModelIntegrity, path: Path, stage: str = "fit") -> None:
    """Go on with the run of a checkpoint, or test it."""
    running = trainer(callbacks=[callback, ModelCheckpoint(path.parent)], enable_checkpointing=True, max_epochs=2)
    if stage == "fit":
        running.fit(module_of(), batches(), batches(), ckpt_path=path, weights_only=True)
    else:
        running.test(module_of(), batches(), ckpt_path=path, verbose=False, weights_only=True)


def in_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of the callback; loading it executes nothing."""
    states = torch.load(path, weights_only=True)["callbacks"]
    return next(state for key, state in states.items() if "integrity" in key)


@pytest.mark.parametrize("altered", [False, True])
def test_verdict_goes_into_the_checkpoint(tmp_path: Path, altered: bool) -> None:
    """With the figures, and digests of the very weights that are in it."""
    callback = Steps(every_n_validations=100, action=lambda finding: None)
    state = in_checkpoint(run_with_checkpoint(callback, tmp_path, EDIT(trained()) if altered else trained()))
    assert callback.steps == [0, 4]  # the second for the checkpoint, in time
    assert state["verdict"] == ("LOGIT_SHIFT" if altered else "CLEAN")
    assert state["step"] == 4
    assert state["origin"] == ("model.relu2" if altered else None)
    assert state["figures"] == found_by(callback).figures
    assert set(state["digest"]) == {"parameters", "buffers", "modules", "code", "hooks"}


def test_validated_weights_are_not_checked_again_for_the_checkpoint(tmp_path: Path) -> None:
    """It is written right after."""
    callback = Steps()
    run_with_checkpoint(callback, tmp_path)
    assert callback.steps == [0, 4]


def test_flagged_model_is_not_saved_under_raise(tmp_path: Path) -> None:
    """The run ends before the file is written."""
    callback = ModelIntegrity(every_n_validations=2, action="raise")

    class Altering(pl.Callback):
        """Adds a vector to all rows of the head behind the last validation."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.model.head.weight.data += 50.0

    kept = ModelCheckpoint(tmp_path, save_on_train_epoch_end=True)
    running = trainer(callbacks=[callback, Altering(), kept], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="logit shift"):
        running.fit(module_of(), batches(), batches())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # resumed runs find their own
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_unchanged_classifier_resumes_in_silence(tmp_path: Path, stage: str) -> None:
    """It is the one that was judged (a warning would be an error here)."""
    callback = ModelIntegrity()
    resumed(callback, run_with_checkpoint(ModelIntegrity(), tmp_path), stage)
    assert found_by(callback).verdict is Verdict.CLEAN


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_altered_checkpoint_is_told_on_resuming(tmp_path: Path, stage: str) -> None:
    """Somebody added a vector to all rows of the head: the step, the parts and both verdicts are named."""
    path = run_with_checkpoint(ModelIntegrity(), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["model.head.weight"] += 50.0
    torch.save(checkpoint, path)
    told = r"\(step 4\): different are its parameters\. Then CLEAN .* now LOGIT_SHIFT"
    with pytest.warns(UserWarning, match=told):
        resumed(ModelIntegrity(action=lambda finding: None), path, stage)


def test_state_is_empty_before_anything_was_judged() -> None:
    """Two callbacks keep theirs apart."""
    first, second = ModelIntegrity(), ModelIntegrity("relu1", name="relu1")
    assert first.state_dict() == {}
    assert first.state_key != second.state_key
    assert second.names() == {"relu1"}


# What is told


def test_default_action_warns_once() -> None:
    """With layer and position."""
    with pytest.warns(UserWarning, match=r"largest at 'model.relu2', position \(1, 2\)") as told:
        fitted(ModelIntegrity(), module_of(EDIT(trained())), max_epochs=2)
    assert sum("not to be trusted" in str(one.message) for one in told) == 1


def test_callable_action_gets_each_finding() -> None:
    """Instead of a warning."""
    got: list[Finding] = []
    fitted(ModelIntegrity(action=got.append), module_of(EDIT(trained())), max_epochs=2)
    assert [finding.step for finding in got] == [0, 4, 8]
    assert all(finding.flagged for finding in got)


def test_pictures_and_figures_of_a_flagged_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each check: maps of both scores, the images as they were before standardisation, and where."""
    panels: list[Any] = []
    monkeypatch.setattr(finding_module, "Panel", lambda *args: panels.append(replace_panel(*args)) or panels[-1])
    logger = CSVLogger(tmp_path, name="", version="run")
    callback = ModelIntegrity(action=lambda finding: None, mean=(0.5,) * 3, std=(0.25,) * 3)
    fitted(callback, module_of(EDIT(trained())), logger=logger)
    drawn = sorted(path.name for path in (tmp_path / "run/xai/val/xai/integrity").iterdir())
    assert drawn == ["step=00000000", "step=00000004"]
    panel = panels[0]
    shown = data(64)[0][:4]  # of four classes in turn
    assert torch.equal(panel.images, to_pixels(shown, (0.5,) * 3, (0.25,) * 3))
    assert panel.facts["largest at"] == ["model.relu2 (1, 2)", None, None, None]
    assert not torch.equal(panel.overlays["HiResCAM\nraw logit"], panel.overlays["HiResCAM\ncentred"])
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val/xai/integrity/flagged"] for row in rows if row["val/xai/integrity/flagged"]] == ["1.0", "1.0"]


def replace_panel(*args: Any) -> Any:
    """A panel of the real class."""
    from lightning_xai.visualization import Panel

    return Panel(*args)


def test_clean_run_draws_nothing(tmp_path: Path) -> None:
    """Figures alone."""
    fitted(ModelIntegrity(), module_of(), logger=CSVLogger(tmp_path, name="", version="run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.csv"}


def test_failing_logger_does_not_end_the_run() -> None:
    """Before the first step figures go to the loggers at once; what is lost is said."""

    class Failing(pl.loggers.logger.DummyLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if step == 0:
                raise OSError("disk full")

    module = module_of()
    with pytest.warns(UserWarning, match="figures from outside of validation are lost.*disk full"):
        fitted(ModelIntegrity(), module, logger=Failing())
    assert module.trained == 4


def test_images_of_unknown_statistics_are_drawn_between_their_extremes() -> None:
    """Each channel fills [0, 1]."""
    images = data(4)[0]
    pixels = to_pixels(images, *finding_module._between_extremes(images))
    torch.testing.assert_close(pixels.amin((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels.amax((0, 2, 3)), torch.ones(3))


@pytest.mark.parametrize("full", [False, True])
def test_a_flag_is_not_lost_over_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Images of four channels are drawn as their mean; where that fails, it is said."""
    images = random_images(16, channels=4)
    clean, altered = small_net(channels=4), PositionShift("conv2")(small_net(channels=4))
    callback = ModelIntegrity(reference=clean, action=lambda finding: None)
    running = trainer(callbacks=[callback], logger=CSVLogger(tmp_path))
    if full:
        monkeypatch.setattr(finding_module, "to_pixels", Mock(side_effect=MemoryError("full")))
    told = pytest.warns(UserWarning, match="the shift could not be located or drawn.*full") if full else nullcontext()
    with told:
        running.validate(module_of(altered), DataLoader(TensorDataset(images, torch.zeros(16)), 16), verbose=False)
    assert found_by(callback).flagged
    assert full or list(tmp_path.rglob("step=*"))


def test_what_cannot_be_told_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however often it is checked; it is no alarm, and no warning where the network only begins to learn."""
    torch.manual_seed(0)
    said: list[str] = []
    monkeypatch.setattr(module_under_test, "rank_zero_info", said.append)
    callback = ModelIntegrity(action="raise")
    for model in (Toy(), Toy()):
        trainer(callbacks=[callback]).validate(module_of(model), batches(), verbose=False)
    (told,) = said
    assert "explain the classifier differently, as they do many honest ones: no alarm" in told
    assert "maps look different on" in str(callback.finding)
    assert "possible reason: the predictions are undecided" in str(callback.finding)


def test_another_model_than_the_reference_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first check: training itself is what changes a model later."""
    said: list[str] = []
    monkeypatch.setattr(module_under_test, "rank_zero_info", said.append)
    fitted(ModelIntegrity(reference=trained()), module_of())
    assert said == []
    fitted(ModelIntegrity(reference=trained(steps=100)), module_of())
    assert said == ["ModelIntegrity: the classifier is not its reference: another one, or trained further."]


# What goes wrong


def broken(tmp_path: Path, fingerprint: Fingerprint) -> dict[str, tuple[dict[str, Any], str]]:
    """Arguments that hinder a check, and what is told."""
    fingerprint.save(tmp_path / "cut.safetensors")
    content = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    same = IMAGES[LABELS == 0]
    return {
        "classes": ({"reference": trained(Toy5)}, "logits of 5 classes as of the fingerprint, got 4"),
        "layer": ({"reference": Fingerprint.of(trained(), IMAGES, layer="relu1")}, "of 'relu1' in the fingerprint"),
        "cut off": ({"reference": tmp_path / "cut.safetensors"}, "'cut.safetensors', truncated or corrupted"),
        "missing": ({"reference": str(tmp_path / "none.safetensors")}, "none.safetensors', which does not exist"),
        "probes": ({"reference": fingerprint, "images": IMAGES[:8]}, "expected the 32 probe images of the fingerprint"),
        "one class": ({"images": same}, "that are all predicted as class 0. Shuffle"),
    }


class Toy5(Toy):
    """With one class more."""

    def __init__(self) -> None:
        super().__init__(5)


@pytest.mark.parametrize("case", ["classes", "layer", "cut off", "missing", "probes", "one class"])
def test_training_goes_on_where_a_check_cannot_be_made(case: str, fingerprint: Fingerprint, tmp_path: Path) -> None:
    """One warning says why; under "raise" it ends the run."""
    arguments, told = broken(tmp_path, fingerprint)[case]
    layer = LAYER if case == "layer" else None
    module = module_of()
    with pytest.warns(UserWarning, match=f"could not be checked.*{told}.*The run goes on") as warned:
        fitted(ModelIntegrity(layer, **arguments), module, max_epochs=2)
    assert module.trained == 8
    assert sum("ModelIntegrity" in str(one.message) for one in warned) == 1
    with pytest.raises(RuntimeError, match=told):
        fitted(ModelIntegrity(layer, action="raise", **arguments), module_of())


def test_a_network_that_has_only_begun_to_learn_is_no_reason_to_warn() -> None:
    """It predicts one class of everything; warnings are errors here."""
    model = trained()
    with torch.no_grad():
        model.head.bias[0] += 100.0
    callback = ModelIntegrity()
    module = module_of(model)
    fitted(callback, module)
    assert module.trained > 0
    assert callback.finding is None


class Flat(nn.Module):
    """No layer of it has more than one position."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(data(1)[0].numel(), 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@pytest.mark.parametrize(
    ("step", "told", "options"),
    [
        (lambda module, images: module.model(images), "`layer=None` expected a layer, called once", {}),
        (lambda module, images: module.model(images), "`layer=None` expected", {"num_sanity_val_steps": 0}),
        (lambda module, images: None, "Expected one module that takes images", {}),
    ],
    ids=["flat", "flat in training", "unheard"],
)
def test_a_classifier_that_cannot_be_judged_ends_no_run(step: Any, told: str, options: dict[str, Any]) -> None:
    """One warning; under "raise" an error."""
    for action, told_by in (
        ("warn", pytest.warns(UserWarning, match=told)),
        ("raise", pytest.raises(RuntimeError, match=told)),
    ):
        module = classifier(step=step, model=Flat())
        with told_by:
            running = trainer(callbacks=[ModelIntegrity(action=action)], max_epochs=2, **options)  # type: ignore[arg-type]
            running.fit(module, batches(), batches())
        assert module.trained == (8 if action == "warn" else 0)


def test_nothing_is_said_of_a_head_that_nobody_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predictions are undecided or all of one class, as everybody expects; after the first epoch that is news."""
    said: list[str] = []
    monkeypatch.setattr(module_under_test, "rank_zero_info", said.append)
    torch.manual_seed(0)
    one_class = Toy()
    with torch.no_grad():
        one_class.head.bias[0] += 100.0
    for model in (Toy(), one_class):
        fitted(ModelIntegrity(), module_of(model), limit_val_batches=0)
        assert said == []
        fitted(ModelIntegrity(), module_of(model))
        assert len(said) == 1
        said.clear()


def test_probes_of_other_sizes_are_passed_over() -> None:
    """A check takes one batch."""
    images, labels = data(32)
    wide = torch.nn.functional.pad(images[:2], (0, 4))
    callback = Steps()
    mixed = [(images[:8], labels[:8]), (wide, labels[:2]), (images[8:], labels[8:])]
    loader = DataLoader(mixed, batch_size=None)  # type: ignore[arg-type]
    trainer(callbacks=[callback]).validate(module_of(), loader, verbose=False)
    assert torch.equal(callback.probes[0], images)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"n_images": 0}, ValueError, "`n_images` expected 1 or more, got 0"),
        ({"every_n_validations": 0}, ValueError, "`every_n_validations` expected 1 or more, got 0"),
        ({"images": [1]}, TypeError, "`images` expected a tensor, got list"),
        ({"images": torch.zeros(2, 3)}, ValueError, r"got torch.float32 of shape \(2, 3\)"),
        ({"images": IMAGES / 0}, ValueError, "`images` expected finite values, got NaN or infinity in images"),
        ({"action": "shout"}, TypeError, "`action` expected 'warn' or 'raise' or a function, got 'shout'"),
        ({"mean": (0.5,)}, ValueError, "`mean` and `std` expected as many numbers"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    """At once."""
    with pytest.raises(error, match=told):
        ModelIntegrity(**arguments)


def test_layer_that_does_not_exist_is_an_error_before_the_run() -> None:
    """It is a slip, and no trouble of the model."""
    with pytest.raises(ValueError, match="relu2"):
        fitted(ModelIntegrity("relu3", classifier="model"), module_of())


def test_a_name_used_twice_is_an_error() -> None:
    """Lightning would log the mean of both."""
    with pytest.raises((ValueError, RuntimeError), match="ModelIntegrity"):
        trainer(callbacks=[ModelIntegrity(), ModelIntegrity("relu1")]).fit(module_of(), batches(), batches())


# What is left as it was


@pytest.mark.parametrize("options", [{}, {"num_sanity_val_steps": 0}], ids=["sanity", "no sanity"])
@pytest.mark.parametrize("altered", [False, True])
def test_training_is_the_same_with_and_without(altered: bool, options: dict[str, Any]) -> None:
    """Weights, BatchNorm statistics and random numbers, bit by bit; also where everything is done."""
    states = []
    for callbacks in ([], [ModelIntegrity(reference=trained(), image_level=True, action=lambda finding: None)]):
        module = module_of(EDIT(trained()) if altered else trained())
        torch.manual_seed(3)
        trainer(callbacks=callbacks, **options).fit(module, DataLoader(batches().dataset, 16, shuffle=True), batches())
        states.append((module.state_dict(), torch.get_rng_state()))
    (first, before), (second, after) = states
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(before, after)


@pytest.mark.parametrize("trouble", [False, True])
def test_model_is_as_before(trouble: bool) -> None:
    """In training mode with gradients, also where a check is broken off."""
    model = EDIT(trained()).train()
    callback = ModelIntegrity(images=IMAGES, reference=trained(Toy5) if trouble else None, action=lambda one: None)
    seen: list[dict[str, Any]] = []

    class Watching(pl.Callback):
        """Before and after the check."""

        def on_train_batch_start(self, *args: Any) -> None:
            seen.append(state_of(model))

    watching = [Watching(), callback, Watching()]
    running = trainer(callbacks=watching, num_sanity_val_steps=0, limit_train_batches=1, limit_val_batches=0)
    if trouble:
        with pytest.warns(UserWarning, match="could not be checked"):
            running.fit(module_of(model), batches(), batches())
    else:
        running.fit(module_of(model), batches(), batches())
    assert_same_state(*seen)


# What it costs


class Deep(nn.Module):
    """A network whose cost lies in front of its last layer, as usual."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 16, 16, 16, 16]
        convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(*(part for conv in convs for part in (conv, nn.ReLU())))
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


class Convolutions(TorchDispatchMode):
    """Counts images that pass a convolution, forwards or backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.images += len(args[0])
        if func is torch.ops.aten.convolution_backward.default:
            self.images += len(args[0]) * sum(args[-1][:2])  # gradients of the input, of the weight
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layer", "options", "passes"),
    [
        (None, {}, 1),
        (None, {"reference": True}, 2),
        (None, {"image_level": True}, 1 + 4),
        (None, {"image_level": True, "reference": True}, 1 + 4 + 1),
        ("body.7", {}, 1 + 4 / 5),
        ("body.7", {"reference": True}, 2 + 7 / 5),
    ],
)
def test_cost_of_a_check_in_forward_passes_of_the_probes(layer: Any, options: dict[str, Any], passes: float) -> None:
    """Counted in convolutions, of which the network has five; the four sweeps to the image reach the layer, too."""
    torch.manual_seed(0)
    model = Deep().eval()
    model.head.weight.data *= 100
    model.head.bias.data -= model(IMAGES).mean(0).detach()
    if "reference" in options:
        options = {**options, "reference": Fingerprint.of(model, IMAGES, layer=layer)}
    counted: list[float] = []

    class Counted(ModelIntegrity):
        def _look(self, trainer: Any) -> Finding:
            with Convolutions() as counter:
                finding = super()._look(trainer)
            counted.append(counter.images / (5 * len(IMAGES)))
            return finding

    callback = Counted(layer, images=IMAGES, threshold=Threshold(2.0, 1), **options)
    trainer(callbacks=[callback]).validate(module_of(model), batches(), verbose=False)
    assert counted == [pytest.approx(passes)]
    assert passes <= 6
