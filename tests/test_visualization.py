"""Maps are drawn as they are: signs, zeros and scales can be read from the colours, and nothing is cut off."""

import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from lightning_xai.baselines import check_standardized, to_pixels
from lightning_xai.visualization import Panel, as_uint8, heatmap, overlay, raster

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALVES = {"mean": [0.5] * 3, "std": [0.5] * 3}
UNIT = {"mean": [0.0] * 3, "std": [1.0] * 3}
WHITE, RED, BLUE = [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]


def standardized(pixels: Tensor, statistics: dict[str, list[float]]) -> Tensor:
    """Standardise the plain way."""
    mean, std = (torch.tensor(statistics[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


def photo_like(n: int = 16) -> Tensor:
    """Smooth pixels that fill [0, 1]: black, white and everything between."""
    torch.manual_seed(0)
    coarse = torch.randn(n, 3, 4, 4)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").mul(0.6).add(0.5).clamp(0, 1)


# Pixels


def test_pixels_undo_the_standardisation() -> None:
    """What was standardised comes back."""
    pixels = photo_like()
    assert_close(to_pixels(standardized(pixels, IMAGENET), **IMAGENET), pixels, atol=1e-6, rtol=0)


def test_grey_images_get_three_equal_channels() -> None:
    """A grey image can be drawn beside coloured ones."""
    pixels = to_pixels(torch.zeros(2, 1, 4, 4), [0.25], [1.0])
    assert_close(pixels, torch.full((2, 3, 4, 4), 0.25))


def test_pixels_are_clamped_and_float32() -> None:
    """Half precision and noise do not leave [0, 1]."""
    pixels = to_pixels(torch.tensor([-9.0, 9.0], dtype=torch.bfloat16).view(1, 1, 1, 2), [0.5], [0.5])
    assert pixels.dtype == torch.float32
    assert pixels[0, 0, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("check", [to_pixels, check_standardized])
@pytest.mark.parametrize(("shape", "channels"), [((1, 3, 4, 4), 1), ((1, 1, 4, 4), 3), ((3, 4, 4), 3)])
def test_channels_that_do_not_fit_are_named(check, shape: tuple[int, ...], channels: int) -> None:
    """The error tells the shape and how many statistics came."""
    with pytest.raises(ValueError, match=rf"`images` expected shape .*got shape \(.*{channels} means"):
        check(torch.zeros(shape), [0.5] * channels, [0.5] * channels)


def test_other_channels_are_no_picture_but_can_be_checked() -> None:
    """Satellites and microscopes have any number of them."""
    with pytest.raises(ValueError, match="C = 1 or 3 for pictures, got shape"):
        to_pixels(torch.zeros(1, 4, 4, 4), [0.5] * 4, [0.5] * 4)
    check_standardized(torch.rand(2, 4, 8, 8) - 0.5, [0.5] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match="expected to be standardised"):
        check_standardized(9 * torch.rand(2, 4, 8, 8), [0.5] * 4, [1.0] * 4)


# Do the images match the statistics?


@pytest.mark.parametrize(
    ("change", "statistics"),
    [
        pytest.param(lambda pixels: standardized(pixels, IMAGENET), IMAGENET, id="standardised"),
        pytest.param(lambda pixels: standardized(pixels, HALVES), HALVES, id="in [-1, 1]"),
        pytest.param(lambda pixels: pixels, UNIT, id="in [0, 1], as said"),
        pytest.param(
            lambda pixels: standardized(pixels + 0.1 * torch.randn(pixels.shape), IMAGENET), IMAGENET, id="noisy"
        ),
        pytest.param(lambda pixels: standardized(pixels.round() * 1.2 - 0.1, IMAGENET), IMAGENET, id="ringing"),
        pytest.param(lambda pixels: standardized(pixels * 0.2 + 0.4, IMAGENET), IMAGENET, id="foggy"),
        pytest.param(lambda pixels: standardized(pixels * 0.1, IMAGENET), IMAGENET, id="night"),
        pytest.param(torch.zeros_like, IMAGENET, id="all of the mean colour"),
        pytest.param(torch.randn_like, IMAGENET, id="pure noise, as tests use"),
        pytest.param(torch.randn_like, HALVES, id="pure noise, halves"),
    ],
)
def test_images_that_match_pass(change, statistics: dict[str, list[float]]) -> None:
    """Nothing is said about legitimate images, augmented or odd."""
    check_standardized(change(photo_like()), **statistics)


WRONG = [
    pytest.param(lambda pixels: pixels, IMAGENET, id="never standardised"),
    pytest.param(lambda pixels: pixels, HALVES, id="never standardised, halves"),
    pytest.param(lambda pixels: pixels * 255, IMAGENET, id="up to 255"),
    pytest.param(lambda pixels: (pixels * 255).byte(), UNIT, id="bytes"),
    pytest.param(lambda pixels: standardized(pixels, HALVES), IMAGENET, id="in [-1, 1]"),
    pytest.param(lambda pixels: standardized(pixels, HALVES), UNIT, id="in [-1, 1], said to be pixels"),
    pytest.param(lambda pixels: standardized(pixels, IMAGENET), HALVES, id="other statistics"),
    pytest.param(lambda pixels: standardized(pixels, IMAGENET), UNIT, id="said to be pixels"),
    pytest.param(lambda pixels: standardized(standardized(pixels, IMAGENET), IMAGENET), IMAGENET, id="twice"),
]


@pytest.mark.parametrize(("change", "statistics"), WRONG)
def test_images_that_do_not_match_are_noticed(change, statistics: dict[str, list[float]]) -> None:
    """Each usual mistake raises."""
    with pytest.raises(ValueError, match=r"`images` expected to be standardised with mean .* got values in .*Pass the"):
        check_standardized(change(photo_like()), **statistics)


def test_the_range_found_is_told() -> None:
    """The user sees the values that came and what they would be as pixels."""
    images = torch.tensor([0.0, 255.0]).view(1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"\[0, 255\], which would be pixels in \[0\.5, 128\]"):
        check_standardized(images, [0.5], [0.5])


@pytest.mark.skipif("LIGHTNING_XAI_DATA" not in os.environ, reason="needs the photographs in $LIGHTNING_XAI_DATA")
def test_photographs_are_told_apart() -> None:
    """On real photographs in batches of 16, right statistics always pass and wrong ones never do."""
    files = sorted(Path(os.environ["LIGHTNING_XAI_DATA"]).glob("imagenet/val/*/*.JPEG"))[::8][:48]
    photos = [pil_to_tensor(Image.open(file).convert("RGB")) for file in files]
    pixels = torch.stack([center_crop(resize(photo, [64]), [64, 64]) for photo in photos]) / 255
    for batch in pixels.split(16):
        check_standardized(standardized(batch, IMAGENET), **IMAGENET)
        for mistake in WRONG:
            with pytest.raises(ValueError, match="expected to be standardised"):
                check_standardized(mistake.values[0](batch), **mistake.values[1])


# Colours


def test_zero_is_black_and_the_largest_brightest_without_negative_values() -> None:
    """Lightness rises with the map."""
    colours = heatmap(torch.linspace(0, 1, 100).view(1, 10, 10))
    lightness = colours.mean(1).flatten()
    assert colours[0, :, 0, 0].max() < 0.02
    assert lightness.diff().min() >= -1e-6
    assert lightness[-1] > 0.8


def test_signed_maps_are_symmetric_about_white() -> None:
    """Red is for, blue as much against, white is zero, also where one side is weaker."""
    colours = heatmap(torch.tensor([[[-0.5, 0.0, 0.5, 1.0]]]))[0, :, 0].T
    assert colours[1].tolist() == WHITE
    assert colours[3].tolist() == RED
    assert_close(colours[0].flip(0), colours[2])
    assert heatmap(torch.tensor([[[-1.0, 0.5]]]))[0, :, 0, 0].tolist() == BLUE


def test_each_map_has_its_own_scale() -> None:
    """A factor per image changes nothing, one image does not dim another."""
    maps = torch.rand(2, 8, 8)
    assert_close(heatmap(maps * torch.tensor([1e-20, 1e20])[:, None, None]), heatmap(maps))


def test_a_few_extreme_pixels_do_not_hide_the_rest() -> None:
    """One pixel in a thousand, five times larger, leaves the colours of the others."""
    maps = torch.rand(1, 50, 50)
    spiked = maps.clone()
    spiked[0, 0, :2] = 5
    assert_close(heatmap(spiked)[..., 1:, :], heatmap(maps)[..., 1:, :], atol=0.05, rtol=0)


def test_a_single_bright_pixel_is_seen() -> None:
    """A map that is zero at more than 99 % of its pixels is not drawn empty."""
    maps = torch.zeros(1, 20, 20)
    maps[0, 3, 4] = 1e-3
    colours = heatmap(maps)
    assert colours[0, :, 3, 4].mean() > 0.8
    assert colours[0, :, 4, 3].mean() < 0.02


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_drawn_as_zero(bad: float) -> None:
    """They neither spoil the scale nor the picture."""
    maps = torch.rand(2, 8, 8)
    zeroed = maps.clone()
    maps[0, 1, 1], zeroed[0, 1, 1] = bad, 0.0
    maps[1], zeroed[1] = bad, 0.0
    assert_close(heatmap(maps), heatmap(zeroed))


def test_an_empty_map_leaves_the_image() -> None:
    """Nothing to say is drawn as nothing, in either kind of colours."""
    pixels, grey = photo_like(2), photo_like(2)[:, :1].expand(-1, 3, -1, -1)
    maps = torch.zeros(2, 32, 32)
    assert_close(overlay(grey, maps), grey)
    maps[1] = -torch.rand(32, 32)
    assert_close(overlay(pixels, maps)[0], overlay(pixels, torch.zeros(2, 32, 32))[0])


def test_strong_evidence_covers_the_image() -> None:
    """At full opacity the strongest pixel has the map's colour alone."""
    maps = torch.zeros(1, 32, 32)
    maps[0, 0, 0], maps[0, 0, 1] = 1, -1
    colours = overlay(photo_like(1), maps, alpha=1.0)
    assert colours[0, :, 0, 0].tolist() == RED
    assert colours[0, :, 0, 1].tolist() == BLUE


def test_colours_stay_in_range_and_arguments_as_they_were() -> None:
    """[0, 1] for any map; inputs are not written to, half precision and inference tensors are taken."""
    with torch.inference_mode():
        maps, pixels = torch.randn(2, 32, 32).bfloat16(), photo_like(2)
    before = maps.clone(), pixels.clone()
    colours = overlay(pixels, maps)
    assert colours.dtype == torch.float32
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert torch.equal(maps, before[0])
    assert torch.equal(pixels, before[1])


def test_shapes_that_do_not_belong_together_are_named() -> None:
    """Maps at feature resolution are a likely mistake."""
    with pytest.raises(ValueError, match=r"`maps` \(N, H, W\), got \(1, 3, 8, 8\) and \(1, 4, 4\)"):
        overlay(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 4))


# Panels


def panel(n: int = 2, names: tuple[str, ...] = ("gradcam",), size: tuple[int, int] = (16, 16), **facts: list) -> Panel:
    """Build a panel of noise."""
    return Panel(torch.rand(n, 3, *size), {name: torch.rand(n, 3, *size) for name in names}, facts)


def test_captions_tell_label_prediction_and_probability() -> None:
    """The usual facts read as a sentence."""
    facts = {"label": ["cat", "dog"], "prediction": ["dog", "dog"], "probability": [0.871, 1.0]}
    assert panel(**facts).captions == ["label cat | predicted dog (0.87)", "label dog | predicted dog (1.00)"]


def test_captions_take_any_facts_and_leave_out_unknown_ones() -> None:
    """Other facts are told with their names; None is not told; no facts are fine."""
    assert panel(file=["a.png", None], score=[0.12345, 2]).captions == ["file a.png | score 0.123", "score 2"]
    assert panel(probability=[0.5, None]).captions == ["probability 0.5", ""]
    assert panel().captions == ["", ""]


@pytest.mark.parametrize(
    ("images", "overlays", "facts", "message"),
    [
        (torch.rand(2, 1, 4, 4), {}, {}, r"`images` expected shape \(N, 3, H, W\).*got \(2, 1, 4, 4\)"),
        (torch.rand(0, 3, 4, 4), {}, {}, r"`images` expected .* N >= 1, got \(0, 3, 4, 4\)"),
        (torch.rand(2, 3, 4, 4), {"cam": torch.rand(2, 4, 4)}, {}, r"`overlays\['cam'\]` .*got \(2, 4, 4\)"),
        (torch.rand(2, 3, 4, 4), {}, {"label": ["cat"]}, r"`facts\['label'\]` expected 2 values.* got 1"),
    ],
)
def test_a_panel_that_does_not_fit_together_is_refused(images, overlays, facts, message: str) -> None:
    """The error names the entry."""
    with pytest.raises(ValueError, match=message):
        Panel(images, overlays, facts)


def test_a_figure_shows_every_picture_once() -> None:
    """Rows are images, columns the image and the attributions in their order."""
    shown = panel(3, ("a", "b"))
    figure = shown.figure("step 5")
    arrays = [axes.images[0].get_array() for axes in figure.axes]
    expected = [picture for pictures in (shown.images, *shown.overlays.values()) for picture in as_uint8(pictures)]
    assert len(arrays) == 9
    assert all(np.array_equal(array, picture) for array, picture in zip(arrays, expected, strict=True))
    lefts, tops = ([getattr(axes.get_position(), side) for axes in figure.axes] for side in ("x0", "y1"))
    assert lefts == sorted(lefts)
    assert tops[:3] == sorted(tops[:3], reverse=True)


@pytest.mark.parametrize("n", [1, 4, 16])
@pytest.mark.parametrize("columns", [0, 1, 7])
@pytest.mark.parametrize("size", [(32, 32), (8, 64), (64, 8)])
def test_long_names_are_neither_cut_nor_covered(n: int, columns: int, size: tuple[int, int]) -> None:
    """All texts lie inside the figure and touch neither a picture nor each other."""
    name = "soft-coated wheaten terrier, and_a_word_that_is_longer_than_the_column_it_stands_in"
    shown = panel(n, tuple(f"{name} {i}" for i in range(columns)), size, label=[name] * n, prediction=[name] * n)
    figure = shown.figure(f"val/xai/{name}/maps, step 100")
    renderer = figure.canvas.get_renderer()
    texts = [text.get_window_extent(renderer) for text in figure.texts]
    pictures = [axes.get_window_extent(renderer) for axes in figure.axes]
    for i, box in enumerate(texts):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in pictures + texts[:i])


def test_figures_ignore_the_users_matplotlib_settings() -> None:
    """Dollar signs are no formulas, and neither automatic layout nor an origin below moves anything."""
    shown = panel(1, ("$x_",), label=["$\\frac{"])
    plain = raster(shown.figure("$"))
    with matplotlib.rc_context({"figure.autolayout": True, "image.origin": "lower"}):
        assert np.array_equal(raster(shown.figure("$")), plain)


def test_drawing_does_without_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pyplot would choose a backend and keep figures alive for the whole process."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # from here on importing it fails
    raster(panel(1).figure("step 5"))


def test_bytes_are_rounded_and_contiguous_in_colour() -> None:
    """The form the image libraries want."""
    pixels = torch.tensor([0.0, 0.499, 1.0]).view(1, 3, 1, 1)
    array = as_uint8(pixels)
    assert array.dtype == np.uint8
    assert array.tolist() == [[[[0, 127, 255]]]]
