"""Small stand-ins for the files that the recipes read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TENCH, HEN = "n01440764", "n01514859"
"""Two of ImageNet's WordNet ids, of classes 0 and 8."""


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> None:
    """So many images in each class folder; the grey value is the number of the image in its folder."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((*size, 3), i, np.uint8)).save(root / folder / f"{i}.JPEG")


def write_shard(
    path: Path, labels: Iterable[int], image: bytes | None = None, names: Sequence[str] = ("jpg", "cls")
) -> None:
    """One sample for each label; its image is grey, as bright as the label."""
    with tarfile.open(path, "w") as shard:
        for i, label in enumerate(labels):
            stored = io.BytesIO()
            Image.new("RGB", (8, 8), (label,) * 3).save(stored, "JPEG")
            contents = (stored.getvalue() if image is None else image, str(label).encode())
            for name, content in zip(names, contents, strict=True):
                member = tarfile.TarInfo(f"{path.stem}_{i}.{name}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
