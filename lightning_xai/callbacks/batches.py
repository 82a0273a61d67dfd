"""Taking batches apart: images, labels and boxes, and what labels and logits say of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lightning_xai.metrics import Boxes
from lightning_xai.scores import plain
from lightning_xai.trace import kind_of

Unpack: TypeAlias = Callable[[Any], Sequence[Any]]
"""How a batch is taken apart: ``batch -> (images (N,C,H,W), labels (N,) or None)``, and boxes where there are any."""


def first_two(batch: Any) -> tuple[Tensor, Any]:
    """Images and labels of a batch that is a sequence: its first two items.

    Raises:
        TypeError: If the batch is no sequence.

    Example:
        >>> first_two([torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])])[1]
        tensor([0, 1])
    """
    if isinstance(batch, Tensor):
        return batch, None
    if not isinstance(batch, (list, tuple)) or not batch:
        raise TypeError(
            f"The batch expected to be a sequence (images, labels, ...), got {type(batch).__name__}. "
            "Say how to take it apart: `unpack=lambda batch: (batch['image'], batch['label'])`, say."
        )
    return batch[0], batch[1] if len(batch) > 1 else None


def taken_apart(batch: Any, unpack: Unpack, say: Callable[[str], None]) -> tuple[Tensor, Tensor | None, Boxes | None]:
    """Images (N,C,H,W), labels (N,...) and boxes of a batch, None for what there is not.

    ``say`` is told of labels that are left out.

    Raises:
        TypeError: If the images are none.
    """
    images, labels, boxes = (*unpack(batch), None)[:3]
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise TypeError(f"`unpack` expected to give images (N, C, H, W) and labels, got {kind_of(images)} for images.")
    known = _labels(labels, images)
    if known is None and labels is not None:
        say(
            f"labels (N,) for {len(images)} images were expected, got {_kind(labels)}, which are left out. To have "
            "them, say how to take the batch apart: `unpack=lambda batch: (batch[0], batch[1]['label'])`, say."
        )
    return plain(images), None if known is None else plain(known), boxes


def _labels(labels: Any, images: Tensor) -> Tensor | None:
    """Labels as a tensor with a row for each image; None where they are something else."""
    if isinstance(labels, (int, float, np.generic, np.ndarray)) or (
        isinstance(labels, (list, tuple)) and all(isinstance(one, (int, float, np.generic, Tensor)) for one in labels)
    ):
        if isinstance(labels, (list, tuple)) and any(isinstance(one, Tensor) and one.ndim for one in labels):
            return None
        labels = torch.as_tensor(labels, device=images.device)
    if not isinstance(labels, Tensor):
        return None
    if labels.ndim == 0 or labels.shape[1:] == (1,):  # of one image, or a column
        labels = labels.reshape(-1)
    return labels if len(labels) == len(images) else None


def check_labels(labels: Tensor | None, logits: Tensor, model: nn.Module) -> None:
    """Refuse labels that are no classes of the classifier: then it is another module that gives the class logits.

    Raises:
        ValueError: If a label is K or more.

    Example:
        >>> check_labels(torch.tensor([0, 9]), torch.zeros(2, 10), nn.Identity())
    """
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        return
    classes = max(logits.shape[1], 2)
    if int(labels.max()) >= classes:
        raise ValueError(
            f"Labels expected to be classes in [0, {classes - 1}], as the classifier (a {type(model).__name__}) gives "
            f"{logits.shape[1]} numbers for each image, got {int(labels.max())}. Name the module that gives the class "
            "logits, `classifier='model'` say, or unpack other labels, `unpack=lambda batch: (batch[0], batch[2])` say."
        )


def is_multi_hot(labels: Tensor | None) -> bool:
    """Whether labels (N,K) say that an image may show several classes, or none.

    Returns:
        True if so; not for one-hot or soft labels, whose rows sum to one.

    Example:
        >>> is_multi_hot(torch.tensor([[1, 1, 0]])), is_multi_hot(torch.tensor([[0.7, 0.3, 0.0]]))
        (True, False)
    """
    if labels is None or labels.ndim != 2 or labels.shape[1] < 2:
        return False
    values = labels.double()
    return bool(((values == 0) | (values == 1)).all() and (values.sum(1) != 1).any())


def _kind(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else f"a {type(value).__name__}"
