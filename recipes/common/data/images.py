"""The images that recipes train on and explain: generated, from folders, by torchvision, or from WebDataset shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from common.data.folders import images_in_folders
from common.data.generated import CLASSES, MEAN, STD, GeneratedImages
from common.data.loading import Batch, ImageData
from common.data.shards import ImagesInShards
from common.options import DataOptions, ModelOptions
from lightning_xai.networks import imagenet_names

__all__ = ["Batch", "ImageData", "eval_transform", "image_data", "train_transform"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 64
"""Images up to this size are not cropped at evaluation, and only shifted and flipped in training."""
DOWNLOADS = Path("data")
"""Where torchvision puts what it downloads."""


def image_data(
    options: DataOptions, model: ModelOptions, *, seed: int = 0, small: bool = False, steps: int = 0
) -> ImageData:
    """The images that a command line asks for.

    Args:
        options: Where they are, how large and how many at once.
        model: The classifier, which says by what images are standardised where ``mean`` and ``std`` do not.
        seed: Of the order of the training images, and of generated ones.
        small: Whether to generate few images, to try a script.
        steps: Length of training where the images are shards; 0: no training; below 0: as long as the epochs.

    Returns:
        The data.

    Raises:
        FileNotFoundError: If a folder or shard does not exist, or holds no images.
        ValueError: If class folders are unknown, shards lack what they need, or mean and deviation are those of bytes.
    """
    if max(*(model.mean or [0]), *(model.std or [0])) > 1:
        raise ValueError("`--mean` and `--std` expected values of pixels in [0, 1], got larger ones: divide by 255.")
    size = options.image_size
    make = partial(ImageData, image_size=size, batch_size=options.batch_size, workers=options.workers, seed=seed)
    usual = (MEAN, STD) if options.data is None else _statistics_of_model(str(model.model))
    mean, std = list(model.mean or usual[0]), list(model.std or usual[1])
    if options.data is None:
        return make(*_generated(size, seed, small, _standardized(mean, std)), mean=mean, std=std, generated=True)
    transforms = train_transform(size, mean, std), eval_transform(size, mean, std)
    if ".tar" in options.data:
        return make(*_shards(options, seed, steps, *transforms), mean=mean, std=std, steps=steps or None)
    return make(*_at_hand(options.data, *transforms), mean=mean, std=std)


def train_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    """Random crop and flip, then standardised: as usual for ImageNet, by a few pixels for small images."""
    small = [v2.Resize((size, size), antialias=True), v2.RandomCrop(size, padding=size // 8)]
    crop = small if size <= SMALL else [v2.RandomResizedCrop(size, antialias=True)]
    return v2.Compose([v2.ToImage(), *crop, v2.RandomHorizontalFlip(), _standardized(mean, std)])


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    """Shorter side to 8/7 of the size and the centre of it, as usual for ImageNet; small images as a whole."""
    large = [v2.Resize(round(size * 8 / 7), antialias=True), v2.CenterCrop(size)]
    shown = [v2.Resize((size, size), antialias=True)] if size <= SMALL else large
    return v2.Compose([v2.ToImage(), *shown, _standardized(mean, std)])


def _standardized(mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Tensor]:
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std)), v2.ToPureTensor()])


def _statistics_of_model(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """What timm says of its network's training; torchvision's were all trained with ImageNet's."""
    bare = name.removeprefix("timm:")
    config = timm.get_pretrained_cfg(bare) if timm.is_model(bare) else None
    return (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)


def _generated(
    size: int, seed: int, small: bool, standardized: Callable[[Any], Tensor]
) -> tuple[Any, Any, tuple[str, ...]]:
    n_train, n_val = (128, 128) if small else (3072, 512)
    make = partial(GeneratedImages, seed=seed, size=size)
    # Half of the training images have a part in black, so that a masked image is nothing that the network never saw.
    augmented = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomErasing(0.5, (0.2, 0.9)), standardized])
    return make(n_train, transform=augmented), make(n_val, split="val", transform=standardized), CLASSES


def _at_hand(name: str, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    """Images of a folder or of torchvision."""
    if name == "cifar10":
        train = datasets.CIFAR10(DOWNLOADS, train=True, transform=train_t, download=True)
        return train, datasets.CIFAR10(DOWNLOADS, train=False, transform=eval_t, download=True), train.classes
    if name == "imagenette":
        datasets.Imagenette(DOWNLOADS, size="320px", download=True)
        name = str(DOWNLOADS / "imagenette2-320")  # ten of ImageNet's classes, which keep their index
    return images_in_folders(Path(name), train_t, eval_t)


def _shards(options: DataOptions, seed: int, steps: int, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    """Shards with the class index of ImageNet."""
    shards = str(options.data)
    if not steps:
        return None, ImagesInShards(options.val_data or shards, eval_t), imagenet_names()
    if not options.val_data:
        raise ValueError("`--val-data` expected validation shards beside the training shards of `--data`.")
    if steps < 0:
        raise ValueError("`--max-steps` expected the length of training: the number of images in shards is not known.")
    train = ImagesInShards(shards, train_t, endless=True, seed=seed)
    return train, ImagesInShards(options.val_data, eval_t), imagenet_names()
