"""Measurements that the documentation quotes: rows of numbers with the command, the commit and the machine."""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import timer

from lightning_xai.files import write_whole


def machine(device: torch.device | None = None) -> str:
    """What numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def seconds_of(call: Callable[[], Any]) -> float:
    """Time of one call, finished on the device."""
    start = timer()  # it waits for the device
    call()
    return timer() - start


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def origin(device: torch.device | None = None) -> dict[str, str | None]:
    """What numbers come from: the command that is running, the commit and the machine."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    script, *options = sys.argv
    said = [Path(one).name if Path(one).is_absolute() else one for one in options]  # no folder of this machine
    return {
        "command": shlex.join(["python", f"recipes/{Path(script).name}", *said]),
        "commit": found.stdout.strip() or None,
        "machine": machine(device),
    }


def save_measurement(path: Path, rows: Sequence[dict[str, Any]], device: torch.device | None = None) -> None:
    """Write rows in long form, one a line, below what they come from.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_measurement(Path(folder) / "one.json", [{"steps": 2.5}])
        ...     json.loads((Path(folder) / "one.json").read_text())["rows"]
        [{'steps': 2.5}]
    """
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f'{json.dumps(origin(device), indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n')
