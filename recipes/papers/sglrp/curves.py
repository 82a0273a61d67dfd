"""What is made of hits and points by energy: accuracies, areas, where curves cross, and the images of figure 9."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Values = Mapping[str, Any]

FILLS, INSIGNIFICANT = 0.7, 0.25
"""Share of the image that the object covers, from which on it fills it, and up to which it is insignificant."""


def accuracies(found: Values) -> dict[str, Array]:
    """Pointing accuracy of each image (N,L) by method; a map that shows nothing has accuracy 0."""
    return {name: np.array(hits) / np.maximum(found["points"][name], 1) for name, hits in found["hits"].items()}


def pooled(found: Values) -> dict[str, Array]:
    """Hits of all images over points of all images, (L,), by method."""
    return {
        name: np.sum(hits, axis=0) / np.maximum(np.sum(found["points"][name], axis=0), 1)
        for name, hits in found["hits"].items()
    }


def areas(found: Values) -> dict[str, Array]:
    """Area under each image's curve over its range, (N,), by method."""
    return {name: ((one[:, :-1] + one[:, 1:]) / 2).mean(1) for name, one in accuracies(found).items()}


def overtaken_at(hits: tuple[Array, Array], points: tuple[Array, Array], seed: int, n_resamples: int = 1000) -> str:
    """The level from which on one method's accuracy stays at or above another's, in words.

    Of hits and points (N,L) of the one and of the other: the index of the level, its interval over the resamples of
    images that have one, and their share.

    Example:
        >>> behind, ahead = np.array([[0.2, 0.6, 0.7]] * 3), np.array([[0.5, 0.5, 0.5]] * 3)
        >>> overtaken_at((behind, ahead), (np.ones((3, 3)), np.ones((3, 3))), seed=0)
        '1 [1, 1], 100 %'
    """
    n = len(hits[0])
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    counts = np.concatenate([np.ones((1, n)), drawn])
    first, second = ((counts @ h) / np.maximum(counts @ p, 1e-12) for h, p in zip(hits, points, strict=True))
    # a level is reached for good where nothing after it is behind
    lasting = np.flip(np.logical_and.accumulate(np.flip(first >= second, 1), 1), 1)
    start = np.where(lasting.any(1), lasting.argmax(1), -1)
    reached = start[1:][start[1:] >= 0]
    told, often = "never", f"{100 * len(reached) / n_resamples:.0f} %"
    if start[0] >= 0 and len(reached):
        low, high = np.quantile(reached, [0.025, 0.975]).round().astype(int)
        told = f"{start[0]} [{low}, {high}]"
    return f"{told}, {often}"


def condition(share: Array) -> dict[str, NDArray[np.bool_]]:
    """The images of figure 9, found by how much of them the object covers, and the others."""
    filled, small = share >= FILLS, (share <= INSIGNIFICANT) & (share > 0)
    return {
        f"fills the image (from {100 * FILLS:.0f} %)": filled,
        f"insignificant (up to {100 * INSIGNIFICANT:.0f} %)": small,
        "between": ~filled & ~small & (share > 0),
    }
