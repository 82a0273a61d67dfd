"""Reads what an offline W&B run has recorded; wandb ships no public reader.

A ``.wandb`` file is a 7-byte header and a LevelDB log: blocks of 32768 bytes, in them chunks of a 7-byte head
(checksum, length, type) and data. Types 1 to 4 say whether a chunk is a whole record or its first, middle or last part.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

_HEADER, _HEAD, _BLOCK = 7, 7, 32768
_WHOLE, _LAST = 1, 4


def end_run() -> None:
    """Finish the run and stop W&B's service: only then is the file complete, finishing alone does not wait for it."""
    wandb.finish()
    wandb.teardown()


def records(folder: Path) -> Iterator[Any]:
    """All records of the one ended run that lies under a folder (WANDB_DIR), in their order."""
    (file,) = folder.rglob("*.wandb")
    data, position, parts = file.read_bytes(), _HEADER, b""
    while position < len(data):
        if _BLOCK - position % _BLOCK < _HEAD:  # too small a rest for a head is left empty
            position += _BLOCK - position % _BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + _HEAD : position + _HEAD + length]
        position += _HEAD + length
        if kind in (_WHOLE, _LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of the run: one dict for each call of ``log``."""
    rows = [record.history.item for record in records(folder) if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def metrics(folder: Path) -> dict[str, Any]:
    """The metric definitions of the run by name, the last one for each."""
    defined = [record.metric for record in records(folder) if record.HasField("metric")]
    return {metric.name or metric.glob_name: metric for metric in defined}
