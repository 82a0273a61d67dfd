"""Masks, baselines and masked images."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import random_images
from torch import Tensor

from lightning_xai.baselines import Baseline, black, blurred, mean_color
from lightning_xai.metrics import degenerate, masked_images, normalized_masks

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASELINES: dict[str, Baseline] = {
    "black": black,
    "mean": mean_color,
    "color": partial(mean_color, color=(0.1, 0.2, 0.3)),
    "blurred": blurred,
}

each_baseline = pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)


def channels(values: tuple[float, ...]) -> Tensor:
    """One number per channel, (C,1,1), float64."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def standardized(pixels: Tensor) -> Tensor:
    """Pixels (N,3,H,W) in [0, 1] as a network sees them."""
    return (pixels - channels(MEAN)) / channels(STD)


def in_pixels(images: Tensor) -> Tensor:
    """The inverse of `standardized`."""
    return images * channels(STD) + channels(MEAN)


def pixels(n: int = 2, height: int = 16, width: int = 12) -> Tensor:
    """Random pixel values (N,3,H,W) in [0, 1], float64."""
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestNormalizedMasks:
    """ReLU, then min-max for each image."""

    def test_negative_relevance_is_hidden(self) -> None:
        """Min-max of the signed map would show -1 more than -3."""
        assert normalized_masks(torch.tensor([[[-3.0, -1.0, 0.5, 2.0]]])).tolist() == [[[0, 0, 0.25, 1]]]

    def test_smallest_positive_value_is_hidden(self) -> None:
        """The full range is used also where every value is positive."""
        assert normalized_masks(torch.tensor([[[2.0, 3.0, 4.0]]])).tolist() == [[[0, 0.5, 1]]]

    def test_each_image_has_its_own_range(self) -> None:
        """Batch mates do not matter."""
        maps = random_images(4, channels=1)[:, 0] * torch.tensor([1e-20, 1.0, 1e20, 5.0])[:, None, None]
        masks = normalized_masks(maps)
        assert torch.equal(masks, torch.cat([normalized_masks(one[None]) for one in maps]))
        assert (masks.amax((1, 2)) == 1).all()
        assert (masks.amin((1, 2)) == 0).all()

    @pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.nan, math.inf, -math.inf])
    def test_map_without_contrast_shows_nothing(self, value: float) -> None:
        """A constant map, of whatever value, is a mask of zeros, and its neighbour keeps its mask."""
        maps = torch.stack([torch.full((2, 2), value), torch.tensor([[0.0, 1.0], [2.0, 4.0]])])
        assert normalized_masks(maps).tolist() == [[[0, 0], [0, 0]], [[0, 0.25], [0.5, 1]]]
        assert degenerate(maps).tolist() == [True, False]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_one_value_that_is_not_finite_spoils_its_map(self, value: float) -> None:
        """-inf too, which the ReLU alone would turn into 0."""
        maps = torch.tensor([[[0.5, value, 1.0]], [[0.0, 0.5, 1.0]]])
        assert degenerate(maps).tolist() == [True, False]
        assert normalized_masks(maps).tolist() == [[[0, 0, 0]], [[0, 0.5, 1]]]

    def test_rounding_of_an_upsampled_constant_is_not_contrast(self) -> None:
        """Interpolating a constant leaves differences of some spacings, which min-max would blow up to a picture."""
        maps = F.interpolate(torch.full((1, 1, 13, 13), 5.37), (160, 160), mode="bicubic")[0]
        assert maps.min() < maps.max()
        assert degenerate(maps).all()
        assert not normalized_masks(maps).any()

    def test_weak_contrast_is_contrast(self) -> None:
        """One part in ten thousand is far above rounding."""
        assert not degenerate(torch.tensor([[[1.0, 1.0001]]])).any()

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    )
    def test_masks_are_float32_or_better(self, dtype: torch.dtype, expected: torch.dtype) -> None:
        """Half-precision maps are widened before they are divided."""
        assert normalized_masks(torch.tensor([[[0.0, 1.0, 3.0]]], dtype=dtype)).dtype == expected

    @pytest.mark.parametrize("function", [normalized_masks, degenerate])
    def test_maps_with_channels_are_refused(self, function: Callable[[Tensor], Tensor]) -> None:
        """The minimum over the wrong axes would pass silently."""
        with pytest.raises(ValueError, match=r"`maps` expected shape \(N,H,W\), got \(2, 1, 4, 4\)"):
            function(torch.zeros(2, 1, 4, 4))


class TestBaselines:
    """What stands where nothing is shown, looked at in pixel space."""

    def test_black_is_pixel_value_zero(self) -> None:
        """Not the zero of the standardised space."""
        found = in_pixels(black(standardized(pixels()), MEAN, STD))
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)

    def test_black_multiplies_the_pixels_with_the_mask(self) -> None:
        """The papers' masked image."""
        images, maps = pixels(), pixels()[:, 0]
        found = masked_images(standardized(images), maps, black(standardized(images), MEAN, STD))
        torch.testing.assert_close(in_pixels(found), images * normalized_masks(maps)[:, None], rtol=0, atol=1e-14)

    def test_mean_color_is_zero_where_the_mean_is_the_datas(self) -> None:
        """Exactly, so that a masked image is the image times the mask in standardised space."""
        assert not mean_color(standardized(pixels()), MEAN, STD).any()

    def test_mean_color_can_be_given(self) -> None:
        """For images standardised by something else than their data's mean."""
        found = partial(mean_color, color=(0.1, 0.2, 0.3))(standardized(pixels()), MEAN, STD)
        torch.testing.assert_close(in_pixels(found), channels((0.1, 0.2, 0.3)), rtol=1e-14, atol=0)

    def test_blur_commutes_with_standardizing(self) -> None:
        """The blurred baseline is the blurred picture."""
        found = in_pixels(blurred(standardized(pixels()), MEAN, STD))
        torch.testing.assert_close(found, blurred(pixels(), MEAN, STD), rtol=0, atol=1e-14)

    def test_blur_equals_a_sum_over_the_kernel(self) -> None:
        """Kernel 11, sigma 5, reflected borders, written as loops."""
        image = pixels(1, 8, 7)[0, 0]
        weights = [math.exp(-(d**2) / 50) for d in range(-5, 6)]
        total = sum(weights) ** 2

        def reflected(i: int, side: int) -> int:
            return min(abs(i), 2 * (side - 1) - abs(i))

        expected = torch.zeros_like(image)
        for i in range(8):
            for j in range(7):
                for a, wa in zip(range(-5, 6), weights, strict=True):
                    for b, wb in zip(range(-5, 6), weights, strict=True):
                        expected[i, j] += wa * wb / total * image[reflected(i + a, 8), reflected(j + b, 7)]
        found = blurred(image[None, None], [0.0], [1.0])[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (5, 3), (6, 40)])
    def test_blur_takes_images_smaller_than_its_kernel(self, height: int, width: int) -> None:
        """Reflection cannot pad by more than the side."""
        image = torch.full((1, 3, height, width), 0.75)
        torch.testing.assert_close(blurred(image, MEAN, STD), image)

    @each_baseline
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_baseline_has_the_images_dtype_and_broadcasts(self, baseline: Baseline, dtype: torch.dtype) -> None:
        """It can be put in the images' place."""
        images = random_images(2).to(dtype)
        found = baseline(images, MEAN, STD)
        assert found.dtype == dtype
        assert torch.broadcast_shapes(found.shape, images.shape) == images.shape

    @each_baseline
    def test_images_are_not_written_to(self, baseline: Baseline) -> None:
        """They are the caller's."""
        images = random_images(2)
        kept = images.clone()
        baseline(images, MEAN, STD)
        assert torch.equal(images, kept)

    @pytest.mark.parametrize("baseline", [black, mean_color])
    def test_numbers_of_another_count_than_channels_are_refused(self, baseline: Baseline) -> None:
        """A grey image would silently become three channels."""
        with pytest.raises(ValueError, match="one number for each of the 1 channels, got 3, 3 and 3"):
            baseline(torch.zeros(1, 1, 2, 2), MEAN, STD)


class TestMaskedImages:
    """x * m + baseline * (1 - m)."""

    def test_each_pixel_lies_between_image_and_baseline(self) -> None:
        """A binary map copies either one, bit for bit."""
        images, baseline = random_images(3), random_images(3) + 7
        maps = (random_images(3, channels=1)[:, 0] > 0).float()
        expected = torch.where(maps[:, None] > 0, images, baseline)
        assert torch.equal(masked_images(images, maps, baseline), expected)

    def test_batch_equals_single_images(self) -> None:
        """Batch size does not matter, bit for bit."""
        images, maps = random_images(4), random_images(4, channels=1)[:, 0]
        baseline = blurred(images, MEAN, STD)
        alone = [masked_images(images[i : i + 1], maps[i : i + 1], baseline[i : i + 1]) for i in range(4)]
        assert torch.equal(masked_images(images, maps, baseline), torch.cat(alone))

    def test_dtype_of_the_images_is_kept(self) -> None:
        """A bfloat16 model is fed bfloat16."""
        images = random_images(1).bfloat16()
        assert masked_images(images, torch.rand(1, 8, 8), black(images, MEAN, STD)).dtype == torch.bfloat16

    def test_arguments_are_not_written_to(self) -> None:
        """Images, maps and baseline are the caller's."""
        given = random_images(2), random_images(2, channels=1)[:, 0], torch.zeros(3, 1, 1)
        kept = [tensor.clone() for tensor in given]
        masked_images(*given)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))

    @pytest.mark.parametrize("shape", [(2, 4, 4), (1, 8, 8), (2, 1, 8, 8)])
    def test_maps_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        """Layer resolution, one map for all, or a channel axis."""
        with pytest.raises(ValueError, match=r"`maps` expected one map for each image at its resolution, \(2, 8, 8\)"):
            masked_images(random_images(2), torch.rand(shape), torch.tensor(0.0))
