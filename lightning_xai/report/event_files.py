"""TensorBoard's event files, read without TensorBoard: of each event its step and its numbers.

A file is a row of records: length (8 bytes), its checksum (4), a message ``Event`` of Protocol Buffers, its checksum.
Of that message only the step and ``simple_value`` are wanted. TensorBoard's own reader takes a second for the checksum
of one picture where its fast one is not installed; here pictures are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_xai.files import open_regular

_LARGEST = 100_000
"""Bytes of an event with a number; larger ones hold pictures."""


def read_events(path: Path) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of each number; an end that was cut off ends the file.

    Raises:
        OSError: If there is no such file, or it is a link.
        ValueError: If it is no regular file, or damaged.
    """
    with open_regular(path) as file:
        for record in _records(file):
            event = dict(_fields(record))
            step, summary = event.get(2, 0), event.get(5, b"")
            for number, value in _fields(summary if isinstance(summary, bytes) else b""):
                told = dict(_fields(value)) if number == 1 and isinstance(value, bytes) else {}
                tag, simple = told.get(1), told.get(2)
                if isinstance(tag, bytes) and isinstance(simple, float) and isinstance(step, int):
                    yield step, tag.decode(errors="replace"), simple


def _records(file: BinaryIO) -> Iterator[bytes]:
    while len(head := file.read(12)) == 12:
        (length,) = struct.unpack_from("<Q", head)
        if length > 2**40:
            raise ValueError("a record with an impossible length")
        if length > _LARGEST:
            file.seek(length + 4, 1)
        elif len(record := file.read(length + 4)) == length + 4:
            yield record[:-4]


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field: integers, 4-byte floats and bytes; 8-byte numbers are passed over."""
    at = 0
    try:
        while at < len(message):
            key, at = _varint(message, at)
            kind, size = key & 7, 0
            if kind == 0:
                value, at = _varint(message, at)
                yield key >> 3, value
            elif kind == 2:
                size, at = _varint(message, at)
                yield key >> 3, message[at : at + size]
            elif kind == 5:
                size = 4
                yield key >> 3, struct.unpack_from("<f", message, at)[0]
            elif kind == 1:
                size = 8
            else:
                raise ValueError(f"a field of the unknown kind {kind}")
            at += size
    except (IndexError, struct.error) as error:
        raise ValueError("a message that ends too early") from error


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number that is too long")
