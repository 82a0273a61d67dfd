"""A panel of pictures as a folder: small picture files, and their facts as JSON, for programs that show them later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_xai.files import read_json, write_whole
from lightning_xai.visualization import Panel, as_uint8

FACTS = "panel.json"
"""Written last: a folder without it is one whose writing was interrupted."""
_LARGEST = 224
"""Pixels of the longer side of a stored picture."""
_EXACT = 64
"""Up to this side pictures are stored without loss, which blurs the colours of single pixels."""
_BYTES = 1_000_000


def panel_files(panel: Panel) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a stored panel's files: ``<column>_<row>.webp``, then the facts.

    Example:
        >>> import torch
        >>> [name for name, _ in panel_files(Panel(torch.rand(2, 3, 8, 8)))]
        ['0_0.webp', '0_1.webp', 'panel.json']
    """
    columns = {"image": panel.images, **panel.overlays}
    for i, pictures in enumerate(columns.values()):
        for j, picture in enumerate(as_uint8(pictures)):
            yield f"{i}_{j}.webp", _encoded(picture)
    told = {"columns": list(columns), "captions": panel.captions, "facts": panel.facts}
    yield FACTS, json.dumps(told, default=str).encode()


def save_panel(panel: Panel, folder: Path) -> None:
    """Store a panel in a folder of its own; an earlier one there is replaced file by file.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp()) / "panel"
        >>> save_panel(Panel(torch.rand(1, 3, 8, 8), facts={"label": ["cat"]}), folder)
        >>> read_panel(folder).captions
        ['label cat']
    """
    for name, content in panel_files(panel):
        write_whole(folder / name, content)


@dataclass(frozen=True)
class StoredPanel:
    """A panel that was stored.

    Attributes:
        folder: Its folder.
        columns: ``image`` and the names of attributions.
        captions: What is known of each image.
        facts: The same, lists of a value for each image by name.
    """

    folder: Path
    columns: list[str]
    captions: list[str]
    facts: dict[str, list[Any]] = field(default_factory=dict)

    def tile(self, column: str, row: int) -> Path | None:
        """The file of a picture; None where the panel has none."""
        known = column in self.columns and row < len(self.captions)
        return self.folder / f"{self.columns.index(column)}_{row}.webp" if known else None


def read_panel(folder: Path) -> StoredPanel:
    """Read what a stored panel holds; its pictures are not opened.

    Raises:
        OSError: If there are no facts: it is no stored panel.
        ValueError: If they are damaged.
    """
    told = read_json(folder / FACTS, _BYTES)
    columns, captions = (told.get(name) if isinstance(told, dict) else None for name in ("columns", "captions"))
    for found in (columns, captions):
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{FACTS} expected lists of texts `columns` and `captions`, got something else.")
    return StoredPanel(folder, list(columns), list(captions), told.get("facts", {}))  # type: ignore[arg-type]  # just checked


def _encoded(picture: np.ndarray) -> bytes:
    image, buffer = Image.fromarray(picture), BytesIO()
    exact = max(image.size) <= _EXACT
    image.thumbnail((_LARGEST, _LARGEST))
    image.save(buffer, format="webp", lossless=exact, quality=50 if exact else 80, method=2)
    return buffer.getvalue()
