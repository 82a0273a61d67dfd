"""Batches of images: every validation image once, unreadable files left out and named."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

Batch = tuple[Tensor, Tensor, list[str]]
"""Images (N,C,H,W), labels (N,), and the names of files that could not be read and are left out."""


class ImageData(pl.LightningDataModule):
    """Train and validation images; the validation images are also the ones tested on.

    The order of the training images depends on the seed and the epoch alone. Every validation image is seen once,
    by one process: no copies fill the last batch, whatever the number of processes.

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
        seed: Seed of the order of the training images.
        steps: Length of the training in batches where the training images are a stream without end.
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
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.classes = list(classes)
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size = image_size
        self.batch_size = batch_size
        self.workers = workers
        self.generated = generated
        self.seed = seed
        self.steps = steps

    @property
    def trainable(self) -> bool:
        """Whether there are training images."""
        return self.train is not None

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches of an epoch with one process; None where there is no training."""
        if self.train is None or self.steps is not None:
            return self.steps
        return -(-len(self.train) // self.batch_size)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of training images, shuffled."""
        train: Any = self.train
        world, rank = self._process()
        sampler: DistributedSampler[Any] | None = None  # a stream has an order of its own
        if not isinstance(train, IterableDataset):
            sampler = DistributedSampler(train, world, rank, shuffle=True, seed=self.seed)
        return ReadableLoader(
            train, refill=True, limit=self.steps, batch_size=self.batch_size, sampler=sampler, num_workers=self.workers
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of validation images, in order."""
        sampler = None if isinstance(self.val, IterableDataset) else EachOnce(self.val, *self._process())
        return ReadableLoader(self.val, batch_size=self.batch_size, sampler=sampler, num_workers=self.workers)

    test_dataloader = val_dataloader

    def _process(self) -> tuple[int, int]:
        """Number of processes and rank of this one; one without a Trainer."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class EachOnce(DistributedSampler[Any]):
    """Every ``num_replicas``-th index from ``rank`` on: unlike its parent, no index is repeated to even out ranks.

    It is a ``DistributedSampler`` so that the Trainer does not put one in its place.

    Example:
        >>> [list(EachOnce(range(5), 2, rank)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, dataset: Any, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self._indices = range(rank, len(dataset), num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class ReadableLoader(DataLoader[Any]):
    """A loader that never gives a batch without images.

    Args:
        dataset: Images and labels, names in place of images that cannot be read.
        refill: Whether other batches take the place of empty ones, as processes that train together need.
        limit: Number of batches after which to end.
        options: For the DataLoader.
    """

    def __init__(
        self, dataset: Dataset[Any], *, refill: bool = False, limit: int | None = None, **options: Any
    ) -> None:
        super().__init__(dataset, collate_fn=readable, **options)
        self.refill, self.limit = refill, limit

    def __iter__(self) -> Any:
        return itertools.islice(without_empty(super().__iter__(), refill=self.refill), self.limit)


def readable(items: list[tuple[Tensor | str, int]]) -> Batch:
    """Images (N,C,H,W), or (0,) of none, and labels of what could be read, and the names of what could not.

    Example:
        >>> readable([(torch.ones(3, 2, 2), 5), ("broken.jpg", 7)])[1:]
        (tensor([5]), ['broken.jpg'])
    """
    good = [(image, label) for image, label in items if isinstance(image, Tensor)]
    bad = [image for image, _ in items if isinstance(image, str)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good], dtype=torch.long), bad


def without_empty(batches: Iterable[Batch], *, refill: bool = False) -> Iterator[Batch]:
    """Leave out batches without images; their names go to a neighbouring batch, so that none is lost.

    Args:
        batches: Batches of `readable`.
        refill: Whether a copy of the neighbour takes the place of each, so that their number is kept.

    Yields:
        Those with images.

    Raises:
        RuntimeError: If no batch has images.
    """
    held: Batch | None = None
    lost: list[str] = []
    copies = 0
    for images, labels, names in batches:
        if not len(images):
            lost += names
            copies += refill
            continue
        if held is not None:
            yield held
        held, lost = (images, labels, lost + names), []
        yield from [(images, labels, [])] * copies
        copies = 0
    if held is None:
        raise RuntimeError(f"The data expected readable images, got none: {', '.join(lost[:5])}.")
    images, labels, names = held
    yield images, labels, names + lost
    yield from [(images, labels, [])] * copies
