"""Paired comparisons: known answers, scipy's permutation test, and the coverage of the interval."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_xai.metrics import AverageDrop, Comparison, compare


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal values, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero_against(values: Tensor, **options: float) -> Comparison:
    """Compare values with zeros, so that they are the differences."""
    return compare(values, torch.zeros_like(values), **options)  # type: ignore[arg-type]


def test_difference_is_the_paired_mean() -> None:
    """Images that vary a thousand times more than the methods differ do not hide the difference."""
    images = 1000 * noise(50)
    found = compare(images + 2 + 0.1 * noise(50, seed=1), images)
    assert found.difference == pytest.approx(2, abs=0.05)
    assert 1.9 < found.low < found.difference < found.high < 2.1
    assert found.p_value == pytest.approx(1 / 10_001)


def test_swapped_arguments_mirror_everything() -> None:
    """With the same resamples."""
    a, b = noise(30), noise(30, seed=1)
    one, other = compare(a, b), compare(b, a)
    assert (one.difference, one.p_value) == (-other.difference, other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_equal_values_differ_by_exactly_nothing() -> None:
    """Interval of no width, p-value 1."""
    found = compare(noise(20), noise(20))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, -2.0, 4.0, 0.5], [3.0, 3.0, -3.0, 0.1, 0.2]])
def test_few_images_get_the_exact_p_value(values: list[float]) -> None:
    """The share of all 2^N sign flips that are at least as far from 0."""
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in product((1, -1), repeat=len(values))
    ]
    expected = sum(total >= abs(sum(values)) - 1e-9 for total in sums) / len(sums)
    assert zero_against(torch.tensor(values)).p_value == expected


def test_sampled_p_value_is_that_of_scipy() -> None:
    """Its paired permutation test swaps a and b, which flips signs."""
    stats = pytest.importorskip("scipy.stats")
    values = noise(40) + 0.3
    found = zero_against(values, n_resamples=20_000)
    reference = stats.permutation_test(
        (values.numpy(), 0 * values.numpy()),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=0,
    )
    assert found.p_value == pytest.approx(reference.pvalue, rel=0.1)


def test_interval_is_that_of_student_for_normal_values() -> None:
    """Widened for N = 10: the plain percentile interval would be a fifth shorter."""
    stats = pytest.importorskip("scipy.stats")
    values = noise(10, seed=3)
    found = zero_against(values, n_resamples=50_000)
    half = stats.t.ppf(0.975, 9) * values.std().item() / math.sqrt(10)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)


def test_level_is_covered_over_images() -> None:
    """Of 400 simulated comparisons, some 95 in 100 intervals hold the truth and 5 in 100 p-values are below 0.05."""
    found = [zero_against(noise(20, seed=seed), n_resamples=300) for seed in range(400)]
    assert 0.92 < sum(one.low <= 0 <= one.high for one in found) / 400 < 0.98
    assert 0.02 < sum(one.p_value < 0.05 for one in found) / 400 < 0.08


def test_level_is_covered_for_skewed_values() -> None:
    """A hundred lognormal values, whose mean hangs on a few of them."""
    found = [zero_against(noise(100, seed=seed).exp(), n_resamples=300) for seed in range(200)]
    assert 0.9 < sum(one.low <= math.exp(0.5) <= one.high for one in found) / 200 < 0.98


def test_level_is_covered_over_seeds() -> None:
    """Trainings that differ by as much as images do: only the hierarchical interval holds its level."""
    hierarchical, images_only = 0, 0
    for trial in range(200):
        values = noise(8, 1, seed=3 * trial) + noise(1, 60, seed=3 * trial + 1) + noise(8, 60, seed=3 * trial + 2)
        seeds, pooled = zero_against(values, n_resamples=300), zero_against(values[0], n_resamples=300)
        hierarchical += seeds.low <= 0 <= seeds.high
        images_only += pooled.low <= 0 <= pooled.high
    assert 0.9 < hierarchical / 200 <= 1
    assert images_only / 200 < 0.5


def test_whole_seeds_are_flipped() -> None:
    """Four seeds that agree on each of 100 images: p is 2 / 2^4, however many images there are."""
    found = zero_against(1 + 0.01 * noise(4, 100))
    assert found.p_value == 2 / 2**4
    assert (found.n_seeds, found.n_images) == (4, 100)


def test_images_are_resampled_beside_seeds() -> None:
    """Seeds that are copies of one training leave the uncertainty of the images, widened for five units."""
    copies, once = zero_against(noise(1, 40).expand(5, 40)), zero_against(noise(1, 40)[0])
    assert 1 < (copies.high - copies.low) / (once.high - once.low) < 2


def test_random_numbers_are_its_own() -> None:
    """The same seed gives the same answer, another one another; the global state is not touched."""
    state, values = torch.get_rng_state(), noise(30)
    one, same, other = zero_against(values), zero_against(values), zero_against(values, seed=1)
    assert one == same
    assert one.low != other.low
    assert torch.equal(torch.get_rng_state(), state)


def test_chunks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images do not need all resamples in memory at once."""
    values = noise(30) + 0.2
    whole = zero_against(values, n_resamples=100)
    monkeypatch.setattr("lightning_xai.metrics.statistics._CHUNK", 70)
    parts = zero_against(values, n_resamples=100)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))
    assert parts.p_value == whole.p_value


def test_values_of_a_metric_are_what_it_takes() -> None:
    """Kept values of two methods on the same images."""
    values = []
    for seed in (1, 2):
        metric = AverageDrop(keep_values=True)
        metric.update(torch.full((12,), -0.1).double(), -noise(12, seed=seed).abs())
        metric.compute()
        assert metric.values is not None
        values.append(metric.values)
    assert compare(*values).difference == pytest.approx((values[0] - values[1]).mean().item())


def test_comparison_prints_in_one_line() -> None:
    """With signs, and with seeds where they are the unit."""
    found = Comparison(-1.25, -3.0, 0.5, level=0.9, p_value=0.0625, n_images=500, n_seeds=5)
    assert str(found) == "-1.25 [-3, +0.5] (90 %), p = 0.062, 5 seeds x 500 images"


@pytest.mark.parametrize(
    ("first", "second"), [((5,), (4,)), ((2, 5), (5,)), ((1,), (1,)), ((1, 5), (1, 5)), ((2, 2, 2), (2, 2, 2))]
)
def test_values_that_are_not_paired_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Unequal lengths, one image, one seed, and tables of more than two dimensions."""
    with pytest.raises(
        ValueError, match=r"`a` and `b` expected values of the same images, \(N,\) and \(N,\), or \(S,N\)"
    ):
        compare(torch.zeros(first), torch.zeros(second))


def test_nan_is_refused() -> None:
    """An image without a value under one method is the user's to leave out, and to report."""
    values = noise(5)
    values[2] = math.nan
    with pytest.raises(ValueError, match=r"expected finite values, got NaN or infinity in 1 pairs\. Leave out such"):
        compare(noise(5), values)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_level_that_is_no_share_is_refused(level: float) -> None:
    """95 is not 0.95."""
    with pytest.raises(ValueError, match=r"`level` expected a share in \(0, 1\), got"):
        compare(noise(5), noise(5), level=level)


def test_no_resamples_are_refused() -> None:
    """Before an empty quantile."""
    with pytest.raises(ValueError, match="`n_resamples` expected 1 or more, got 0"):
        compare(noise(5), noise(5), n_resamples=0)
