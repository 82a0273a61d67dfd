"""Pictures in a page: cut out, small, each once."""

import numpy as np
import pytest
import torch
from PIL import Image
from report.example_run import panel

from lightning_xai.report.pictures import Pictures, evenly, read_panel
from lightning_xai.visualization import as_uint8


def decoded(uri):
    """The picture in a data address."""
    from base64 import b64decode
    from io import BytesIO

    return Image.open(BytesIO(b64decode(uri.removeprefix("data:image/webp;base64,"))))


def test_the_pictures_of_a_panel_are_cut_out_of_its_file(tmp_path):
    """Each is what was drawn, but for the frame and the borders of enlarged pixels."""
    drawn = panel(n=2)
    drawn.save(tmp_path / "panel.png", "title")
    found = read_panel(tmp_path / "panel.png")
    assert (found.columns, found.captions) == (["image", "gradcam", "lrp"], drawn.captions)
    for name, expected in {"image": drawn.images, **drawn.overlays}.items():
        for tile, pixels in zip(found.tiles[name], as_uint8(expected), strict=True):
            middles = np.asarray(tile)[5::11, 5::11][:16, :16]
            assert middles.shape == pixels.shape
            assert (abs(middles.astype(int) - pixels) < 3).mean() > 0.95


def test_a_picture_without_a_description_is_refused(tmp_path):
    """Where its parts are cannot be known."""
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"plain.png expected the file of a panel, got a picture without"):
        read_panel(tmp_path / "plain.png")


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
