"""What a loop runs on: its stage, its dataloaders, and what their datasets say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, DistributedSampler

from lightning_xai.standard import Numbers, found_standards


def share_of(total: int, rank: int, world_size: int) -> int:
    """How many of the first ``total`` items fall to a rank when they are dealt out in turn.

    Args:
        total: Number of items.
        rank: The rank.
        world_size: Number of ranks.

    Returns:
        The number.

    Example:
        >>> [share_of(5, rank, 2) for rank in range(2)]
        [3, 2]
    """
    return max(0, (total - rank + world_size - 1) // world_size)


def is_due(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """Whether a callback works in this epoch: each n-th of a fit, the first included, and always outside of one."""
    return trainer.state.fn != "fit" or trainer.current_epoch % every_n_epochs == 0


def stage_of(trainer: pl.Trainer) -> str:
    """The first part of log keys: ``test`` while testing, else ``val``."""
    return "test" if trainer.testing else "val"


def loaders_of(trainer: pl.Trainer) -> list[Any]:
    """The dataloaders of the running validation or test loop."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def images_of_rank(trainer: pl.Trainer, loader: Any, n_images: int | None) -> int | None:
    """How many images of a dataloader this rank is to use, so that no image counts twice and ``n_images`` is global.

    A ``DistributedSampler`` repeats images to give every rank equally many; the copies come last and are left out.

    Args:
        trainer: The trainer.
        loader: One of its dataloaders.
        n_images: Number of images over all ranks; None for all.

    Returns:
        The number of images from the start; None for all.
    """
    sampler = getattr(loader, "sampler", None) if isinstance(loader, DataLoader) else None
    if isinstance(sampler, DistributedSampler):
        length = len(sampler.dataset)  # type: ignore[arg-type]
        n_images = length if n_images is None else min(n_images, length)
        return share_of(n_images, sampler.rank, sampler.num_replicas)
    return None if n_images is None else share_of(n_images, trainer.global_rank, trainer.world_size)


def standards_in(trainer: pl.Trainer, dataloader_idx: int) -> set[tuple[Numbers, Numbers]]:
    """By which mean and deviation images are standardised: what the dataset's transforms say, else the datamodule.

    Args:
        trainer: The trainer.
        dataloader_idx: Which of its dataloaders; datasets in its dataset are looked through.

    Returns:
        Pairs of mean and deviation; none where nothing names them.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    found = found_standards(loaders_of(trainer)[dataloader_idx]) or found_standards(datamodule)
    parts = [] if found or datamodule is None else vars(datamodule).values()
    return found.union(*map(found_standards, parts))


def class_names_of(loader: Any) -> list[str] | None:
    """Names of the classes as the dataset of a loader has them: a list ``classes``, as torchvision's have.

    Args:
        loader: The dataloader; the dataset of a subset is looked for.

    Returns:
        The names; None where there are none.

    Example:
        >>> from types import SimpleNamespace
        >>> subset = SimpleNamespace(dataset=SimpleNamespace(classes=["cat", "dog"]))
        >>> class_names_of(SimpleNamespace(dataset=subset))
        ['cat', 'dog']
    """
    dataset: Any = getattr(loader, "dataset", None)
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    usual = isinstance(names, (list, tuple)) and all(isinstance(one, str) for one in names)
    return [*names] if usual and names else None
