"""The README's code runs as it stands."""

import re
from pathlib import Path

import lightning_xai

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path, monkeypatch):
    """One after the other, in one namespace, as a reader would."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_training_step_of_the_readme_trains(tmp_path, monkeypatch):
    """The LightningModule and the callbacks shown there, in a Trainer, on noise."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    namespace: dict[str, object] = {}
    exec(compile(block.split("trainer = ")[0], "README.md", "exec"), namespace)
    data = DataLoader(TensorDataset(torch.randn(4, 3, 64, 64), torch.arange(4)), 2)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        callbacks=namespace["callbacks"],
        logger=pl.loggers.CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(namespace["Classifier"](), data, data)
    logged = set(trainer.callback_metrics)
    keys = set(re.findall(r"`((?:val|train)/[a-z_/<>A-Z]+)`", TEXT))
    assert {"val/xai/<name>/AverageDrop", "val/xai/<name>/ConstantMaps"} <= keys
    for key in keys - {"val/xai/maps"}:
        assert key.replace("<name>", "gradcam") in logged
    assert list((tmp_path / "lightning_logs").rglob("*.webp"))


def test_the_metric_of_the_readme_is_measured(tmp_path, monkeypatch):
    """In a Trainer, beside ours."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (own,) = (block for block in blocks if "def measure" in block)
    namespace: dict[str, object] = {}
    exec(compile(blocks[0].split("trainer = ")[0] + own, "README.md", "exec"), namespace)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", callbacks=namespace["callbacks"][-1:], **quiet)
    data = DataLoader(TensorDataset(torch.randn(4, 3, 64, 64), torch.arange(4)), 2)
    trainer.validate(namespace["Classifier"](), data, verbose=False)
    assert 1 / 64**2 < trainer.callback_metrics["val/xai/again/LargestShare"] < 1


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
