"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import lightning_xai

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    block.replace("pretrained=True", "pretrained=False")  # nothing is downloaded
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the examples define, run one after the other in a folder with a photograph, as a reader would."""
    folder = tmp_path_factory.mktemp("reader")
    Image.new("RGB", (300, 200), "orange").save(folder / "photo.jpg")
    namespace: dict[str, object] = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), namespace)
    return namespace


def test_the_first_picture_is_drawn(names):
    """Two lines from a file to a figure."""
    with Image.open(names["folder"] / "explained.png") as picture:
        assert min(picture.size) > 200


def test_the_module_of_the_readme_trains_with_its_callbacks(names, tmp_path, monkeypatch):
    """On noise; what the text says is logged is logged."""
    monkeypatch.chdir(tmp_path)
    images = torch.randn(4, 3, 64, 64)
    data = DataLoader(TensorDataset(images, torch.arange(4)), 2)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, log_every_n_steps=1, callbacks=names["callbacks"][:3], logger=logger, **quiet
    )
    trainer.fit(names["Classifier"](), data, data)
    keys = set(re.findall(r"`((?:val|train)/[a-z_/<>A-Z]+)`", TEXT)) - {"val/xai/maps"}
    assert keys
    assert {key.replace("<name>", "gradcam") for key in keys} <= set(trainer.callback_metrics)
    assert list(tmp_path.rglob("*.webp"))


def test_methods_of_the_readme_can_be_made_as_they_stand_there():
    """Each name of a class with empty brackets."""
    named = {name for name in re.findall(r"`(?:xai\.)?([A-Z]\w+)\(\)`", TEXT) if hasattr(lightning_xai, name)}
    assert {"GradCAM", "GuidedGradCAM"} <= named
    for name in named:
        getattr(lightning_xai, name)()


def test_pictures_of_the_readme_are_there():
    """And they are files of the repository."""
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file()
