"""What the command line's --data can be."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from recipes.image_files import HEN, TENCH, write_images, write_shard

from common.data.generated import CLASSES
from common.data.images import datasets, eval_transform, image_data, train_transform
from common.options import DataOptions, ModelOptions


def data_of(folder=None, *, name="resnet18", mean=None, val_data=None, **options):
    """The data of a command line."""
    data = DataOptions(None if folder is None else str(folder), val_data, image_size=32, batch_size=4)
    return image_data(data, ModelOptions(name, mean=mean), small=True, **options)


def test_generated_images_are_the_default():
    """They say that they are generated."""
    data = data_of()
    images, labels, skipped = next(iter(data.val_dataloader()))
    assert data.generated
    assert data.classes == list(CLASSES)
    assert images.shape == (4, 3, 32, 32)
    assert type(images) is torch.Tensor
    assert -2 <= images.min() < 0 < images.max() <= 2
    assert torch.equal(labels, data.val.labels[:4])
    assert skipped == []


def test_a_folder_of_imagenets_layout(tmp_path):
    """With an unreadable file; both loaders name it."""
    for split in ("train", "val"):
        write_images(tmp_path / split, {TENCH: 3, HEN: 2})
        (tmp_path / split / HEN / "broken.JPEG").write_bytes(b"")
    data = data_of(tmp_path)
    assert data.steps_per_epoch == 2
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batches = list(loader)
        assert sum(len(images) for images, *_ in batches) == 5
        assert [name.rsplit("/", 1)[1] for *_, names in batches for name in names] == ["broken.JPEG"]


def test_a_folder_with_val_only_can_be_evaluated(tmp_path):
    """Nothing to train on."""
    write_images(tmp_path / "val", {TENCH: 1})
    data = data_of(tmp_path)
    assert not data.trainable
    assert not data.generated
    assert data.steps_per_epoch is None
    assert len(list(data.val_dataloader())) == 1


def write_cifar10(root):
    """The files that torchvision's CIFAR10 unpacks, with four images each."""
    root.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in names:
        content = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
        (root / name).write_bytes(pickle.dumps(content))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))


def test_cifar10_comes_from_torchvision(tmp_path, monkeypatch):
    """From its own files; the check of their sums is left out for these stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: path.exists())
    monkeypatch.setattr("torchvision.datasets.cifar.os.path.join", lambda *parts: tmp_path.joinpath(*parts))
    write_cifar10(tmp_path / "data" / "cifar-10-batches-py")
    data = data_of("cifar10")
    assert len(data.train) == 20
    assert len(data.val) == 4
    assert data.classes[9] == "truck"
    assert next(iter(data.val_dataloader()))[0].shape == (4, 3, 32, 32)


def test_imagenette_keeps_imagenets_index(tmp_path, monkeypatch):
    """Its folders are named by WordNet ids; nothing is downloaded where it is unpacked already."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        write_images(tmp_path / "data" / "imagenette2-320" / split, {TENCH: 1})
    assert datasets.Imagenette("data", size="320px").classes == [("tench", "Tinca tinca")]
    data = data_of("imagenette")
    assert len(data.classes) == 1000
    assert len(data.train) == len(data.val) == 1


def test_shards_need_validation_shards_and_a_length(tmp_path):
    """How many images they hold is not written anywhere."""
    write_shard(tmp_path / "a.tar", range(8))
    shards = str(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="`--val-data` expected validation shards"):
        data_of(shards, steps=-1)
    with pytest.raises(ValueError, match="`--max-steps` expected the length of training"):
        data_of(shards, val_data=shards, steps=-1)


def test_shards_train_for_the_steps_asked_for(tmp_path):
    """Though they hold fewer images; validation sees each image once."""
    write_shard(tmp_path / "a.tar", range(8))
    shards = str(tmp_path / "a.tar")
    data = data_of(shards, val_data=shards, steps=5)
    assert data.steps_per_epoch == 5
    assert [len(images) for images, *_ in data.train_dataloader()] == [4] * 5
    assert sorted(label for _, labels, _ in data.val_dataloader() for label in labels.tolist()) == list(range(8))
    assert data.classes[8] == "hen"


def test_shards_alone_can_be_evaluated(tmp_path):
    """With no epochs of training."""
    write_shard(tmp_path / "a.tar", range(8))
    data = data_of(tmp_path / "a.tar")
    assert not data.trainable
    assert sum(len(images) for images, *_ in data.val_dataloader()) == 8


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"name": "resnet18"}, (0.485, 0.456, 0.406)),
        ({"name": "torchvision:resnet18"}, (0.485, 0.456, 0.406)),
        ({"name": "timm:mobilenetv1_100"}, (0.5, 0.5, 0.5)),
        ({"name": "resnet18", "mean": [0.1, 0.2, 0.3]}, (0.1, 0.2, 0.3)),
    ],
)
def test_mean_and_deviation_are_the_models_unless_given(options, mean, tmp_path):
    """As timm says; torchvision's networks were trained with ImageNet's."""
    write_images(tmp_path / "val", {TENCH: 1})
    assert data_of(tmp_path, **options).mean == mean


@pytest.mark.parametrize("size", [32, 64, 96])
def test_transforms_give_standardised_squares(size):
    """From any format, small images are enlarged."""
    image = Image.fromarray(np.full((40, 70, 3), 255, np.uint8))
    for transform in (train_transform(size, (0.5,) * 3, (0.25,) * 3), eval_transform(size, (0.5,) * 3, (0.25,) * 3)):
        tensor = transform(image)
        assert tensor.shape == (3, size, size)
        assert type(tensor) is torch.Tensor
        assert tensor.max() == 2.0


def test_evaluation_shows_the_centre():
    """The shorter side becomes 8/7 of the size, of which the centre is shown: 256 and 224 for ImageNet."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[16:-16, 144:-144] = 255
    shown = eval_transform(224, (0.0,) * 3, (1.0,) * 3)
    assert shown(Image.fromarray(pixels)).min() == 1.0
    pixels[15] = 255
    pixels[16] = 0
    assert shown(Image.fromarray(pixels))[:, 0].max() == 0.0
