"""The numbers behind the checks, against values on paper and scipy."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from lightning_xai.integrity import common_mode_share, mean_row_share
from lightning_xai.integrity.measures import class_weighted_maps, median
from lightning_xai.ranks import rank_correlation


def test_share_is_the_common_part_of_the_squared_gradient():
    """9 / (9 + 16) and 0 / 1, over all dimensions but the first."""
    common = torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]]])
    centered = torch.tensor([[[0.0, 4.0]], [[1.0, 0.0]]])
    torch.testing.assert_close(common_mode_share(common, centered), torch.tensor([0.36, 0.0]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_share_does_not_depend_on_the_scale(scale):
    """Squares of both scales leave the range of float32."""
    share = common_mode_share(torch.tensor([[3.0 * scale]]), torch.tensor([[4.0 * scale]]))
    torch.testing.assert_close(share, torch.tensor([0.36]))


def test_share_of_gradients_that_are_zero_is_zero():
    """Nothing is shared where there is nothing."""
    assert common_mode_share(torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0


def test_share_of_half_precision_is_computed_in_float32():
    """300 squared exceeds float16."""
    share = common_mode_share(torch.tensor([[300.0]]).half(), torch.tensor([[400.0]]).half())
    torch.testing.assert_close(share, torch.tensor([0.36]))


def test_share_of_nan_is_nan():
    """A gradient that is not a number is not taken for none."""
    assert common_mode_share(torch.tensor([[math.nan]]), torch.ones(1, 1)).isnan().all()


def test_mean_row_share_of_opposite_rows_is_zero_and_of_equal_rows_one():
    """The two ends of the range."""
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert mean_row_share(rows) == 0
    assert mean_row_share(rows.abs()) == 1


def test_mean_row_share_of_random_rows_is_one_over_their_number():
    """K independent rows: |mean|^2 is |row|^2 / K."""
    weight = torch.randn(10, 5000, 1, 1, generator=torch.Generator().manual_seed(0))
    assert mean_row_share(weight) == pytest.approx(0.1, abs=0.006)


def test_rank_correlation_equals_scipy_with_ties():
    """Few distinct values, so that most are ties."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(4, (3, 5, 6), generator=generator).float() for _ in range(2))
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(rank_correlation(first, second), torch.tensor(expected, dtype=torch.float64))


def test_rank_correlation_sees_the_order_only():
    """An increasing function leaves it at 1, a decreasing one makes it -1."""
    maps = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rank_correlation(maps, maps.exp()), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(maps, -maps), -torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("flaw", [torch.ones(1, 2, 2), torch.tensor([[[math.nan, 1.0], [2.0, 3.0]]])])
def test_rank_correlation_of_constant_maps_and_of_nan_is_nan(flaw):
    """There is no order to compare."""
    assert rank_correlation(flaw, torch.arange(4.0).view(1, 2, 2)).isnan().all()


def test_maps_of_the_raw_logit_are_those_of_mean_and_centered_logit_together():
    """Both methods are linear in the gradient."""
    generator = torch.Generator().manual_seed(0)
    activations, first, second = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(3))
    together = class_weighted_maps(activations, first + second)
    for name, maps in together.items():
        parts = class_weighted_maps(activations, first)[name] + class_weighted_maps(activations, second)[name]
        torch.testing.assert_close(maps, parts)


def test_median_of_differences_from_one_is_one_minus_the_median():
    """Of an even number of values, where torch's lower median differs, and with one that is not defined."""
    values = torch.tensor([0.1, 0.2, 0.6, 0.9, math.nan])
    assert median(values) == pytest.approx(0.4)
    assert median(1 - values) == pytest.approx(1 - median(values))
    assert math.isnan(median(values[4:]))
