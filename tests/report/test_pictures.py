"""Pictures in a page: cut out, small, each once."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from report.example_run import panel

from lightning_xai.images import UNREADABLE
from lightning_xai.panels import read_panel, save_panel
from lightning_xai.report.pictures import Pictures, evenly
from lightning_xai.visualization import Panel, as_uint8


def decoded(uri):
    """The picture in a data address."""
    return Image.open(BytesIO(b64decode(uri.removeprefix("data:image/webp;base64,"))))


def test_small_pictures_of_a_panel_are_embedded_as_they_are(tmp_path):
    """Up to 64 pixels without loss."""
    drawn = panel(n=2)
    save_panel(drawn, tmp_path)
    stored, pictures = read_panel(tmp_path), Pictures()
    assert (stored.columns, stored.captions) == (["image", "gradcam", "lrp"], drawn.captions)
    for name, expected in {"image": drawn.images, **drawn.overlays}.items():
        for row, pixels in enumerate(as_uint8(expected)):
            number = pictures.add_tile(stored.tile(name, row))
            assert np.array_equal(decoded(pictures.uris[number]), pixels)
    assert stored.tile("other", 0) is stored.tile("image", 2) is None


def test_large_pictures_are_stored_smaller_and_embedded_smaller_still(tmp_path):
    """Noise, the worst case."""
    images = torch.rand(1, 3, 600, 300, generator=torch.Generator().manual_seed(0))
    save_panel(Panel(images), tmp_path)
    path, pictures = read_panel(tmp_path).tile("image", 0), Pictures()
    with Image.open(path) as stored:
        assert stored.size == (112, 224)
    pictures.add_tile(path)
    assert decoded(pictures.uris[0]).size[1] <= 224
    assert len(pictures.uris[0]) < 20_000


def bomb(width, height):
    """A PNG of one colour: some bytes for each million pixels."""
    buffer = BytesIO()
    Image.new("1", (width, height)).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(("size", "told"), [((2000, 1000), "at most 1,000,000"), ((20_000, 10_000), "bomb")])
def test_picture_bombs_are_not_decoded(tmp_path, size, told):
    """Neither those that Pillow refuses nor others that are no panel's."""
    (tmp_path / "0_0.webp").write_bytes(bomb(*size))
    with pytest.raises(UNREADABLE, match=told):
        Pictures().add_tile(tmp_path / "0_0.webp")


def test_equal_pictures_are_kept_once():
    """Whatever order they come in."""
    pictures = Pictures()
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    assert [pictures.add(one) for one in (red, blue, red.copy(), blue)] == [0, 1, 0, 1]
    assert len(pictures.uris) == 2


def test_drawings_are_embedded_without_loss():
    """Transparent parts become white."""
    pictures = Pictures()
    drawing = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    drawing.paste("blue", (5, 5, 6, 25))
    pictures.add_figure(drawing)
    found = np.asarray(decoded(pictures.uris[0]))
    assert found.shape == (30, 40, 3)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[10, 5].tolist() == [0, 0, 255]


def test_large_photographs_are_made_smaller():
    """Noise, the worst case: 3000 x 1500 pixels would be 13 MB without loss."""
    noise = torch.randint(0, 256, (150, 300, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = Pictures()
    pictures.add_figure(Image.fromarray(noise.numpy()).resize((3000, 1500)))
    assert decoded(pictures.uris[0]).size == (2400, 1200)
    assert len(pictures.uris[0]) < 2_000_000


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, [*range(10)]), (11, [*range(10)])]
)
def test_samples_are_even_and_have_both_ends(n, expected):
    """As far as there are two."""
    assert evenly(range(10), n) == expected
