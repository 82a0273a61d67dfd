"""Controls: maps that depend on nothing but what they say."""

import dataclasses
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import assert_same_state, random_images, small_net, state_of
from torch import Tensor

from lightning_xai import explain
from lightning_xai.attribution import Attribution, GradCAM, GuidedGradient, InputGradient
from lightning_xai.attribution.controls import (
    CenteredGaussian,
    Edges,
    FakeCAM,
    Random,
    Shuffled,
    edge_magnitude,
    permuted_blocks,
)
from lightning_xai.metrics import normalized_masks
from lightning_xai.scores import post_softmax

CONTROLS: list[Attribution] = [Random(), CenteredGaussian(), FakeCAM(), Edges(), Shuffled(CenteredGaussian())]

each_control = pytest.mark.parametrize("control", CONTROLS, ids=lambda control: type(control).__name__)


def maps_of(control: Attribution, images: Tensor) -> Tensor:
    """The maps of a trace of which only the images exist."""
    trace: Any = SimpleNamespace(images=images, noise_source=images)
    return control(trace, torch.zeros(len(images), dtype=torch.long))


@each_control
def test_maps_have_image_resolution(control: Attribution) -> None:
    """Height and width are not mixed up."""
    assert maps_of(control, torch.rand(2, 3, 5, 7)).shape == (2, 5, 7)


@each_control
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_maps_are_float32_or_better(control: Attribution, dtype: torch.dtype, expected: torch.dtype) -> None:
    """The images' dtype, widened where it is half."""
    assert maps_of(control, random_images(2).to(dtype)).dtype == expected


@each_control
def test_maps_of_a_batch_are_the_maps_of_its_images(control: Attribution) -> None:
    """Batch size and position do not matter, bit for bit."""
    images = random_images(4)
    maps = maps_of(control, images)
    assert torch.equal(maps, torch.cat([maps_of(control, image[None]) for image in images]))
    assert torch.equal(maps.flip(0), maps_of(control, images.flip(0)))


@each_control
def test_images_random_state_and_graph_are_left_alone(control: Attribution) -> None:
    """Nothing of the caller's changes, and maps carry no gradient."""
    images = random_images(2).requires_grad_()
    kept, state = images.detach().clone(), torch.get_rng_state()
    maps = maps_of(control, images)
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert not maps.requires_grad


@each_control
def test_maps_do_not_share_memory(control: Attribution) -> None:
    """Writing into the map of one image leaves the others'."""
    maps = maps_of(control, random_images(2))
    before = maps[1].clone()
    maps[0] = -1.0
    assert torch.equal(maps[1], before)


@each_control
def test_control_is_a_value(control: Attribution) -> None:
    """Equal by its fields, hashable, picklable: it can be a key and travel to another process."""
    assert pickle.loads(pickle.dumps(control)) == control == dataclasses.replace(control)  # type: ignore[type-var]
    assert hash(control) == hash(dataclasses.replace(control))  # type: ignore[type-var]


@each_control
def test_control_runs_in_inference_mode(control: Attribution) -> None:
    """As in Trainer.validate."""
    images = random_images(2)
    with torch.inference_mode():
        found = maps_of(control, images.clone())
    assert torch.equal(found, maps_of(control, images))


class TestRandom:
    """Seeded noise."""

    def test_seeds_give_independent_maps(self) -> None:
        """Neighbouring, negative and large seeds too."""
        images = random_images(1, size=64)
        maps = torch.stack([maps_of(Random(seed), images)[0] for seed in (0, 1, 2, -1, 2**31)]).flatten(1)
        off_diagonal = torch.corrcoef(maps) - torch.eye(5)
        assert off_diagonal.abs().max() < 0.1

    def test_images_give_independent_maps(self) -> None:
        """Images that differ in one pixel by one spacing too."""
        images = random_images(1, size=64).repeat(2, 1, 1, 1)
        images[1, 2, 63, 63] = torch.nextafter(images[1, 2, 63, 63], torch.tensor(9.0))
        assert torch.corrcoef(maps_of(Random(), images).flatten(1))[0, 1].abs() < 0.1

    def test_equal_content_gives_equal_maps_whatever_its_layout_and_dtype(self) -> None:
        """The checksum is of the values as float32."""
        images = random_images(2)
        maps = maps_of(Random(), images)
        assert torch.equal(maps, maps_of(Random(), images.to(memory_format=torch.channels_last)))
        assert torch.equal(maps.double(), maps_of(Random(), images.double()))

    def test_values_are_uniform_in_the_unit_interval(self) -> None:
        """Each tenth of [0, 1) holds a tenth of the pixels."""
        maps = maps_of(Random(), random_images(4, size=64))
        assert maps.min() >= 0
        assert maps.max() < 1
        shares = torch.histc(maps, 10, 0, 1) / maps.numel()
        torch.testing.assert_close(shares, torch.full((10,), 0.1), rtol=0, atol=0.01)


class TestCenteredGaussian:
    """A bump in the middle."""

    def test_peak_is_one_at_the_center(self) -> None:
        """Of an image with odd sides."""
        found = maps_of(CenteredGaussian(), torch.zeros(1, 3, 9, 5))[0]
        assert found.max() == found[4, 2] == 1

    def test_map_is_symmetric(self) -> None:
        """Under both flips, for odd and even sides."""
        found = maps_of(CenteredGaussian(), torch.zeros(1, 3, 8, 5, dtype=torch.float64))[0]
        torch.testing.assert_close(found, found.flip(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(found, found.flip(1), rtol=1e-14, atol=0)

    @pytest.mark.parametrize("sigma", [0.1, 0.25])
    def test_sigma_is_a_share_of_each_side(self, sigma: float) -> None:
        """exp(-d^2 / 2) at d deviations along the height and along the width."""
        found = maps_of(CenteredGaussian(sigma), torch.zeros(1, 3, 41, 81, dtype=torch.float64))[0]
        for row, column in ((0, 40), (20, 0), (7, 66)):
            d2 = ((row - 20) / (41 * sigma)) ** 2 + ((column - 40) / (81 * sigma)) ** 2
            assert found[row, column].item() == pytest.approx(math.exp(-d2 / 2), rel=1e-12)

    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
    def test_sigma_that_is_not_positive_is_refused(self, sigma: float) -> None:
        """Before any image is seen."""
        with pytest.raises(ValueError, match="`sigma` expected a positive share of the image's side, got"):
            CenteredGaussian(sigma)


def test_fake_cam_hides_the_first_pixel_and_nothing_else() -> None:
    """As a map and as a mask, for every image."""
    maps = maps_of(FakeCAM(), torch.zeros(2, 3, 4, 5))
    expected = torch.ones(2, 4, 5)
    expected[:, 0, 0] = 0
    assert torch.equal(maps, expected)
    assert torch.equal(normalized_masks(maps), expected)


class TestEdges:
    """A Sobel filter."""

    def test_magnitude_is_that_of_a_loop_over_pixels(self) -> None:
        """Sobel's two kernels, borders continued, on the mean of the channels."""
        images = random_images(2, size=5, dtype=torch.float64)[:, :, :4]
        found = edge_magnitude(images)
        kernel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
        for n, row, column in ((0, 0, 0), (0, 2, 3), (1, 3, 4), (1, 1, 1)):
            grey = images[n].mean(0)
            around = [
                [grey[min(max(row + i, 0), 3), min(max(column + j, 0), 4)] for j in (-1, 0, 1)] for i in (-1, 0, 1)
            ]
            across = sum(kernel[i][j] * around[i][j] for i in range(3) for j in range(3))
            down = sum(kernel[j][i] * around[i][j] for i in range(3) for j in range(3))
            assert found[n, row, column].item() == pytest.approx(math.hypot(across, down), rel=1e-12)

    def test_flat_image_has_no_edges(self) -> None:
        """Not at the border either, whatever the colour."""
        assert not maps_of(Edges(), torch.tensor([2.0, -1.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 6, 6)).any()

    def test_direction_of_the_step_does_not_matter(self) -> None:
        """Up, down, left and right are the same map, turned."""
        step = torch.zeros(1, 1, 6, 6)
        step[..., 3:] = 1
        found = edge_magnitude(step)[0]
        assert found.unique().tolist() == [0, 4]
        for turns in (1, 2, 3):
            assert torch.equal(edge_magnitude(step.rot90(turns, (2, 3)))[0], found.rot90(turns))


class TestShuffled:
    """The map of another method in random order."""

    @pytest.mark.parametrize("block", [1, 2, 4, 8])
    def test_values_are_those_of_the_method(self, block: int) -> None:
        """Block by block the same ones, in another order unless there is one block only."""
        images = random_images(3)
        maps, found = maps_of(Edges(), images), maps_of(Shuffled(Edges(), block=block), images)

        def blocks(values: Tensor) -> list[list[float]]:
            cut = values.unfold(0, block, block).unfold(1, block, block)
            return cut.flatten(0, 1).flatten(1).tolist()

        for before, after in zip(maps, found, strict=True):
            assert sorted(blocks(before)) == sorted(blocks(after))
            assert torch.equal(before, after) == (block == 8)

    def test_order_is_read_row_by_row(self) -> None:
        """Of a map that is higher than wide: each place gets the block that its order names."""
        its_map, order = torch.arange(24.0).view(1, 6, 4), [1, 3, 0, 5, 4, 2]
        found = permuted_blocks(its_map, torch.tensor([order]), block=2)
        for place, source in enumerate(order):
            (row, column), (old_row, old_column) = ((2 * (index // 2), 2 * (index % 2)) for index in (place, source))
            here = found[0, row : row + 2, column : column + 2]
            assert torch.equal(here, its_map[0, old_row : old_row + 2, old_column : old_column + 2])

    def test_place_says_nothing_about_the_value(self) -> None:
        """A shuffled Gaussian does not correlate with the Gaussian, nor from image to image or seed to seed."""
        images = random_images(2, size=64)
        maps = torch.cat([maps_of(c, images) for c in (CenteredGaussian(), *map(shuffled_gaussian, (0, 1)))])
        correlations = torch.corrcoef(maps[1:].flatten(1)) - torch.eye(5)
        assert correlations.abs().max() < 0.06

    def test_method_is_traced_as_if_it_were_alone(self) -> None:
        """Layers and gradients are captured for it, also the layer that is found."""
        model, images = small_net(), random_images(3)
        methods = {"cam": GradCAM("conv2"), "found": GradCAM(), "guided": GuidedGradient(), "gradient": InputGradient()}
        shuffled = {name: Shuffled(method, block=2) for name, method in methods.items()}
        before = state_of(model)
        found = explain(model, images, attributions=shuffled)
        assert_same_state(before, state_of(model))
        alone = explain(model, images, attributions=methods)
        for name, maps in found.items():
            assert torch.equal(maps.flatten(1).sort().values, alone[name].flatten(1).sort().values), name
            assert not torch.equal(maps, alone[name]), name

    def test_the_method_inside_answers_for_layers_score_and_relu(self) -> None:
        """What the pass must keep, and the score, are the inner method's."""
        assert Shuffled(Random()).layers() == []
        assert Shuffled(GradCAM(["conv1", "conv2"])).layers() == ["conv1", "conv2"]
        with pytest.raises(ValueError, match="got Random, which has none"):
            Shuffled(Random()).with_score(post_softmax)
        assert Shuffled(GradCAM()).with_score(post_softmax) == Shuffled(GradCAM(score=post_softmax))
        assert Shuffled(GradCAM()).without_relu() == Shuffled(GradCAM(relu=False))
        assert Shuffled(InputGradient()).needs_image_gradient
        assert not Shuffled(GradCAM()).needs_image_gradient

    def test_block_that_does_not_divide_the_image_is_refused(self) -> None:
        """Rests would have to be dropped."""
        with pytest.raises(
            ValueError, match=r"`block` expected a divisor of the maps' height and width, \(8, 8\), got 3"
        ):
            maps_of(Shuffled(Edges(), block=3), random_images(1))

    def test_arguments_that_make_no_sense_are_refused(self) -> None:
        """A class instead of a method, and blocks of no pixel."""
        with pytest.raises(
            TypeError, match=r"expected an Attribution, got the class GradCAM. Create it: `GradCAM\(\)`"
        ):
            Shuffled(GradCAM)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="`block` expected a side of 1 pixel or more, got 0"):
            Shuffled(GradCAM(), block=0)


def shuffled_gaussian(seed: int) -> Shuffled:
    """A smooth map that is shuffled with a seed."""
    return Shuffled(CenteredGaussian(), seed=seed)
