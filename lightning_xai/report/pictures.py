"""Pictures as they are embedded in a page: small, and each only once."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lightning_xai.files import read_regular
from lightning_xai.images import decoded

Item = TypeVar("Item")

_TILE_BYTES, _TILE_PIXELS = 4_000_000, 1_000_000
_SMALL = 8_000
"""Bytes up to which a stored picture is embedded as it is."""
FIGURE_BYTES, FIGURE_PIXELS = 64_000_000, 40_000_000

_LOSSLESS = 200_000
"""Bytes up to which a figure is embedded without loss: drawings are small then, photographs are not."""
_LARGEST = 2400
"""Pixels of the longer side of embedded figures."""


class Pictures:
    """Pictures of a page by number; equal ones have one number.

    Example:
        >>> pictures = Pictures()
        >>> [pictures.add(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue", "red")]
        [0, 1, 0]
        >>> pictures.uris[0][:28]
        'data:image/webp;base64,UklGR'
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def uris(self) -> list[str]:
        """What a page takes in place of an address, in the order of the numbers."""
        return list(self._numbers)

    def add(self, picture: Image.Image) -> int:
        """The number of a small picture, which is kept with little loss."""
        return self._number(_webp(picture, quality=75, method=2))

    def add_tile(self, path: Path) -> int:
        """The number of a stored panel's picture.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no picture.
        """
        content = read_regular(path, _TILE_BYTES)
        picture = opened(content, _TILE_PIXELS)
        if picture.format == "WEBP" and len(content) <= _SMALL:
            return self._number(content)
        picture.thumbnail((180, 180))
        return self.add(picture)

    def add_figure(self, picture: Image.Image) -> int:
        """The number of a figure, which may hold fine lines, letters and photographs."""
        paper = Image.new("RGBA", picture.size, "white")  # under what is transparent
        shown = Image.alpha_composite(paper, picture.convert("RGBA"))
        shown.thumbnail((_LARGEST, _LARGEST))
        exact = _webp(shown, lossless=True, method=2)
        return self._number(exact if len(exact) <= _LOSSLESS else _webp(shown, quality=85, method=4))

    def _number(self, encoded: bytes) -> int:
        uri = f"data:image/webp;base64,{b64encode(encoded).decode()}"
        return self._numbers.setdefault(uri, len(self._numbers))


def opened(content: bytes, pixels: int) -> Image.Image:
    """A PNG, JPEG or WebP file of at most so many pixels, decoded as by `lightning_xai.images.decoded`."""
    return decoded(BytesIO(content), pixels, ("PNG", "JPEG", "WEBP"))


def _webp(picture: Image.Image, **options: int) -> bytes:
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, format="webp", **options)
    return buffer.getvalue()


def evenly(items: Sequence[Item], n: int) -> list[Item]:
    """At most n of the items, the first and the last among them, at even distances.

    Example:
        >>> evenly(range(100), 4)
        [0, 33, 66, 99]
    """
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, n - 1))] for i in range(n)]
