"""Pictures as they are embedded in a page: small, and each only once."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image

from lightning_xai.visualization import PANEL_TEXT

Item = TypeVar("Item")

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
        return self._number(_webp(picture, quality=75, method=4))

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


def _webp(picture: Image.Image, **options: int) -> bytes:
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, format="webp", **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class PanelFile:
    """The pictures of a panel's file.

    Attributes:
        columns: ``image`` and names of attributions.
        captions: What is known of each image.
        tiles: By column, the picture of each image.
    """

    columns: list[str]
    captions: list[str]
    tiles: dict[str, list[Image.Image]]


def read_panel(path: Path) -> PanelFile:
    """Cut the pictures out of a panel's file.

    Args:
        path: A file of the CSV logger, or of `lightning_xai.visualization.Panel.save`.

    Raises:
        OSError: If there is no such file, or if it is no picture.
        ValueError: If it does not tell where its pictures are.

    Example:
        >>> import tempfile, torch
        >>> from lightning_xai.visualization import Panel
        >>> path = Path(tempfile.mkdtemp()) / "panel.png"
        >>> Panel(torch.rand(2, 3, 8, 8), facts={"label": ["cat", "dog"]}).save(path)
        >>> read_panel(path).captions
        ['label cat', 'label dog']
    """
    with Image.open(path) as file:
        text = getattr(file, "text", {}).get(PANEL_TEXT)
        if text is None:
            raise ValueError(f"{path.name} expected the file of a panel, got a picture without its description.")
        told = json.loads(text)
        tiles = {
            name: [file.crop(tuple(box)) for box in boxes]
            for name, boxes in zip(told["columns"], told["tiles"], strict=True)
        }
    return PanelFile(told["columns"], told["captions"], tiles)


def evenly(items: Sequence[Item], n: int) -> list[Item]:
    """At most n of the items, the first and the last among them, at even distances.

    Example:
        >>> evenly(range(100), 4)
        [0, 33, 66, 99]
    """
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, n - 1))] for i in range(n)]
