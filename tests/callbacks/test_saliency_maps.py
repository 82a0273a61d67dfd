"""SaliencyMaps follows the same images through a run and hands right pictures to every logger."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from callbacks import wandb_reader
from callbacks.definitions import by_hand
from callbacks.trainers import MEAN, STD, Forwards, classifier, imported, loader, packages, run_stage, trainer
from PIL import Image
from support import random_images, small_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_xai import GradCAM, InputGradient, SaliencyMaps, explain
from lightning_xai.baselines import mean_color, to_pixels
from lightning_xai.callbacks import base
from lightning_xai.callbacks import saliency_maps as module_under_test
from lightning_xai.scores import label, log_sigmoid, sigmoid
from lightning_xai.visualization import Panel, overlay

METHODS = {"gradcam": GradCAM("conv2"), "gradient": InputGradient()}
DROPS = ("gradcam drop", "gradient drop")


def maps(**options: Any) -> SaliencyMaps:
    """Three images, two methods."""
    return SaliencyMaps(**{"attributions": METHODS, "mean": MEAN, "std": STD, "n_images": 3, **options})


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Panel]]:
    """Key, step and panel of everything that is handed to the loggers."""
    handed: list[tuple[str, int, Panel]] = []
    monkeypatch.setattr(
        module_under_test, "log_panel", lambda loggers, key, panel, step: handed.append((key, step, panel))
    )
    return handed


class Somebody(pl.loggers.logger.DummyLogger):
    """A logger, so that somebody looks."""


def looked_at(**options: Any) -> Any:
    """A Trainer with a logger."""
    return trainer(**{"logger": Somebody(), **options})


# What is drawn


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_panel_shows_the_first_images_explained(panels: list[Any], stage: str) -> None:
    """Pictures and facts are those that one makes by hand; drawn once, at the end of the epoch."""
    module, data = classifier(), loader()
    run_stage(stage, looked_at(callbacks=[maps()]), module, data)

    ((key, step, panel),) = panels
    assert (key, step) == ("test/xai/maps" if stage == "test" else "val/xai/maps", 2 if stage == "fit" else 0)
    images, labels = (one[:3] for one in data.dataset.tensors)
    pixels = to_pixels(images, MEAN, STD)
    assert torch.equal(panel.images, pixels)
    model = module.model.eval()
    for name, values in explain(model, images, attributions=METHODS).items():
        torch.testing.assert_close(panel.overlays[name], overlay(pixels, values))
    probabilities = model(images).softmax(1).max(1)
    assert panel.facts["label"] == labels.tolist()
    assert panel.facts["prediction"] == probabilities.indices.tolist()
    assert panel.facts["probability"] == pytest.approx(probabilities.values.tolist())
    assert set(panel.facts) == {"label", "prediction", "probability", *DROPS}
    for name, method in METHODS.items():
        drops = [by_hand(model, image[None], method)["AverageDrop"] for image in images]
        assert panel.facts[f"{name} drop"] == pytest.approx(drops, rel=1e-4)


def test_the_drop_is_that_of_the_explained_class_under_the_given_baseline(panels: list[Any]) -> None:
    """Those of Faithfulness, image by image."""
    module, data = classifier(), loader()
    looked_at(callbacks=[maps(targets=label, baseline=mean_color)]).validate(module, data, verbose=False)
    images, labels = data.dataset.tensors
    for i, drop in enumerate(panels[0][2].facts["gradcam drop"]):
        one = slice(i, i + 1)
        by_definition = by_hand(module.model, images[one], METHODS["gradcam"], labels[one], baseline=0.0)
        assert drop == pytest.approx(by_definition["AverageDrop"], rel=1e-4)


def test_the_explained_class_is_told_when_it_was_chosen(panels: list[Any]) -> None:
    """Beside label and prediction, by name where names are given."""
    module, data = classifier(), loader()
    looked_at(callbacks=[maps(targets=label, class_names=["ant", "bee", "cat"])]).validate(module, data, verbose=False)
    panel = panels[0][2]
    assert panel.facts["explained"] == panel.facts["label"] == ["ant", "bee", "cat"]
    images, labels = (one[:3] for one in data.dataset.tensors)
    expected = explain(module.model.eval(), images, labels, attributions=METHODS["gradient"])
    torch.testing.assert_close(panel.overlays["gradient"], overlay(panel.images, expected))


@pytest.mark.parametrize(("n_images", "drawn"), [(1, 1), (4, 4), (6, 6), (100, 7)])
def test_images_are_gathered_over_batches(panels: list[Any], n_images: int, drawn: int) -> None:
    """Until there are enough, or no more."""
    data = loader(7)
    looked_at(callbacks=[maps(n_images=n_images)], max_epochs=2).fit(classifier(), loader(), data)
    assert len(panels) == 2
    for _, _, panel in panels:
        assert torch.equal(panel.images, to_pixels(data.dataset.tensors[0][:drawn], MEAN, STD))
        assert panel.facts["label"] == data.dataset.tensors[1][:drawn].tolist()


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")  # on purpose
def test_the_same_images_are_followed_while_the_dataloader_shuffles(panels: list[Any]) -> None:
    """So that the eye compares like with like; what the network says of them changes."""
    data = loader(16, shuffle=True)
    looked_at(callbacks=[maps(n_images=6)], max_epochs=3).fit(classifier(), data, data)
    first, second, third = (panel for _, _, panel in panels)
    for later in (second, third):
        assert torch.equal(later.images, first.images)
        assert later.facts["label"] == first.facts["label"]
        assert later.facts["probability"] != first.facts["probability"]
    assert [step for _, step, _ in panels] == [4, 8, 12]


def test_an_epoch_costs_one_pass_of_the_images_and_a_masked_one_for_each_method(panels: list[Any]) -> None:
    """The batch in which they come is heard; later epochs need none of it."""
    module, data = classifier(), loader()
    forwards = Forwards(module.model)
    running = looked_at(callbacks=[maps(classifier="model")], max_epochs=2, num_sanity_val_steps=0)
    running.fit(module, data, data)
    assert forwards.sizes == [4, 3, 3, 3, 4, 4, 3, 3, 3, 4]


def test_a_run_follows_images_of_its_own_data(panels: list[Any]) -> None:
    """Another run may validate other images."""
    callback, module = maps(), classifier()
    for images in (random_images(3), random_images(3).flip(0)):
        looked_at(callbacks=[callback]).validate(module, loader(images=images), verbose=False)
        assert torch.equal(panels[-1][2].images, to_pixels(images, MEAN, STD))


def test_a_rehearsal_in_the_sanity_check_leaves_nothing(panels: list[Any]) -> None:
    """Its images are forgotten: a shuffled first epoch is drawn from what that epoch gives."""
    looked_at(callbacks=[maps(n_images=8)], num_sanity_val_steps=1).fit(classifier(), loader(), loader())
    assert [step for _, step, _ in panels] == [2]
    assert len(panels[0][2].images) == 8


def test_each_dataloader_has_a_panel(panels: list[Any]) -> None:
    """The index is the key's last part."""
    several = [loader(), loader(images=random_images(4).flip(0))]
    looked_at(callbacks=[maps(name="pictures")]).validate(classifier(), several, verbose=False)
    assert [key for key, _, _ in panels] == [f"val/xai/pictures/dataloader_idx_{i}" for i in range(2)]
    for (_, _, panel), data in zip(panels, several, strict=True):
        assert torch.equal(panel.images, to_pixels(data.dataset.tensors[0][:3], MEAN, STD))


def test_validation_within_an_epoch_draws_each_time(panels: list[Any]) -> None:
    """At every training batch here."""
    looked_at(callbacks=[maps()], val_check_interval=1).fit(classifier(), loader(), loader())
    assert [step for _, step, _ in panels] == [1, 2]


def test_images_without_labels_are_drawn(panels: list[Any]) -> None:
    """The caption has no label then."""
    data = DataLoader(TensorDataset(random_images(8)), 4)
    looked_at(callbacks=[maps()]).validate(classifier(), data, verbose=False)
    assert set(panels[0][2].facts) == {"prediction", "probability", *DROPS}


def test_multi_hot_labels_are_no_caption(panels: list[Any]) -> None:
    """And one logit each is captioned by its sigmoid."""
    data = DataLoader(TensorDataset(random_images(8), torch.ones(8, 3)), 4)
    module = classifier()
    callback = SaliencyMaps(
        {"gradcam": GradCAM("conv2", score=sigmoid)}, mean=MEAN, std=STD, n_images=3, log_probability=log_sigmoid
    )
    looked_at(callbacks=[callback]).validate(module, data, verbose=False)
    panel = panels[0][2]
    assert set(panel.facts) == {"prediction", "probability", "gradcam drop"}
    images, model = data.dataset.tensors[0][:3], module.model.eval()
    assert panel.facts["probability"] == pytest.approx(model(images).max(1).values.sigmoid().tolist())
    method = callback.attributions["gradcam"]
    drops = [by_hand(model, image[None], method, probability=torch.sigmoid)["AverageDrop"] for image in images]
    assert panel.facts["gradcam drop"] == pytest.approx(drops, rel=1e-4)


def test_a_network_that_gives_nan_is_drawn(panels: list[Any]) -> None:
    """The pictures show that something is wrong, and the run goes on."""
    module = classifier()
    nn.init.constant_(module.model.head.bias, torch.nan)
    looked_at(callbacks=[maps()], max_epochs=2).fit(module, loader(), loader())
    assert len(panels) == 2
    assert "nan" in panels[0][2].captions[0]
    assert np.isnan(panels[0][2].facts["gradcam drop"]).all()


# Who looks


def test_nobody_looks_and_nothing_is_done() -> None:
    """Without a logger no pass is made."""
    module = classifier()
    forwards = Forwards(module.model)
    trainer(callbacks=[maps()]).validate(module, loader(), verbose=False)
    assert forwards.sizes == [4, 4]


@pytest.mark.filterwarnings("ignore:SaliencyMaps")
def test_names_of_classes_come_from_the_dataset(panels: list[tuple[str, int, Panel]]) -> None:
    """Of a subset, too; a list of another length is none of them."""
    data = loader()
    data.dataset.classes = ["ant", "bee", "cat"]
    subset = DataLoader(Subset(data.dataset, range(4)), 4)
    for names, expected in ((["ant", "bee", "cat"], ["ant", "bee", "cat", "ant"]), (["ant"], [0, 1, 2, 0])):
        data.dataset.classes = names
        panels.clear()
        looked_at(callbacks=[maps(n_images=4)]).validate(classifier(), subset, verbose=False)
        assert panels[0][2].facts["label"] == expected


@pytest.mark.parametrize("name", packages())
def test_csv_gets_a_picture_for_each_step(name: str, tmp_path: Path) -> None:
    """Beside its metrics."""
    lightning = imported(name)
    logger = lightning.loggers.CSVLogger(tmp_path, name="", version="run")
    running = trainer(lightning, callbacks=[maps()], logger=logger, max_epochs=2)
    running.fit(classifier(lightning), loader(), loader())
    folder = tmp_path / "run/xai/val/xai/maps"
    assert sorted(path.name for path in folder.iterdir()) == ["step=00000002", "step=00000004"]
    assert np.asarray(Image.open(folder / "step=00000002" / "0_0.webp")).std() > 10


def test_wandb_gets_media_and_a_table_in_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real offline run, read back, with another logger beside it."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    wandb.teardown()  # it reads the environment once for the whole process
    several = [pl.loggers.WandbLogger(save_dir=tmp_path), pl.loggers.CSVLogger(tmp_path / "csv")]
    trainer(callbacks=[maps()], logger=several, max_epochs=2).fit(classifier(), loader(), loader())
    wandb.finish()
    wandb.teardown()

    key = "val/xai/maps"
    rows = [row for row in wandb_reader.history(tmp_path) if f"{key}/gradcam._type" in row]
    assert [row["trainer/global_step"] for row in rows] == [2, 4]
    assert len(rows[0][f"{key}/gradcam.filenames"]) == len(rows[0][f"{key}/gradient.filenames"]) == 3
    assert rows[0][f"{key}/image.captions"][1].startswith("step 2 | label 1 | predicted")
    assert sum(f"{key}/table._type" in row for row in wandb_reader.history(tmp_path)) == 2
    assert len(list((tmp_path / "csv").rglob("panel.json"))) == 2


def test_fast_dev_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pictures nor folders."""
    monkeypatch.chdir(tmp_path)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer(callbacks=[maps()], logger=logger, fast_dev_run=True).fit(classifier(), loader(), loader())
    assert not list(tmp_path.rglob("*"))


def test_a_failing_logger_warns_once_and_training_goes_on(tmp_path: Path) -> None:
    """A file is in the way of the folder of pictures; scalars are still logged."""
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    _ = logger.experiment
    (tmp_path / "run/xai").touch()
    running = trainer(callbacks=[maps()], logger=logger, max_epochs=3)
    with pytest.warns(UserWarning, match="CSVLogger failed.*pictures are lost") as caught:
        running.fit(classifier(), loader(), loader())
    assert running.current_epoch == 3
    assert len([one for one in caught if "CSVLogger" in str(one.message)]) == 1


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_images": 0}, "`n_images` expected 1 or more, got 0"),
        ({"attributions": {}}, "`attributions` expected at least one method"),
    ],
)
def test_wrong_arguments_are_told_about_at_once(options: dict[str, Any], message: str) -> None:
    """Before there is a Trainer."""
    with pytest.raises(ValueError, match=message):
        SaliencyMaps(**{"attributions": METHODS, "mean": MEAN, "std": STD, **options})


def test_images_are_kept_without_their_batch(panels: list[Any]) -> None:
    """A view of a large batch would keep all of it in memory."""
    callback = maps(n_images=1)
    kept: list[Tensor] = []
    running = looked_at(callbacks=[callback])
    running.validate(classifier(), loader(), verbose=False)
    for followed in callback._followed.values():
        kept += followed.probes.images
    assert [image.untyped_storage().nbytes() for image in kept] == [3 * 8 * 8 * 4]


# Batches as people have them


def batch(images: Tensor, labels: Any) -> DataLoader:
    """A dataloader of one batch that is handed on as it is."""
    return DataLoader([(images, labels)], batch_size=None, collate_fn=lambda one: one)  # type: ignore[arg-type]


def drawn_of(panels: list[Any], data: Any, module: Any = None, **options: Any) -> Panel:
    """The panel of one validation."""
    module = classifier() if module is None else module
    looked_at(callbacks=[maps(**options)]).validate(module, data, verbose=False)
    return panels[-1][2]


def test_images_of_different_sizes_are_drawn_one_by_one(panels: list[Any]) -> None:
    """At batch size one; the pictures have the size of the first, the maps were made at each image's own."""
    images = [random_images(1, size=size)[0] for size in (8, 12, 8)]
    data = DataLoader(list(zip(images, range(3), strict=True)), 1)  # type: ignore[arg-type]
    for epochs in (1, 2):
        module = classifier()
        looked_at(callbacks=[maps()], max_epochs=epochs).fit(module, loader(), data)
        panel = panels[-1][2]
        assert panel.images.shape == (3, 3, 8, 8)
        shown = dict(zip(panel.facts["label"], panel.images, strict=True))
        for i in (0, 2):
            assert torch.equal(shown[i], to_pixels(images[i][None], MEAN, STD)[0])
        second = images[1][None]
        expected = module.model.eval()(second).softmax(1).max().item()
        assert panel.facts["probability"][panel.facts["label"].index(1)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ((0, 1, 2), [0, 1, 2]),
        (np.array([0, 1, 2]), [0, 1, 2]),
        (torch.tensor([[0], [1], [2]]), [0, 1, 2]),
        (["ant", "bee", "cat"], None),
        ({"class": torch.tensor([0, 1, 2])}, None),
        ([{"boxes": torch.zeros(1, 4)}] * 3, None),
    ],
)
def test_labels_of_any_kind_are_understood_or_left_out(
    panels: list[Any], labels: Any, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out is told with what to pass."""
    said: list[str] = []
    monkeypatch.setattr(base, "rank_zero_info", said.append)
    panel = drawn_of(panels, batch(random_images(3), labels))
    assert panel.facts.get("label") == shown
    assert any("labels (N,) for 3 images were expected" in one for one in said) == (shown is None)


def test_functions_of_multi_hot_labels_get_them(panels: list[Any]) -> None:
    """As in Faithfulness."""
    labels = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    panel = drawn_of(
        panels,
        batch(random_images(3), labels),
        targets=lambda logits, labels: labels.argmax(1),
        log_probability=log_sigmoid,
        attributions={"gradcam": GradCAM("conv2", score=sigmoid)},
    )
    assert panel.facts["explained"] == [1, 0, 0]


def test_multi_hot_labels_under_a_softmax_are_noticed(panels: list[Any]) -> None:
    """Once."""
    labels = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    with pytest.warns(UserWarning, match="Pass `log_probability=log_sigmoid`"):
        drawn_of(panels, batch(random_images(3), labels))


def test_labels_that_are_no_classes_of_the_classifier_are_refused(panels: list[Any]) -> None:
    """Then it is another module that gives the class logits."""
    message = r"classes in \[0, 2\], as the classifier \(a SmallNet\) gives 3 numbers for each image, got 7"
    with pytest.raises(ValueError, match=message):
        drawn_of(panels, batch(random_images(3), torch.tensor([0, 1, 7])))


def test_names_are_expected_for_all_classes(panels: list[Any]) -> None:
    """Not found missing when one is first predicted."""
    with pytest.raises(ValueError, match="a name for each of the 3 classes, got 2"):
        drawn_of(panels, loader(), class_names=["ant", "bee"])


def test_a_choice_of_channels_is_drawn(panels: list[Any]) -> None:
    """Of images that have more than a picture; without a choice, it is asked for."""
    images, module = random_images(3, channels=5), classifier(model=small_net(channels=5))
    options = {"mean": (0.5,) * 5, "std": (0.25,) * 5}
    with pytest.raises(ValueError, match=r"which of the 5 channels are drawn, `channels=\(0, 1, 2\)`"):
        drawn_of(panels, batch(images, None), module, **options)
    with pytest.raises(ValueError, match=r"channels of the images, in \[0, 4\], got \[7\]"):
        drawn_of(panels, batch(images, None), module, channels=(0, 1, 7), **options)
    panel = drawn_of(panels, batch(images, None), module, channels=(4, 0, 2), **options)
    assert torch.equal(panel.images, to_pixels(images[:, [4, 0, 2]], MEAN, STD))


def test_integers_that_the_step_converts_are_no_hindrance(panels: list[Any]) -> None:
    """Where the classifier is heard; where it is not, the conversion is asked for."""
    bytes_ = (random_images(3) * 32 + 128).clamp(0, 255).byte()
    heard = classifier(step=lambda module, images: module.model((images / 255 - 0.5) / 0.25))
    panel = drawn_of(panels, batch(bytes_, None), heard, classifier="model")
    torch.testing.assert_close(panel.images, bytes_ / 255)
    with pytest.raises(TypeError, match=r"got torch.uint8. Do what the step does: `unpack=lambda"):
        drawn_of(panels, batch(bytes_, None), classifier(step=lambda module, images: None), classifier="model")


# How often, and under which name


def test_pictures_are_drawn_in_every_nth_epoch(panels: list[Any]) -> None:
    """The first included; outside of a fit always."""
    module, callback = classifier(), maps(every_n_epochs=2)
    looked_at(callbacks=[callback], max_epochs=4).fit(module, loader(), loader())
    assert [step for _, step, _ in panels] == [2, 6]
    looked_at(callbacks=[callback]).validate(module, loader(), verbose=False)
    assert len(panels) == 3


def test_one_method_is_called_by_its_class(panels: list[Any]) -> None:
    """No dict is needed."""
    callback = SaliencyMaps(GradCAM("conv2"), mean=MEAN, std=STD)
    looked_at(callbacks=[callback]).validate(classifier(), loader(), verbose=False)
    assert set(panels[0][2].overlays) == {"GradCAM"}


def test_a_trainer_without_a_logger_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sees what is not drawn."""
    said: list[str] = []
    monkeypatch.setattr(module_under_test, "rank_zero_info", said.append)
    trainer(callbacks=[maps()]).validate(classifier(), loader(), verbose=False)
    assert said == ["SaliencyMaps: nothing is drawn, as the Trainer has no logger: `logger=CSVLogger('logs')`, say."]
