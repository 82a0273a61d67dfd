"""What an offline W&B run has recorded; wandb ships no public reader.

A ``.wandb`` file is a 7-byte header and a LevelDB log: blocks of 32768 bytes, in them chunks of a 7-byte head
(checksum, length, type) and data. Types 1 to 4 say whether a chunk is a whole record or its first, middle or last part.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from wandb.proto import wandb_internal_pb2  # private, but what `wandb sync` reads these files by

_HEADER, _HEAD, _BLOCK = 7, 7, 32768
_WHOLE, _LAST = 1, 4


def records(folder: Path) -> Iterator[Any]:
    """All records of the one run that lies under a folder, in their order; of a run that goes on, those written."""
    files = list(folder.rglob("*.wandb"))
    if len(files) != 1:
        raise ValueError(f"`folder` expected to hold one offline run (a file *.wandb), got {len(files)} in {folder}.")
    data, position, parts = files[0].read_bytes(), _HEADER, b""
    while len(data) - position >= _HEAD:
        if _BLOCK - position % _BLOCK < _HEAD:  # too small a rest for a head is left empty
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + _HEAD : position + _HEAD + length]
        position += _HEAD + length
        if kind in (_WHOLE, _LAST):
            try:
                yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]
            except DecodeError:
                return  # the end of a file that is still written, or was cut off
            parts = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of the run: one dict for each call of ``log``; parts of media are named ``<key>.<part>``."""
    rows = [record.history.item for record in records(folder) if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
