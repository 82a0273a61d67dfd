"""Image files of strangers are shown as people see them, or refused in words; nothing hangs, nothing runs."""

from pathlib import Path

import numpy as np
import pytest
from hostile_images import LEFT, RIGHT, bomb, halves, write_no_images, write_odd

from lightning_xai.images import UNREADABLE, image_files, read_image

WHITE = (255, 255, 255)


def test_odd_images_are_shown_as_people_see_them(tmp_path: Path) -> None:
    """The first frame, upright, in RGB, 16 bits scaled, on white where it is transparent."""
    expected = {"alpha": (LEFT, WHITE), "grey16": ((233,) * 3, (11,) * 3)}
    for kind, path in write_odd(tmp_path).items():
        picture = read_image(path)
        assert (picture.mode, picture.size) == ("RGB", (16, 8)), kind
        pixels = np.asarray(picture).astype(int)
        for found, colour in zip((pixels[:, :6], pixels[:, 10:]), expected.get(kind, (LEFT, RIGHT)), strict=True):
            assert np.abs(found - colour).max() <= 12, kind  # what JPEG and palettes change


def test_files_that_are_no_images_are_refused_in_words(tmp_path: Path) -> None:
    """Damaged ones, huge ones, texts, programs, and a pipe that nobody writes into."""
    for path in write_no_images(tmp_path):
        with pytest.raises(UNREADABLE, match=r"expected a") as caught:
            read_image(path)
        assert path.name in str(caught.value)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """Pillow's limit stays on: what it only warns of, and what it refuses."""
    for side in (10_000, 20_000):
        path = tmp_path / f"{side}.png"
        path.write_bytes(bomb(side, side))
        with pytest.raises(ValueError, match="pixels"):
            read_image(path)


def test_links_out_of_the_folder_are_named(tmp_path: Path) -> None:
    """Links within it are files of it; hidden files and a folder of results are left out."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "out", inside / "../outside", inside / "\u732b"):
        folder.mkdir(parents=True)
        halves().save(folder / "a.png")
    (inside / ".hidden.png").write_bytes(b"")
    (inside / "file.png").symlink_to(outside / "a.png")
    (inside / "folder").symlink_to(outside)
    (inside / "nothing.png").symlink_to(inside / "missing.png")
    (inside / "self").symlink_to(inside)
    (inside / "own.png").symlink_to(inside / "\u732b" / "a.png")
    files, others = image_files(inside, inside / "out")
    assert files == [inside / "own.png", inside / "\u732b" / "a.png"]
    assert others == {
        inside / name: "a link that is not followed" for name in ("file.png", "nothing.png", "folder", "self")
    }
    assert image_files(outside / "a.png") == ([outside / "a.png"], {})
    with pytest.raises(FileNotFoundError, match="a folder or an image"):
        image_files(tmp_path / "missing")
    assert read_image(inside / "own.png").size == halves().size
