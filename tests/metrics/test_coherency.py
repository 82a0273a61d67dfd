"""Coherency, complexity and ADCC: maps with answers on paper, the authors' code in plain Python, and the contract."""

import math
import statistics
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from metrics.contract import Batch, MetricContract
from torch import Tensor

from lightning_xai.attribution import Attribution, CenteredGaussian, FakeCAM, Random
from lightning_xai.metrics import ADCC, Coherency, Complexity, adcc, coherency, complexity, masked_images


def maps_of(n: int, seed: int) -> Tensor:
    """Seeded signed maps (n,4,5), float64."""
    return torch.randn(n, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(n: int, seed: int) -> Batch:
    """Maps and log-probabilities of images and of masked images."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.nn.functional.logsigmoid(2 * torch.randn(2, n, generator=generator, dtype=torch.float64))
    maps = maps_of(n, seed)
    return {
        "scores": scores[0],
        "masked_scores": scores[1],
        "maps": maps,
        "masked_maps": maps + maps_of(n, seed + 100),
    }


def mask(its_map: Tensor) -> list[float]:
    """ReLU and min-max of one map, pixel by pixel."""
    positive = [max(value, 0.0) for value in its_map.flatten().tolist()]
    low, high = min(positive), max(positive)
    return [(value - low) / (high - low) for value in positive]


def parts(batches: list[Batch]) -> list[tuple[float, float, float]]:
    """Coherency, complexity and drop of each image in [0, 1], as the authors' code has them."""
    found = []
    for batch in batches:
        for before, after, *maps in zip(*(batch[name] for name in batch), strict=True):
            first, second = map(mask, maps)
            drop = max(0.0, math.exp(before) - math.exp(after)) / math.exp(before)
            found.append(((statistics.correlation(first, second) + 1) / 2, statistics.fmean(first), drop))
    return found


def of_images(control: Attribution, images: Tensor) -> Tensor:
    """The maps of a method that knows nothing but the images."""
    trace: Any = SimpleNamespace(images=images, noise_source=images)
    return control(trace, torch.zeros(len(images), dtype=torch.long))


class _Contract(MetricContract):
    whole: ClassVar[list[Batch]] = [batch_of(5, 0), batch_of(1, 1), batch_of(3, 2)]

    def parts(self, batches: list[Batch]) -> list[tuple[float, float, float]]:
        """Of the whole batches of which these are the keywords that the metric takes."""
        return parts([whole for batch in batches for whole in self.whole if batch["maps"] is whole["maps"]])


class TestCoherency(_Contract):
    """The contract for Coherency."""

    metric_class = Coherency
    higher_is_better = True
    batches: ClassVar[list[Batch]] = [{name: b[name] for name in ("maps", "masked_maps")} for b in _Contract.whole]

    def reference(self, batches: list[Batch]) -> float:
        """Pearson's r of the masks, from Python's statistics."""
        return 100 * statistics.fmean(coherency for coherency, _, _ in self.parts(batches))


class TestComplexity(_Contract):
    """The contract for Complexity."""

    metric_class = Complexity
    higher_is_better = False
    batches: ClassVar[list[Batch]] = [{"maps": b["maps"]} for b in _Contract.whole]

    def reference(self, batches: list[Batch]) -> float:
        """Mean of the masks' pixels."""
        return 100 * statistics.fmean(complexity for _, complexity, _ in self.parts(batches))


class TestADCC(_Contract):
    """The contract for ADCC."""

    metric_class = ADCC
    higher_is_better = True
    batches: ClassVar[list[Batch]] = _Contract.whole

    def reference(self, batches: list[Batch]) -> float:
        """Harmonic mean by image, then the mean over images."""
        means = [statistics.harmonic_mean((c, 1 - m, 1 - d)) for c, m, d in self.parts(batches)]
        return 100 * statistics.fmean(means)


SQUARE = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
"""One map of 2 x 2 pixels; as a mask 0, 0, 1/3, 1."""


class TestFunctions:
    """What maps with known answers give."""

    def test_equal_and_inverted_masks_reach_the_ends_of_the_range(self) -> None:
        """Also scaled and, among positive values, shifted, which masks do not see."""
        positive = maps_of(1, 3).abs()
        others = torch.cat([positive, 7 * positive + 2, positive.max() - positive])
        torch.testing.assert_close(
            coherency(positive.expand(3, 4, 5), others), torch.tensor([100.0, 100.0, 0.0], dtype=torch.float64)
        )

    def test_unrelated_maps_have_half(self) -> None:
        """A left-right and an up-down gradient are uncorrelated."""
        ramp = torch.arange(4.0).expand(1, 4, 4)
        assert coherency(ramp, ramp.mT).item() == pytest.approx(50)

    def test_complexity_is_the_mean_of_the_mask(self) -> None:
        """A third and one of four pixels; one pixel of many is the least, all but one the most."""
        one, all_but_one = torch.zeros(1, 10, 10), torch.ones(1, 10, 10)
        one[0, 3, 4], all_but_one[0, 3, 4] = 5.0, 0.0
        assert complexity(SQUARE).item() == pytest.approx(100 / 3)
        assert (complexity(one).item(), complexity(all_but_one).item()) == pytest.approx((1, 99))

    def test_adcc_is_the_harmonic_mean(self) -> None:
        """Of 100, 66.67 and 50 percent; and 0 where one of the three is 0."""
        scores = torch.tensor([0.8, 0.8], dtype=torch.float64).log()
        masked = torch.tensor([0.4, 0.0], dtype=torch.float64).log()
        expected = [300 / (1 + 3 / 2 + 2), 0.0]
        maps = SQUARE.expand(2, 2, 2)
        assert adcc(scores, masked, maps, maps).tolist() == pytest.approx(expected)

    def test_signed_maps_are_taken_after_relu(self) -> None:
        """What speaks against the class is not shown, and does not count."""
        signed = SQUARE.clone()
        signed[0, 0, 0] = -50.0
        assert complexity(signed).item() == complexity(SQUARE).item()
        assert coherency(signed, SQUARE).item() == pytest.approx(100)

    @pytest.mark.parametrize("value", [0.0, 3.0, -1.0, math.nan])
    def test_maps_that_show_nothing_have_no_complexity_and_explain_nothing(self, value: float) -> None:
        """Constant or not finite: coherency and ADCC 0, rather than a hit."""
        nothing, score = torch.full((1, 2, 2), value), torch.tensor([-1.0])
        assert complexity(nothing).isnan().all()
        assert coherency(nothing, SQUARE).item() == 0
        assert coherency(SQUARE, nothing).item() == 0
        assert adcc(score, score, nothing, nothing).item() == 0

    def test_constant_map_with_rounding_shows_nothing(self) -> None:
        """float32 noise of an upsampled constant is no correlation: decided before values become float64."""
        constant = torch.full((1, 2, 2), 0.1)
        constant[0, 0, 0] += 1e-8
        assert coherency(constant, constant).item() == 0

    def test_images_do_not_see_each_other(self) -> None:
        """Batch size and order do not matter, bit for bit."""
        batch = batch_of(4, 4)
        values = adcc(**batch)
        assert torch.equal(values, torch.cat([adcc(**{k: v[i : i + 1] for k, v in batch.items()}) for i in range(4)]))
        assert torch.equal(values, adcc(**{name: tensor.flip(0) for name, tensor in batch.items()}).flip(0))

    def test_shapes_that_differ_are_refused(self) -> None:
        """One masked map for all images, and maps of other images."""
        with pytest.raises(ValueError, match=r"`masked_maps` expected .* of its shape \(2, 4, 5\), got \(1, 4, 5\)"):
            coherency(maps_of(2, 0), maps_of(1, 0))
        batch = batch_of(2, 0) | {"maps": maps_of(3, 0), "masked_maps": maps_of(3, 1)}
        with pytest.raises(ValueError, match=r"`maps` expected one map for each of the 2 scores, got \(3, 4, 5\)"):
            adcc(**batch)


def test_maps_that_show_nothing_are_counted() -> None:
    """Left out of the complexity, kept with 0 in the coherency."""
    maps = torch.cat([SQUARE, torch.zeros(1, 2, 2)])
    lonely, coherent = Complexity(), Coherency()
    lonely.update(maps)
    coherent.update(maps, maps)
    assert (lonely.compute().item(), lonely.n_undefined) == (pytest.approx(100 / 3), 1)
    assert (coherent.compute().item(), coherent.n_undefined) == (pytest.approx(50), 0)


def test_fake_cam_is_coherent_and_loses_by_its_complexity() -> None:
    """So is a Gaussian that sees nothing coherent; noise is not."""
    images, scores = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.full((3,), -0.5)
    coherencies, means = {}, {}
    for control in (FakeCAM(), CenteredGaussian(), Random()):
        maps = of_images(control, images)
        masked_maps = of_images(control, masked_images(images, maps, torch.tensor(0.0)))
        coherencies[control] = coherency(maps, masked_maps).tolist()
        means[control] = adcc(scores, scores, maps, masked_maps).tolist()
    assert coherencies[FakeCAM()] + coherencies[CenteredGaussian()] == pytest.approx([100] * 6)
    assert coherencies[Random()] == pytest.approx([50] * 3, abs=5)
    assert means[FakeCAM()] == pytest.approx([300 / (1 + 1 + 32 * 32)] * 3)
    assert min(means[CenteredGaussian()]) > 70
