"""Files that are written whole or not at all, and read with care, since others may have written them."""

from __future__ import annotations

import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_DEEPEST = 50
"""Levels of lists and objects in a JSON file; ours have seven."""


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file under another name and move it: a process that is killed leaves the earlier file or none.

    A link in its place is replaced, not followed.

    Args:
        path: The file; its folder is made.
        data: What it is to hold; text is written as UTF-8, and what UTF-8 cannot write as a question mark.

    Raises:
        OSError: If it cannot be written; what was there before is as it was.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_whole(folder / "a" / "file.txt", "text")
        >>> [path.name for path in folder.rglob("*.txt")]
        ['file.txt']
    """
    content = data.encode("utf-8", errors="replace") if isinstance(data, str) else data
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} expected to be a file, got a folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:  # "x": never into what another has put there
            file.write(content)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_regular(path: Path, limit: int) -> bytes:
    """What a file holds, if it is one: a link is not followed, and a pipe or device is not waited for.

    Raises:
        OSError: If there is no such file, or it is a link.
        ValueError: If it is no regular file, or a larger one.

    Example:
        >>> read_regular(Path(__file__), 10)
        Traceback (most recent call last):
        ...
        ValueError: files.py expected a file of at most 10 bytes, got ...
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(
                f"{path.name} expected a file of at most {limit:,} bytes, got {os.fstat(file.fileno()).st_size:,}."
            )
    return content


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, if it is one, as `read_regular` does.

    Raises:
        OSError: If there is no such file, or it is a link.
        ValueError: If it is no regular file.
    """
    options = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    number = os.open(path, os.O_RDONLY | sum(options))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(f"{path.name} expected a regular file, got a folder, pipe or device.")
    return open(number, "rb")


def read_json(path: Path, limit: int) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: If there is no such file, or it is a link.
        ValueError: If it is no regular file, larger, damaged, or nested deeper than 50 levels.
    """
    try:
        found = json.loads(read_regular(path, limit))
        level, deepest = [found], 0
        while level := [one for item in level for one in _inner(item)]:
            deepest += 1
            if deepest > _DEEPEST:
                raise RecursionError
    except RecursionError:
        raise ValueError(f"{path.name} expected JSON of at most {_DEEPEST} levels, got more.") from None
    return found


def _inner(item: Any) -> list[Any]:
    return [*item.values()] if isinstance(item, dict) else item if isinstance(item, list) else []
