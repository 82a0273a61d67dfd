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
    """A classifier that takes images alone, whichever they were made from."""
    return lambda images, of: predict(images)


def check_maps(images: Tensor, maps: Tensor, targets: Tensor) -> None:
    """Refuse maps, (N,H,W) or of several methods (M,N,H,W), and targets (N,) that do not belong to the images."""
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
    """Scores (J,) of images that need not all be there at once: passes are filled across whatever images differ in.

    ``made`` makes images (M,C,H,W) of their numbers (M,), and ``of`` (J,) says from which image of the batch each is
    made; ``batch_size`` is the most in one forward, None for all.

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
