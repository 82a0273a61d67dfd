"""The command line: a folder of images explained, again where it was stopped, whatever is in the folder."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from hostile_images import halves, write_no_images, write_odd
from safetensors.torch import save_file
from support import small_net
from torch import Tensor, nn

from lightning_xai import GradCAM, InputGradient, explain
from lightning_xai.__main__ import main
from lightning_xai.images import read_image
from lightning_xai.networks import create_classifier, preprocessing_of

SMALL = ["--image-size", "16", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25", "--device", "cpu"]


class Lit(pl.LightningModule):
    """A LightningModule whose checkpoint says with how many classes it was made."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = small_net(classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def network() -> nn.Module:
    """A small network of three classes."""
    return small_net(3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, one of them with a name that would be a script, in another alphabet and with a formula."""
    folder = tmp_path / "images"
    for name in ("<script>alert(1)</script>", "=1+1 \u732b"):
        (folder / name.replace("/", "\u2215")).mkdir(parents=True)
        halves().save(folder / name.replace("/", "\u2215") / "a.png")
    return folder


def run(images: Path, out: Path, *more: str, model: str = f"{__name__}:network") -> list[dict[str, str]]:
    """The table that the command writes."""
    page = main(["explain", str(images), "--model", model, "--out", str(out), *SMALL, *more])
    assert page == out / "index.html"
    with (out / "explanations.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_maps_numbers_and_pictures_are_those_of_the_classifier(images: Path, tmp_path: Path) -> None:
    """The same as `explain` computes of the same images."""
    weights = tmp_path / "a.safetensors"
    save_file(network().state_dict(), weights)
    rows = run(images, tmp_path / "out", "--weights", str(weights), "--methods", "gradcam", "InputGradient")
    assert [row["file"] for row in rows] == ["<script>alert(1)<\u2215script>/a.png", "'=1+1 \u732b/a.png"]
    model = create_classifier(f"{__name__}:network", weights=weights)
    batch = preprocessing_of(model, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3).transform(halves())[None]
    expected = explain(model, batch, attributions={"GradCAM": GradCAM(), "InputGradient": InputGradient()})
    for path in (tmp_path / "out/maps").iterdir():
        with np.load(path) as maps:
            assert {*maps} == {*expected}
            for name, values in expected.items():
                np.testing.assert_allclose(maps[name], values[0], rtol=1e-4, atol=1e-6)
    for row in rows:
        assert 0 <= float(row["GradCAM drop"]) <= 100
        assert float(row["probability"]) == pytest.approx(model(batch).softmax(1).max().item(), rel=1e-4)
        assert int(row["class"]) == model(batch).argmax()
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert page.count("<img src=") == 2 * 3
    assert "<script>" not in page
    assert "weights: a.safetensors; methods: GradCAM, InputGradient" in page


def test_a_second_run_does_what_is_left(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New and changed files alone; other settings are refused."""
    out = tmp_path / "out"
    run(images, out)
    (images / "b.png").write_bytes((next(images.iterdir()) / "a.png").read_bytes())
    read: list[str] = []
    monkeypatch.setattr("lightning_xai.folders.read_image", lambda path: read.append(path.name) or read_image(path))
    assert len(run(images, out)) == 3
    assert read == ["b.png"]
    with pytest.raises(SystemExit, match=r"written with other \['methods'\]\. Give another folder"):
        run(images, out, "--methods", "LayerCAM")


def test_what_is_done_is_kept_when_it_is_stopped(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table and the page are written of what there is."""
    halves().save(images / "b.png")

    def stopped(path: Path) -> Any:
        if path.name == "a.png":
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr("lightning_xai.folders.read_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "out", "--batch-size", "1")
    assert (tmp_path / "out/index.html").read_text(encoding="utf-8").count("<img src=") == 2
    monkeypatch.undo()
    assert len(run(images, tmp_path / "out", "--batch-size", "1")) == 3


def test_strangers_files_are_shown_or_named_and_nothing_is_written_outside(tmp_path: Path) -> None:
    """Odd images are explained; what is none, and links out of the folder, is named with the reason."""
    folder, outside = tmp_path / "images", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    halves().save(outside / "secret.png")
    odd, wrong = write_odd(folder), write_no_images(folder)
    (folder / "link.png").symlink_to(outside / "secret.png")
    before = set(tmp_path.rglob("*"))
    rows = run(folder, tmp_path / "out")
    named = {row["file"]: row["error"] for row in rows if row["error"]}
    assert named.keys() == {path.name for path in wrong} | {"link.png"}
    assert {row["file"] for row in rows} - named.keys() == {path.name for path in odd.values()}
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "onerror=alert" not in page.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    assert {path for path in tmp_path.rglob("*") if tmp_path / "out" not in [path, *path.parents]} == before


def test_a_checkpoint_of_a_lightning_module_says_how_it_was_made(images: Path, tmp_path: Path) -> None:
    """Its class is named; the arguments are in the file."""
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    module = Lit(4)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    weights = ["--weights", str(tmp_path / "a.ckpt"), "--classes", str(tmp_path / "names.txt")]
    rows = run(images, tmp_path / "out", *weights, model=f"{__name__}:Lit")
    assert {row["prediction"] for row in rows} <= {"ant", "bee", "cat", "dog"}
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["weights"] == str(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("timm:resnet5000", "Near names"),
        ("nowhere.at.all:x", "nowhere"),
        (f"{__name__}:missing", "expected a function"),
    ],
)
def test_wrong_models_end_in_one_sentence(images: Path, tmp_path: Path, model: str, words: str) -> None:
    """No traceback."""
    with pytest.raises(SystemExit, match=words):
        run(images, tmp_path / "out", model=model)


def test_random_weights_are_said(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of architectures by name, whose maps mean nothing without weights."""
    run(images, tmp_path / "out")
    assert "random" not in capsys.readouterr().err
    run(images, tmp_path / "other", "--num-classes", "3", model="timm:test_resnet")
    assert "The weights are random: give `--pretrained` or `--weights FILE`." in capsys.readouterr().err


def test_no_images_end_in_one_sentence(tmp_path: Path) -> None:
    """An empty folder, and none."""
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "found none"), ("missing", "a folder or an image")):
        with pytest.raises(SystemExit, match=words):
            run(tmp_path / name, tmp_path / "out")


def test_help_names_commands_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the command and of both subcommands."""
    for words, told in (([], "explain"), (["explain"], "IntegratedGradients"), (["report"], "RUN2")):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert told in capsys.readouterr().out


@pytest.mark.parametrize("command", [["explain", "photos", "--model", "timm:resnet18"], ["report", "run"]])
def test_an_unknown_option_shows_what_the_command_has(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Not what the commands are."""
    with pytest.raises(SystemExit):
        main([*command, "--colour", "red"])
    told = capsys.readouterr().err
    assert f"usage: python -m lightning_xai {command[0]}" in told
    assert "unrecognized arguments: --colour red" in told
