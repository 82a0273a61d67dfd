"""The images that recipes train on and explain: generated, from folders, by torchvision, or from WebDataset shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from common.data.folders import imagenet_names, images_in_folders
from common.data.generated import CLASSES, MEAN, STD, GeneratedImages
from common.data.loading import Batch, ImageData
from common.data.shards import ImagesInShards

__all__ = ["Batch", "ImageData", "add_classifier_options", "eval_transform", "image_data", "train_transform"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 64
"""Images up to this size are not cropped at evaluation, and only shifted and flipped in training."""
DOWNLOADS = Path("data")
"""Where torchvision puts what it downloads."""


def add_classifier_options(parser: argparse.ArgumentParser) -> None:
    """The options of recipes that explain a given classifier on photographs; what only training needs gets defaults."""
    parser.add_argument("--image-size", type=int, default=224, help="side of the photographs in pixels")
    parser.add_argument("--mean", type=float, nargs=3, help="mean of the channels; default: the model's")
    parser.add_argument("--std", type=float, nargs=3, help="standard deviation of the channels; default: the model's")
    parser.add_argument("--model", help="name in timm or torchvision, or package.module:function, with --data")
    parser.add_argument("--model-options", nargs="*", default=[], metavar="NAME=VALUE", help="for the constructor")
    parser.add_argument("--weights", type=Path, help="safetensors file or checkpoint; pickled code is not executed")
    parser.add_argument("--pretrained", action="store_true", help="download the library's weights")
    parser.add_argument("--layer", help="dotted name of the explained layer; default, where there is one: the last")
    parser.set_defaults(val_data=None, workers=0, epochs=0, max_steps=-1)


def image_data(args: argparse.Namespace) -> ImageData:
    """The images that a command line asks for.

    Args:
        args: With ``data``, ``val_data``, ``image_size``, ``mean``, ``std``, ``batch_size``, ``workers``, ``seed``,
            ``fast_dev_run``, ``model``, ``epochs`` and ``max_steps``.

    Returns:
        The data.

    Raises:
        FileNotFoundError: If a folder or shard does not exist, or holds no images.
        ValueError: If class folders are unknown, shards lack what they need, or mean and deviation are those of bytes.
    """
    if max(*(args.mean or [0]), *(args.std or [0])) > 1:
        raise ValueError("`--mean` and `--std` expected values of pixels in [0, 1], got larger ones: divide by 255.")
    make = partial(
        ImageData, image_size=args.image_size, batch_size=args.batch_size, workers=args.workers, seed=args.seed
    )
    if args.data is None:
        mean, std = args.mean or MEAN, args.std or STD
        return make(*_generated(args, _standardized(mean, std)), mean=mean, std=std, generated=True)
    mean, std = _statistics_of_model(args.model)
    mean, std = args.mean or mean, args.std or std
    transforms = train_transform(args.image_size, mean, std), eval_transform(args.image_size, mean, std)
    if ".tar" in args.data:
        return make(*_shards(args, *transforms), mean=mean, std=std, steps=args.max_steps)
    return make(*_at_hand(args.data, *transforms), mean=mean, std=std)


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


def _generated(args: argparse.Namespace, standardized: Callable[[Any], Tensor]) -> tuple[Any, Any, tuple[str, ...]]:
    n_train, n_val = (128, 128) if args.fast_dev_run else (3072, 512)
    make = partial(GeneratedImages, seed=args.seed, size=args.image_size)
    flipped = v2.Compose([v2.RandomHorizontalFlip(), standardized])
    return make(n_train, transform=flipped), make(n_val, split="val", transform=standardized), CLASSES


def _at_hand(name: str, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    """Images of a folder or of torchvision."""
    if name == "cifar10":
        train = datasets.CIFAR10(DOWNLOADS, train=True, transform=train_t, download=True)
        return train, datasets.CIFAR10(DOWNLOADS, train=False, transform=eval_t, download=True), train.classes
    if name == "imagenette":
        datasets.Imagenette(DOWNLOADS, size="320px", download=True)
        name = str(DOWNLOADS / "imagenette2-320")  # ten of ImageNet's classes, which keep their index
    return images_in_folders(Path(name), train_t, eval_t)


def _shards(args: argparse.Namespace, train_t: Any, eval_t: Any) -> tuple[Any, Any, list[str]]:
    """Shards with the class index of ImageNet."""
    if not args.epochs:
        return None, ImagesInShards(args.val_data or args.data, eval_t), imagenet_names()
    if not args.val_data:
        raise ValueError("`--val-data` expected validation shards beside the training shards of `--data`.")
    if args.max_steps < 0:
        raise ValueError("`--max-steps` expected the length of training: the number of images in shards is not known.")
    train = ImagesInShards(args.data, train_t, endless=True, seed=args.seed)
    return train, ImagesInShards(args.val_data, eval_t), imagenet_names()
