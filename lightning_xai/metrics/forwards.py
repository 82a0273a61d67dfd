"""Forward passes for metrics: of images that are made when their turn comes, as many at once as a pass holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lightning_xai.types import Score


class Ask(Protocol):
    """A classifier that is told which image of the batch each one was made from: what else it takes goes by that."""

    def __call__(self, images: Tensor, of: Tensor) -> Tensor:
        """Images (M,C,H,W), made from images (M,) of the batch, to logits (M,K)."""


def asking(predict: Callable[[Tensor], Tensor]) -> Ask:
    """A classifier that takes images alone, whichever they were made from.

    Args:
        predict: The classifier, images (M,C,H,W) to logits (M,K).

    Returns:
        The same with a second argument.

    Example:
        >>> asking(lambda images: images.flatten(1))(torch.ones(1, 1, 1, 2), torch.tensor([0]))
        tensor([[1., 1.]])
    """
    return lambda images, of: predict(images)


def check_maps(images: Tensor, maps: Tensor, targets: Tensor) -> None:
    """Refuse maps and targets that do not belong to the images.

    Args:
        images: Images (N,C,H,W).
        maps: Maps (N,H,W), or those of several methods, (M,N,H,W).
        targets: Targets (N,).

    Raises:
        ValueError: If a shape differs.

    Example:
        >>> check_maps(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.tensor([0, 1]))
    """
    expected = (len(images), *images.shape[2:])
    if maps.ndim not in (3, 4) or maps.shape[-3:] != expected:
        raise ValueError(
            f"`maps` expected one map for each image at its resolution, {expected}, got {tuple(maps.shape)}. "
            "Upsample maps of a layer with `torch.nn.functional.interpolate`."
        )
    if targets.shape != (len(images),):
        raise ValueError(f"`targets` expected one class for each image, ({len(images)},), got {tuple(targets.shape)}.")


def float64_logits(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (N,K) in float64, without a graph.

    Args:
        predict: The classifier.
        images: Images (N,C,H,W).

    Returns:
        Logits (N,K), float64.

    Raises:
        ValueError: If what is predicted is of another shape.

    Example:
        >>> float64_logits(lambda images: images.flatten(1), torch.ones(1, 1, 1, 2))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    logits = predict(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"`predict` expected to return logits ({len(images)}, K), got {tuple(logits.shape)}.")
    return logits.detach().double()


def scores_of(
    ask: Ask,
    made: Callable[[Tensor], Tensor],
    of: Tensor,
    targets: Tensor,
    *,
    score: Score,
    batch_size: int | None = None,
) -> Tensor:
    """Scores of images that need not all be there at once: passes are filled across whatever the images differ in.

    Args:
        ask: The classifier.
        made: Numbers of images (M,) to images (M,C,H,W).
        of: Which image of the batch each is made from, (J,).
        targets: Class of each image of the batch, (N,).
        score: The number per image.
        batch_size: Most images in one forward; None for all.

    Returns:
        Scores (J,), float64.

    Raises:
        ValueError: If ``batch_size`` is less than 1, or logits are of another shape.

    Example:
        >>> images, of = torch.arange(6.0).view(3, 2, 1, 1), torch.arange(3)
        >>> classifier, second = asking(lambda images: images.flatten(1)), lambda logits, targets: logits[:, 1]
        >>> scores_of(classifier, lambda some: images[some], of, torch.zeros(3).long(), score=second, batch_size=2)
        tensor([1., 3., 5.], dtype=torch.float64)
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` expected 1 or more, or None for all images, got {batch_size}.")
    scores = [torch.zeros(0, dtype=torch.float64, device=targets.device)]
    for some in torch.arange(len(of), device=of.device).split(batch_size or max(1, len(of))):
        if len(some):
            scores.append(score(float64_logits(partial(ask, of=of[some]), made(some)), targets[of[some]]))
    return torch.cat(scores)
