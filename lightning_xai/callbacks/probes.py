"""Keeping the first images of a run, so that all its epochs are judged by the same ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_xai.trace import Calling


@dataclass
class Probes:
    """The first images that a classifier got, on the CPU.

    Attributes:
        wanted: How many.
        images: Images (n,C,H,W) of each batch that gave some.
        labels: Their labels, where there are any.
        callings: How the classifier was called with them, where it was heard.
        complete: Whether no more will be taken.
        one_size: Whether images of another size than the first are left out.

    Example:
        >>> probes = Probes(wanted=3)
        >>> for batch in torch.arange(4.0).view(2, 2, 1, 1, 1):
        ...     probes.take(batch)
        >>> probes.count, probes.complete, [image.item() for image in torch.cat(probes.images)]
        (3, True, [0.0, 1.0, 2.0])
    """

    wanted: int
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    callings: list[Calling] = field(default_factory=list)
    complete: bool = False
    one_size: bool = False

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.images))

    def take(self, images: Tensor, labels: Tensor | None = None, calling: Calling | None = None) -> None:
        """Take of a batch what is missing.

        Args:
            images: Images (N,C,H,W).
            labels: Their labels.
            calling: How the classifier was called with them.
        """
        if self.one_size and self.images and images.shape[1:] != self.images[0].shape[1:]:
            return
        missing = self.wanted - self.count
        self.images.append(images[:missing].to("cpu", copy=True))  # a view would keep the batch
        if labels is not None:
            self.labels.append(labels[:missing].to("cpu", copy=True))
        if calling is not None:
            taken = torch.arange(len(self.images[-1]))
            self.callings.append(calling.of(taken, len(images)).to("cpu"))
        self.complete = self.count >= self.wanted

    def batches(self, start: int = 0) -> list[tuple[Tensor, Tensor | None, Calling]]:
        """Images, labels and what else the classifier was given, those of one size together.

        Args:
            start: From which of the batches on that gave some.

        Returns:
            One for each size, in the order in which the sizes came first.
        """
        by_size: dict[torch.Size, list[int]] = {}
        for i in range(len(self.images))[start:]:
            by_size.setdefault(self.images[i].shape[1:], []).append(i)
        return [self._joined(rows) for rows in by_size.values()]

    def _joined(self, rows: list[int]) -> tuple[Tensor, Tensor | None, Calling]:
        images = [self.images[i] for i in rows]
        labels = torch.cat([self.labels[i] for i in rows]) if self.labels else None
        callings = [self.callings[i] for i in rows] if self.callings else [Calling()]
        return torch.cat(images), labels, Calling.joined(callings, [len(one) for one in images][: len(callings)])

    def restart(self) -> None:
        """Forget the images of an epoch that was not finished."""
        if not self.complete:
            self.images.clear()
            self.labels.clear()
            self.callings.clear()

    def finish(self) -> None:
        """Take no more: the epoch had no more images."""
        self.complete = self.complete or bool(self.images)
