"""Image files as strangers send them: odd ones that are images, and ones that are none."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

LEFT, RIGHT = (200, 40, 40), (40, 40, 200)
"""Colours of the halves of a 16 x 8 picture: what each odd file shows."""


def halves() -> Image.Image:
    """Red to the left, blue to the right."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:] = LEFT, RIGHT
    return Image.fromarray(pixels)


def write_odd(folder: Path) -> dict[str, Path]:
    """Images that are to be shown right, by kind."""
    names = ("animated.gif", "cmyk.jpg", "exif.jpg", "palette.png", "alpha.png", "float.bmp", "grey16.png", "tiff.tif")
    paths = {name.split(".")[0]: folder / name for name in names}
    picture = halves()
    picture.save(paths["animated"], save_all=True, append_images=[Image.new("RGB", (16, 8), "green")])
    picture.convert("CMYK").save(paths["cmyk"], quality=100, subsampling=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown a quarter turn clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(paths["exif"], quality=100, subsampling=0, exif=exif)
    picture.quantize(4).save(paths["palette"])
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.uint8([255] * 8 + [0] * 8), (8, 1))))  # what is blue is not seen
    alpha.save(paths["alpha"])
    picture.save(paths["float"])
    Image.fromarray(np.tile(np.uint16([60000] * 8 + [3000] * 8), (8, 1))).save(paths["grey16"])
    picture.save(paths["tiff"])
    return paths


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def write_no_images(folder: Path) -> list[Path]:
    """Files that are to be named and skipped."""
    whole = folder / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    content = whole.read_bytes()
    whole.unlink()
    contents = {
        "zero.jpg": b"",
        "cut.jpg": content[: len(content) // 2],
        "head.png": b"\x89PNG\r\n\x1a\n",
        "huge.png": bomb(100_000, 100_000),
        "text.jpg": b"hello",
        "vector.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touched) (w) file\n",
        "<img src=x onerror=alert(1)>.png": b"no image",
    }
    for name, text in contents.items():
        (folder / name).write_bytes(text)
    os.mkfifo(folder / "pipe.png")
    return [*(folder / name for name in contents), folder / "pipe.png"]
