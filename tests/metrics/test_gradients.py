"""Gradient quality: patterns whose values are known, loops over pairs, and the shared contract."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from matplotlib.figure import Figure
from metrics.contract import Batch, MetricContract
from torch import Tensor

from common.data.cifar import CifarResNet, cifar10
from lightning_xai.metrics import (
    GradientAlignment,
    GradientRoughness,
    GradientVariation,
    gradient_alignment,
    gradient_roughness,
    gradient_variation,
)
from lightning_xai.networks import load_weights
from lightning_xai.scores import log_softmax
from lightning_xai.trace import Capture, run

DATA = os.environ.get("LIGHTNING_XAI_DATA")
NOISES: list[Callable[[Tensor], Tensor]] = [gradient_variation, gradient_roughness]

each_noise = pytest.mark.parametrize("function", NOISES)


def gradients(n: int, seed: int, shape: tuple[int, ...] = (3, 4, 5)) -> Tensor:
    """Seeded noise (n,C,H,W), float64, of sizes that gradients have."""
    return 1e-4 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def neighbours(values: list[list[float]]) -> list[tuple[float, float]]:
    """All pairs of vertical and horizontal neighbours of one channel, one by one."""
    rows, columns = range(len(values)), range(len(values[0]))
    down = [(values[i][j], values[i + 1][j]) for i in rows[:-1] for j in columns]
    return down + [(values[i][j], values[i][j + 1]) for i in rows for j in columns[:-1]]


def pairs(image: Tensor) -> list[tuple[float, float]]:
    """The pairs of all channels of one image (C,H,W)."""
    return [pair for channel in image.tolist() for pair in neighbours(channel)]


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


class TestGradientAlignment(MetricContract):
    """The contract for GradientAlignment."""

    metric_class = GradientAlignment
    higher_is_better = True
    batches: ClassVar[list[Batch]] = [
        {"gradients": gradients(n, seed), "guided_gradients": gradients(n, seed + 10)}
        for n, seed in ((5, 0), (1, 1), (3, 2))
    ]

    def reference(self, batches: list[Batch]) -> float:
        """Cosines in plain Python."""
        cosines = []
        for batch in batches:
            for one, other in zip(batch["gradients"], batch["guided_gradients"], strict=True):
                first, second = one.flatten().tolist(), other.flatten().tolist()
                product = math.fsum(a * b for a, b in zip(first, second, strict=True))
                cosines.append(product / math.hypot(*first) / math.hypot(*second))
        return mean(cosines)


class _Noise(MetricContract):
    higher_is_better = False
    batches: ClassVar[list[Batch]] = [{"gradients": gradients(n, seed)} for n, seed in ((5, 0), (1, 1), (3, 2))]


class TestGradientVariation(_Noise):
    """The contract for GradientVariation."""

    metric_class = GradientVariation

    def reference(self, batches: list[Batch]) -> float:
        """Total variation pair by pair."""
        images = [pairs(image) for batch in batches for image in batch["gradients"]]
        return mean([sum(abs(a - b) for a, b in p) / sum(abs(a) + abs(b) for a, b in p) for p in images])


class TestGradientRoughness(_Noise):
    """The contract for GradientRoughness."""

    metric_class = GradientRoughness

    def reference(self, batches: list[Batch]) -> float:
        """Squared differences pair by pair."""
        images = [pairs(image) for batch in batches for image in batch["gradients"]]
        return mean([sum((a - b) ** 2 for a, b in p) / sum(a * a + b * b for a, b in p) for p in images])


class TestAlignment:
    """The cosine."""

    @pytest.mark.parametrize(("other", "expected"), [(1.0, 1.0), (7e-9, 1.0), (-2.0, -1.0)])
    def test_multiples_reach_the_ends_of_the_range(self, other: float, expected: float) -> None:
        """Parallel and opposite gradients, and not a digit beyond."""
        images = gradients(6, 3)
        found = gradient_alignment(images, other * images)
        torch.testing.assert_close(found, torch.full((6,), expected, dtype=torch.float64), rtol=0, atol=1e-14)
        assert found.abs().max() <= 1

    def test_all_channels_count_together(self) -> None:
        """Opposite in one of two channels: orthogonal, not the mean of two cosines of other lengths."""
        one = torch.tensor([[[[3.0]], [[4.0]]]])
        other = torch.tensor([[[[3.0]], [[-4.0]]]])
        assert gradient_alignment(one, other).item() == pytest.approx((9 - 16) / 25)

    def test_shapes_that_differ_are_refused(self) -> None:
        """No broadcasting of one guided gradient over all images."""
        with pytest.raises(ValueError, match=r"`guided_gradients` expected the shape of `gradients`, \(2, 3, 4, 5\)"):
            gradient_alignment(gradients(2, 0), gradients(1, 0))

    def test_guided_gradient_that_is_not_finite_is_named(self) -> None:
        """The error says which of the two."""
        wrong = gradients(1, 0).fill_(math.inf)
        with pytest.raises(ValueError, match="`guided_gradients` expected finite values"):
            gradient_alignment(gradients(1, 0), wrong)


class TestNoise:
    """Total variation and roughness."""

    def test_patterns_have_their_values(self) -> None:
        """A constant, one bright pixel, a step between two halves, and a chessboard, of 4 x 4 pixels."""
        patterns = torch.zeros(4, 1, 4, 4)
        patterns[0] = 1
        patterns[1, :, 1, 1] = 1  # alone among its four neighbours: every pair that is not 0 differs by all it has
        patterns[2, :, :, 2:] = 1  # 24 pairs: 4 across the step, 10 on the bright side
        patterns[3] = 1 - 2.0 * ((torch.arange(4)[:, None] + torch.arange(4)) % 2)
        assert gradient_variation(patterns).tolist() == pytest.approx([0, 1, 4 / 24, 1])
        assert gradient_roughness(patterns).tolist() == pytest.approx([0, 1, 4 / 24, 2])

    def test_gaussian_noise_has_its_expected_values(self) -> None:
        """E|a - b| / (E|a| + E|b|) = 1 / sqrt(2), E(a - b)^2 / (E a^2 + E b^2) = 1."""
        noise = gradients(1, 4, (3, 128, 128))
        assert gradient_variation(noise).item() == pytest.approx(math.sqrt(0.5), abs=0.01)
        assert gradient_roughness(noise).item() == pytest.approx(1, abs=0.02)

    @each_noise
    def test_smoothing_lowers_it(self, function: Callable[[Tensor], Tensor]) -> None:
        """Means over 3 x 3 pixels are smoother than the noise they are of, for every image."""
        noise = gradients(8, 5, (3, 16, 16))
        assert (function(torch.nn.functional.avg_pool2d(noise, 3, 1)) < 0.7 * function(noise)).all()

    @each_noise
    def test_directions_of_the_image_are_equal(self, function: Callable[[Tensor], Tensor]) -> None:
        """Flips, transposition and sign change nothing."""
        images = gradients(3, 6)
        for other in (images.flip(2), images.flip(3), images.mT, -images):
            torch.testing.assert_close(function(other), function(images))

    def test_roughness_weighs_large_values(self) -> None:
        """Five bright pixels on a faint constant: rough, though most neighbours do not vary."""
        spikes = torch.ones(1, 1, 32, 32)
        spikes[0, 0, [4, 9, 15, 20, 27], [3, 22, 10, 28, 16]] = 100
        assert gradient_roughness(spikes).item() > 0.9
        assert gradient_variation(spikes).item() < 0.4


def functions_of_one() -> list[Any]:
    """All three, as functions of one gradient."""
    fixed = gradients(1, 7)
    return [lambda values: gradient_alignment(values, fixed.expand_as(values)), *NOISES]


each_function = pytest.mark.parametrize("function", functions_of_one(), ids=["alignment", "variation", "roughness"])


@each_function
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e200])
def test_size_of_the_gradient_does_not_matter(function: Callable[[Tensor], Tensor], scale: float) -> None:
    """Also where squares would underflow or overflow."""
    images = gradients(4, 8)
    torch.testing.assert_close(function(scale * images), function(images))


@each_function
def test_images_do_not_see_each_other(function: Callable[[Tensor], Tensor]) -> None:
    """Batch size and order do not matter."""
    images = gradients(4, 9)
    values = function(images)
    torch.testing.assert_close(torch.cat([function(image[None]) for image in images]), values, rtol=1e-14, atol=0)
    torch.testing.assert_close(function(images.flip(0)).flip(0), values, rtol=1e-14, atol=0)


@each_function
def test_zero_gradient_has_no_value(function: Callable[[Tensor], Tensor]) -> None:
    """It is neither smooth nor aligned."""
    images = gradients(2, 10)
    images[1] = 0
    assert function(images).isnan().tolist() == [False, True]


@each_function
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(function: Callable[[Tensor], Tensor], value: float) -> None:
    """The error says what to do."""
    images = gradients(2, 11)
    images[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"`gradients` expected finite values, got NaN or infinity\. Leave out images"):
        function(images)


@each_noise
def test_maps_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    """(N,H,W) would be taken for N channels."""
    with pytest.raises(ValueError, match=r"`gradients` expected gradients of images, \(N, C, H, W\), got \(2, 8, 8\)"):
        function(torch.zeros(2, 8, 8))


def test_zero_gradients_are_left_out_and_counted() -> None:
    """The kept values still belong to the images one by one."""
    images = gradients(5, 12)
    images[1] = images[4] = 0
    metric = GradientVariation(keep_values=True)
    metric.update(images[:3])
    metric.update(images[3:])
    average = metric.compute()
    torch.testing.assert_close(average, gradient_variation(images[[0, 2, 3]]).mean())
    assert metric.n_undefined == 2
    assert metric.values is not None
    torch.testing.assert_close(metric.values, gradient_variation(images), equal_nan=True)


def test_plot_draws_on_the_scale_of_the_metric() -> None:
    """The cosine's axis reaches from -1 to 1; a figure is made where none is given."""
    metric = GradientAlignment()
    metric.update(gradients(2, 0), gradients(2, 1))
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.get_ylim()[0] <= -1
    mine = Figure().subplots()
    assert metric.plot(ax=mine) == (mine.figure, mine)


@pytest.mark.skipif(not DATA, reason="needs the folder $LIGHTNING_XAI_DATA")
def test_guided_gradients_of_a_trained_network_are_smoother_than_gradients():
    """A ResNet-20 and 100 images of CIFAR-10: its gradients are noise (1), guided ones are not; they hardly agree."""
    network, data = CifarResNet(3), Path(DATA)
    load_weights(network, data / "weights" / "cifar10_resnet20.safetensors")
    trace = run(network.eval(), cifar10(data, "test", 100)[0], Capture(image_gradient=True))
    targets = trace.logits.argmax(1)
    plain, guided = (trace.image_gradient(log_softmax, targets, rectifiers=rule) for rule in (None, "relu"))
    assert gradient_roughness(plain).mean() == pytest.approx(1.14, abs=0.03)
    assert gradient_roughness(guided).mean() == pytest.approx(0.59, abs=0.03)
    assert gradient_alignment(plain, guided).mean() == pytest.approx(0.03, abs=0.02)
    against = trace.image_gradient(lambda z, t: -log_softmax(z, t), targets, rectifiers="relu")  # the loss's
    assert gradient_alignment(against, guided).mean() == pytest.approx(0.90, abs=0.03)  # the guided rule is not odd
