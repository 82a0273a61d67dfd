"""Image files, which others may have made: decoded whole or refused in words, and nothing else is done with them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from lightning_xai.files import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded; of the others some start programs (EPS) or are made of text."""
UNREADABLE = (OSError, ValueError)
"""What `read_image` raises."""


def read_image(path: Path, pixels: int | None = None) -> Image.Image:
    """An image file as people see it: upright, of several frames the first, in RGB, on white where it is transparent.

    Args:
        path: The file; a link is followed, and a pipe or device is not waited for.
        pixels: How many it may have; None for as many as Pillow allows without a warning, 89 million.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no image of a known format, damaged, or larger.

    Example:
        >>> read_image(Path(__file__))
        Traceback (most recent call last):
        ...
        ValueError: images.py expected an image of BMP, GIF, JPEG, ...
    """
    with open_regular(path.resolve()) as file:
        try:
            return upright(decoded(file, pixels))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path.name} {error}") from error


def decoded(file: BinaryIO, pixels: int | None = None, formats: Sequence[str] = FORMATS) -> Image.Image:
    """A picture that was decoded as a whole; Pillow's own check for bombs stays on.

    Args:
        file: The opened file.
        pixels: How many it may have; None for as many as Pillow allows without a warning.
        formats: Names of formats that are tried.

    Raises:
        ValueError: If it is none of these, damaged, or has more pixels.
    """
    most = Image.MAX_IMAGE_PIXELS if pixels is None else pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(file, formats=[*formats])
            if most is not None and picture.width * picture.height > most:
                raise ValueError(f"of at most {most:,} pixels, got {picture.width} x {picture.height}")
            picture.load()
        except Exception as error:  # of damaged files Pillow raises whatever its decoders meet
            told = "which is none of these, or damaged" if isinstance(error, Image.UnidentifiedImageError) else error
            raise ValueError(f"expected an image of {', '.join(sorted(formats))}: {told}") from error
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """A decoded picture in RGB, turned as its camera was, 16 bits scaled to 8, on white where it is transparent."""
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I"):  # 16 bits: Pillow would cut them off at 255
        values = np.asarray(turned)
        return Image.fromarray((values / (257 if values.max() > 255 else 1)).astype(np.uint8)).convert("RGB")
    if turned.mode == "F":
        raise ValueError("expected pixels in whole numbers, got a file of fractions")
    if turned.has_transparency_data:
        paper = Image.new("RGBA", turned.size, "white")
        return Image.alpha_composite(paper, turned.convert("RGBA")).convert("RGB")
    return turned.convert("RGB")


def image_files(source: Path, left_out: Path | None = None) -> tuple[list[Path], dict[Path, str]]:
    """The files of a folder and of those in it, in order; hidden ones and links that lead out of it are left out.

    Args:
        source: The folder, or one file.
        left_out: A folder in it that is not looked into.

    Returns:
        The files, whatever they hold, and why others are left out.

    Raises:
        FileNotFoundError: If there is nothing of that name.
    """
    if source.is_file():
        return [source], {}
    if not source.is_dir():
        raise FileNotFoundError(f"`IMAGES` expected a folder or an image, got {str(source)!r}.")
    root, skipped = source.resolve(), None if left_out is None else left_out.resolve()
    files, others = [], {}
    for place, folders, names in os.walk(source):  # which follows no links to folders
        folder = Path(place)
        for name in sorted(names) + sorted(folders):
            path = folder / name
            if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
                others[path] = "a link that is not followed"
            elif name in names and not name.startswith("."):
                files.append(path)
        folders[:] = sorted(one for one in folders if one[0] != "." and (folder / one).resolve() != skipped)
    return files, others
