"""Controls: maps that depend on nothing but what they say."""

import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import needs_cuda, random_images
from torch import Tensor

from lightning_xai.attribution.controls import CenteredGaussian, FakeCAM, Random
from lightning_xai.metrics import normalized_masks
from lightning_xai.types import Attribution

CONTROLS: list[Attribution] = [Random(), CenteredGaussian(), FakeCAM()]

each_control = pytest.mark.parametrize("control", CONTROLS, ids=lambda control: type(control).__name__)


def maps_of(control: Attribution, images: Tensor) -> Tensor:
    """The maps of a trace of which only the images exist."""
    trace: Any = SimpleNamespace(images=images)
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
    assert pickle.loads(pickle.dumps(control)) == control == type(control)()
    assert hash(control) == hash(type(control)())


@each_control
def test_control_runs_in_inference_mode(control: Attribution) -> None:
    """As in Trainer.validate."""
    images = random_images(2)
    with torch.inference_mode():
        found = maps_of(control, images.clone())
    assert torch.equal(found, maps_of(control, images))


@pytest.mark.gpu
@needs_cuda
@each_control
def test_maps_are_the_same_on_every_device(control: Attribution) -> None:
    """On the images' device; noise bit for bit."""
    images = random_images(2)
    found = maps_of(control, images.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), maps_of(control, images))


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
