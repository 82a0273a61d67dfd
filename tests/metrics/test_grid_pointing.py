"""Grid pointing game: mosaics, whose images are chosen, and what the metric takes from them."""

import math
from typing import ClassVar

import pytest
import torch
from metrics.contract import Batch, MetricContract
from metrics.localization_cases import DEGENERATE, batch_of
from metrics.test_localization import slow_energy_in_box

from lightning_xai.metrics import GridPointingGame, confident_groups, mosaics


def cells_of(batch: Batch) -> Batch:
    """The masks of a batch as cells."""
    return {"maps": batch["maps"], "cells": batch["boxes"]}


class TestGridPointingGame(MetricContract):
    """The contract for GridPointingGame."""

    metric_class = GridPointingGame
    higher_is_better = True
    batches: ClassVar[list[Batch]] = [cells_of(batch_of(n, seed)) for seed, n in enumerate((5, 1, 3))]

    def reference(self, batches: list[Batch]) -> float:
        pairs = [pair for b in batches for pair in zip(b["maps"].tolist(), b["cells"].tolist(), strict=True)]
        return math.fsum(slow_energy_in_box(*pair) for pair in pairs) / len(pairs)


class TestMosaics:
    """n x n images in one."""

    def test_images_stand_row_by_row(self) -> None:
        """Each cell of each mosaic holds its image, and the mask of that cell holds it alone."""
        images = torch.randn(2, 9, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        mosaic, cells = mosaics(images)
        assert mosaic.shape == (2, 3, 12, 15)
        assert cells.shape == (9, 12, 15)
        for cell in range(9):
            assert torch.equal(mosaic[:, :, cells[cell]].unflatten(2, (4, 5)), images[:, cell])
            assert cells[cell].nonzero()[0].tolist() == [cell // 3 * 4, cell % 3 * 5]

    def test_cells_part_the_mosaic(self) -> None:
        """Each pixel belongs to one."""
        _, cells = mosaics(torch.zeros(1, 4, 1, 3, 2))
        assert cells.sum(0).eq(1).all()

    @pytest.mark.parametrize("shape", [(1, 3, 3, 8, 8), (4, 3, 8, 8), (1, 0, 3, 8, 8)])
    def test_groups_that_fill_no_square_are_refused(self, shape) -> None:
        """Three images, a batch that was not grouped, none."""
        with pytest.raises(ValueError, match=r"`images` expected groups of n \* n images, \(G,n\*n,C,H,W\), got"):
            mosaics(torch.zeros(shape))


class TestConfidentGroups:
    """Which images are put together."""

    def test_groups_have_different_classes_and_no_image_twice(self) -> None:
        """And all images are confident; as many groups as the commonest class allows."""
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(200, generator=generator).log()
        labels = torch.randint(6, (200,), generator=generator)
        groups = confident_groups(scores, labels, size=4, confidence=0.6)
        assert all(len(set(labels[group].tolist())) == 4 for group in groups)
        assert len(groups.unique()) == groups.numel()
        assert (scores[groups].exp() >= 0.6).all()
        assert len(groups) == int((scores.exp() >= 0.6).sum()) // 4

    def test_most_confident_image_of_a_class_goes_first(self) -> None:
        """Two groups of two classes."""
        scores = torch.tensor([0.91, 0.99, 0.95, 0.97]).log()
        assert confident_groups(scores, torch.tensor([1, 1, 2, 2]), size=2).tolist() == [[1, 3], [0, 2]]

    def test_too_few_classes_make_no_group(self) -> None:
        """An empty tensor of the right shape indexes images."""
        groups = confident_groups(torch.zeros(9), torch.arange(9) % 3, size=4)
        assert groups.shape == (0, 4)
        assert torch.zeros(9, 3, 8, 8)[groups].shape == (0, 4, 3, 8, 8)

    def test_no_confident_image_makes_no_group(self) -> None:
        """An image at the threshold counts."""
        scores, labels = torch.tensor([0.5, 0.25], dtype=torch.float64).log(), torch.tensor([0, 1])
        assert len(confident_groups(scores, labels, size=2, confidence=0.26)) == 0
        assert len(confident_groups(scores, labels, size=2, confidence=0.25)) == 1


def test_perfect_inverted_and_equal_maps_reach_one_zero_and_the_random_level() -> None:
    """On every cell of a 2 x 2 mosaic."""
    _, cells = mosaics(torch.zeros(1, 4, 1, 3, 3))
    even = cells.double() * 0 + 1
    even[:, 0, 0] += 1e-9  # a constant map shows nothing
    for maps, expected in ((cells.float(), 1.0), (~cells * 1.0, 0.0), (even, 0.25)):
        metric = GridPointingGame()
        metric.update(maps, cells)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-9)
        assert metric.random_level == 0.25


@pytest.mark.parametrize("name", DEGENERATE)
def test_map_that_shows_nothing_counts_with_zero(name) -> None:
    """And is counted."""
    metric = GridPointingGame()
    metric.update(DEGENERATE[name], torch.ones(1, 4, 4, dtype=torch.bool))
    assert metric.compute().item() == 0.0
    assert metric.n_degenerate == 1
