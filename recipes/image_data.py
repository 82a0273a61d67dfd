"""The images that recipes train on and explain: generated, from folders, by torchvision, or from WebDataset shards."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import timm
import timm.data
import torch
from generated_images import CLASSES, MEAN, STD, GeneratedImages
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision import datasets
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 64
"""Images up to this size are not cropped at evaluation, and only shifted and flipped in training."""

Batch = tuple[Tensor, Tensor, list[str]]
"""Images (N,C,H,W), labels (N,), and the names of files of this batch that could not be read and are left out."""


class ImageData(pl.LightningDataModule):
    """Train and validation images; the validation images are also the ones tested on.

    Args:
        train: Training images, None where there are none to train on.
        val: Validation images.
        classes: Names of the classes by index.
        mean: Mean by which images are standardised.
        std: Standard deviation by which images are standardised.
        image_size: Side of the images in pixels.
        batch_size: Images in a batch.
        workers: Processes that load images.
        generated: Whether the images are generated.
    """

    def __init__(
        self,
        train: Dataset[Any] | None,
        val: Dataset[Any],
        classes: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        batch_size: int,
        workers: int = 0,
        generated: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.classes = list(classes)
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size = image_size
        self.batch_size = batch_size
        self.workers = workers
        self.generated = generated

    @property
    def trainable(self) -> bool:
        """Whether there are training images."""
        return self.train is not None

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of one process in an epoch; None where the number is not known."""
        if self.train is None or isinstance(self.train, IterableDataset):
            return None
        return -(-len(self.train) // self.batch_size)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of training images, shuffled."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of validation images, in order."""
        return self._loader(self.val, shuffle=False)

    test_dataloader = val_dataloader

    def _loader(self, dataset: Any, *, shuffle: bool) -> DataLoader[Any]:
        shuffle = shuffle and not isinstance(dataset, IterableDataset)
        return DataLoader(dataset, self.batch_size, shuffle, num_workers=self.workers, collate_fn=readable)


def readable(items: list[tuple[Tensor | str, int]]) -> Batch:
    """Collate what could be read, and name what could not.

    Args:
        items: Images (C,H,W), or the name of a file in place of one, with their labels.

    Returns:
        Images, labels, and names.

    Raises:
        RuntimeError: If nothing could be read.
    """
    good = [(image, label) for image, label in items if isinstance(image, Tensor)]
    bad = [name for name, _ in items if isinstance(name, str)]
    if not good:
        raise RuntimeError(f"A batch expected readable images, got none: {', '.join(bad[:5])}.")
    images, labels = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels), bad


class FolderOfImages(datasets.ImageFolder):
    """A folder of class folders. A subset of ImageNet's WordNet ids keeps the index of all 1000 classes.

    An image that cannot be read comes as its name, for :func:`readable` to leave out.
    """

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """Class names and their index."""
        found = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
        known = {wnid: i for i, wnid in enumerate(timm.data.ImageNetInfo().label_names())}
        strange = [name for name in found if name not in known]
        if not found:
            raise FileNotFoundError(f"`--data` expected class folders in {directory}, found none.")
        if len(strange) == len(found):
            return found, {name: i for i, name in enumerate(found)}
        if strange:
            raise ValueError(
                f"`--data` expected folders named by the WordNet ids of ImageNet's 1000 classes in {directory}, found "
                f"others among them: {', '.join(strange[:5])}. Rename or move these."
            )
        return found, {name: known[name] for name in found}

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image or name, and label."""
        path, label = self.samples[index]
        try:
            return super().__getitem__(index)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            return path, label


def image_data(args: argparse.Namespace) -> ImageData:
    """The images that a command line asks for.

    Args:
        args: With ``data``, ``val_data``, ``image_size``, ``mean``, ``std``, ``batch_size``, ``workers``, ``seed``,
            ``fast_dev_run`` and ``model``.

    Returns:
        The data.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no images.
        ValueError: If class folders are unknown, or shards lack what they need.
    """
    make = partial(ImageData, image_size=args.image_size, batch_size=args.batch_size, workers=args.workers)
    if args.data is None:
        mean, std = _statistics(args, MEAN, STD)
        train, val = (
            GeneratedImages(n, seed=args.seed, split=split, size=args.image_size, transform=_standardized(mean, std))
            for split, n in (("train", 128 if args.fast_dev_run else 3072), ("val", 128 if args.fast_dev_run else 512))
        )
        return make(train, val, CLASSES, mean=mean, std=std, generated=True)
    mean, std = _statistics(args, *_statistics_of_model(args.model))
    transforms = train_transform(args.image_size, mean, std), eval_transform(args.image_size, mean, std)
    source = _by_torchvision if args.data in ("cifar10", "imagenette") else _folders
    if ".tar" in args.data:
        source = _shards
    train, val, classes = source(args, *transforms)
    return make(train, val, classes, mean=mean, std=std)


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    """Random crop and flip, then standardised: as usual for ImageNet, by a few pixels for small images."""
    crop = v2.RandomCrop(size, padding=size // 8) if size <= SMALL else v2.RandomResizedCrop(size, antialias=True)
    resize = [v2.Resize((size, size), antialias=True)] if size <= SMALL else []
    return v2.Compose([*resize, crop, v2.RandomHorizontalFlip(), v2.ToImage(), _standardized(mean, std)])


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    """Shorter side to 8/7 of the size and the centre of it, as usual for ImageNet; small images as a whole."""
    shown = (
        [v2.Resize((size, size), antialias=True)]
        if size <= SMALL
        else [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
    )
    return v2.Compose([*shown, v2.ToImage(), _standardized(mean, std)])


def _standardized(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


def _statistics(
    args: argparse.Namespace, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    return args.mean or mean, args.std or std


def _statistics_of_model(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """What timm says of its network's training; torchvision's were all trained with ImageNet's."""
    config = timm.get_pretrained_cfg(name.removeprefix("timm:")) if timm.is_model(name.removeprefix("timm:")) else None
    return (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)


def _folders(args: argparse.Namespace, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    root = Path(args.data)
    if not (root / "val").is_dir():
        raise FileNotFoundError(f"`--data` expected a folder with val/<class>/ (and train/<class>/) in it, got {root}.")
    val = FolderOfImages(root / "val", eval_t)
    train = FolderOfImages(root / "train", train_t) if (root / "train").is_dir() else None
    if train is not None:
        unknown = sorted(set(val.class_to_idx) - set(train.class_to_idx))
        if unknown and max(train.class_to_idx.values()) < 1000 and train.classes[0] not in _imagenet():
            raise ValueError(f"`--data` expected the classes of train in val too, got unknown ones: {unknown[:5]}.")
    names = _imagenet_names() if val.classes[0] in _imagenet() else list((train or val).classes)
    return train, val, names


def _imagenet() -> set[str]:
    return set(timm.data.ImageNetInfo().label_names())


def _imagenet_names() -> list[str]:
    info = timm.data.ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())]


def _by_torchvision(args: argparse.Namespace, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    root = Path("data")
    if args.data == "cifar10":
        train = datasets.CIFAR10(root, train=True, transform=train_t, download=True)
        return train, datasets.CIFAR10(root, train=False, transform=eval_t, download=True), train.classes
    train = datasets.Imagenette(root, "train", "320px", download=True, transform=train_t)
    val = datasets.Imagenette(root, "val", "320px", download=True, transform=eval_t)
    return train, val, [names[0] for names in train.classes]


def _shards(args: argparse.Namespace, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    """Shards with an image (jpg, jpeg, png, webp) and a class index (cls) a sample; classes as of ImageNet."""
    try:
        import webdataset as wds
    except ImportError as error:
        raise ImportError("Shards expected the package webdataset: pip install 'lightning_xai[webdataset]'.") from error
    if not args.val_data:
        raise ValueError("`--val-data` expected validation shards beside the training shards of `--data`.")
    if args.epochs and args.max_steps < 0:
        raise ValueError("`--max-steps` expected the length of training: the number of images in shards is not known.")

    def pipeline(urls: str, transform: Any, *, train: bool) -> Any:
        shards = wds.WebDataset(
            urls, shardshuffle=100 if train else False, nodesplitter=wds.split_by_node, handler=wds.warn_and_continue
        )
        shards = shards.repeat().shuffle(1000) if train else shards
        decoded = shards.decode("pilrgb", handler=wds.warn_and_continue).to_tuple("jpg;jpeg;png;webp", "cls")
        return decoded.map_tuple(transform, int)

    return pipeline(args.data, train_t, train=True), pipeline(args.val_data, eval_t, train=False), _imagenet_names()
