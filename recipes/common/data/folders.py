"""Images in class folders, as ImageNet is kept: ``train/<class>/*`` and ``val/<class>/*``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm.data
from torch import Tensor
from torchvision import datasets

from lightning_xai.images import UNREADABLE, read_image
from lightning_xai.networks import imagenet_names


def imagenet_index() -> dict[str, int]:
    """The 1000 WordNet ids of ImageNet's classes with their index.

    Example:
        >>> imagenet_index()["n01440764"]
        0
    """
    return {wnid: i for i, wnid in enumerate(timm.data.ImageNetInfo().label_names())}


def class_index(folders: Sequence[str]) -> dict[str, int]:
    """The class index of folders: ImageNet's 1000 classes where the names are its WordNet ids, else the sorted names.

    Raises:
        ValueError: If some but not all are WordNet ids of ImageNet's classes.

    Example:
        >>> class_index(["dog", "cat"]), len(class_index(["n01440764"]))
        ({'cat': 0, 'dog': 1}, 1000)
    """
    known = imagenet_index()
    strange = sorted(set(folders) - set(known))
    if not strange:
        return known
    if len(strange) == len(set(folders)):
        return {name: i for i, name in enumerate(strange)}
    raise ValueError(
        "`--data` expected class folders named by the WordNet ids of ImageNet's 1000 classes, "
        f"got others among them: {', '.join(strange[:5])}. Rename or remove these."
    )


class ImagesInFolders(datasets.ImageFolder):
    """Images of class folders by a given class index; one that cannot be read comes as its path.

    Args:
        root: The folder with the class folders.
        index: Class names with their index; classes without a folder, or with an empty one, are fine.
        transform: From the image to a tensor (C,H,W).

    Raises:
        ValueError: If a folder is not among the classes.
        FileNotFoundError: If there are no images.
    """

    def __init__(self, root: Path, index: dict[str, int], transform: Callable[[Any], Tensor]) -> None:
        self._index = index
        super().__init__(str(root), transform, allow_empty=True)
        self.classes = sorted(index, key=index.__getitem__)  # of the labels, also those without a folder
        if not self.samples:
            raise _no_images(root)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The classes that have folders here, with their index."""
        found = class_folders(Path(directory))
        if not found:
            raise _no_images(directory)
        unknown = [name for name in found if name not in self._index]
        if unknown:
            raise ValueError(
                f"`--data` expected the class folders of train in {directory} too, got unknown ones: "
                f"{', '.join(unknown[:5])}."
            )
        return found, {name: self._index[name] for name in found}

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, or its path where it cannot be read, and its label."""
        path, label = self.samples[index]
        try:
            image = read_image(Path(path))
        except UNREADABLE:
            return path, label
        return self.transform(image), label  # outside of the try: errors of the transform are not the file's


def _no_images(root: str | Path) -> FileNotFoundError:
    return FileNotFoundError(f"`--data` expected images in class folders in {root}, found none.")


def class_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def images_in_folders(
    root: Path, train_transform: Callable[[Any], Tensor], eval_transform: Callable[[Any], Tensor]
) -> tuple[ImagesInFolders | None, ImagesInFolders, list[str]]:
    """Training and validation images of a folder in ImageNet's layout.

    Args:
        root: Folder with ``val/<class>/*`` and, to train, ``train/<class>/*``.
        train_transform: For training images.
        eval_transform: For validation images.

    Returns:
        Training images (None without ``train``), validation images in an order shuffled once, so that the first n are
        a fair sample, and the names of the classes by index.

    Raises:
        FileNotFoundError: If there is no ``val``, or there are no images.
        ValueError: If class folders are unknown.
    """
    train, val = root / "train", root / "val"
    if not val.is_dir():
        raise FileNotFoundError(f"`--data` expected a folder with val/<class>/ (and train/<class>/) in it, got {root}.")
    trainable = train.is_dir()
    index = class_index(class_folders(train if trainable else val))
    shown = ImagesInFolders(val, index, eval_transform)
    random.Random(0).shuffle(shown.samples)
    names = imagenet_names() if index == imagenet_index() else list(index)
    return ImagesInFolders(train, index, train_transform) if trainable else None, shown, names
