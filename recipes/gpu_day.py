"""All that wants a GPU, the most important first, within a time limit: tests, costs, converged trainings.

    python recipes/gpu_day.py --data DIR                            # 11 minutes; DIR: CIFAR-10, see cifar.py
    python recipes/gpu_day.py --data DIR --seconds 570 --pack FILE  # all of it in one archive, renewed after each part
    python recipes/gpu_day.py --device cpu --small                  # to try it, without CIFAR-10

Hardware: one GPU with 80 GB. It may be stopped at any point: each part writes its files as soon as it has them, what a
part prints is in ``LOGS/<part>.log``, and trainings that are finished are not done again. Last come the goals beside
what was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.options import option, parsed

HERE = Path(__file__).parent
GOALS = [  # file, what its row says, number, at most
    ("gpu_training.json", {"network": "ResNet-50, batch 128, 224 px", "term": "exact"}, "median", 2.35),
    ("gpu_training.json", {"network": "ResNet-50, batch 128, 224 px", "term": "exact"}, "memory", 2.0),
    ("gpu_validation.json", {"validation": "SaliencyMaps"}, "ratio_of_2000", 1.05),
    ("gpu_validation.json", {"validation": "Faithfulness of one CAM"}, "ratio_of_2000", 1.05),
]


@dataclass(frozen=True)
class Part:
    """A command and the seconds that it may take at most."""

    name: str
    most: int
    command: Sequence[str]


@dataclass(frozen=True)
class Settings:
    """The day."""

    data: Path | None = option(None, "folder with CIFAR-10; nothing: generated images")
    seconds: int = option(660, "of everything together")
    device: str = option("cuda", "where to compute")
    small: bool = option(False, "as little as shows that it runs")
    only: tuple[str, ...] = option((), "names of parts; default: all", nargs="+", metavar="PART")
    results: Path = option(HERE / "results" / "gpu", "folder of the numbers")
    logs: Path = option(Path("runs/gpu_day"), "folder of what the parts print")
    pack: Path | None = option(None, "an archive of results and logs")


def parts(args: Settings) -> list[Part]:
    """What is done, in this order."""
    small = ["--fast-dev-run"] if args.small else []
    bench = [str(HERE / "benchmark.py"), "--device", args.device, "--rounds", "3", *small, "--out"]
    maps = ["--network", "resnet50", "--batch-size", "64"]
    test = ["-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--override-ini=filterwarnings=", "-m", "gpu"]
    told = "import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())"
    card = "; print(torch.cuda.get_device_properties(0))" if args.device == "cuda" else ""
    data = [] if args.data is None else ["--data", str(args.data)]
    cifar = [str(HERE / "cifar_interp.py"), *data, "--device", args.device, "--seeds", "2" if small else "20", *small]

    def results(name: str) -> str:
        return str(args.results / f"gpu_{name}.json")

    return [
        Part("environment", 60, ["-c", told + card]),
        Part("tests", 150, [*test, str(HERE.parent / "tests" / "gpu")]),
        Part("training", 110, [*bench, results("training"), "--training"]),
        Part("validation", 60, [*bench, results("validation"), "--validation", *maps, "--bfloat16"]),
        Part("maps_fp32", 60, [*bench, results("maps_fp32"), *maps]),
        Part("maps_bf16", 60, [*bench, results("maps_bf16"), *maps, "--bfloat16"]),
        Part("cifar", args.seconds, [*cifar, "--results", str(args.results)]),
    ]


def run(part: Part, seconds: float, device: str, log: Path) -> str:
    """Run a part with everything that it starts; how it ended."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    changed = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    environment = os.environ | changed | {"LIGHTNING_XAI_GPU_TESTS": device}
    with log.open("w", encoding="utf-8") as output:
        # a group of its own, not a session: who ends this session ends it, too
        process = subprocess.Popen(
            [sys.executable, *part.command], env=environment, stdout=output, stderr=output, preexec_fn=os.setpgrp
        )
        try:
            return f"status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest tells what failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            return "out of time"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def goals(results: Path) -> Iterator[str]:
    """Each goal beside what was measured."""
    for file, wanted, number, most in GOALS:
        rows: list[dict[str, Any]] = (
            json.loads((results / file).read_text())["rows"] if (results / file).exists() else []
        )
        chosen = [row for row in rows if all(str(row[key]).startswith(value) for key, value in wanted.items())]
        found = ", ".join(f"{row[number]:.3f}" for row in chosen[:1] if number in row) or "not measured"
        yield f"{' '.join(wanted.values())}, {number}: {found}, at most {most}"
    for path in sorted(results.glob("gpu_maps_*.json")):
        rows = json.loads(path.read_text())["rows"]
        for row in rows:
            peers = [one for one in rows if one["method"] == row["method"] and one["library"] != "lightning_xai"]
            if row["library"] == "lightning_xai":
                best = min(peers, key=lambda one: one["median"], default=None)
                other = f"{best['library']} {best['median']:.2f}" if best else "no peer here"
                yield f"{path.stem} {row['method']}: {row['median']:.2f} forward passes, {other}"


def pack(args: Settings) -> None:
    """Renew the archive."""
    if args.pack is not None:
        fresh = args.pack.with_name(args.pack.name + ".part")
        with tarfile.open(fresh, "w:gz") as archive:
            for folder in (args.results, args.logs):
                archive.add(folder, arcname=folder.name)
        fresh.replace(args.pack)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts, until the time is over."""
    args = parsed(Settings, __doc__, arguments)
    end = time.monotonic() + args.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    for folder in (args.results, args.logs):
        folder.mkdir(parents=True, exist_ok=True)
    for part in parts(args):
        if args.only and part.name not in args.only:
            continue
        begun, left = time.monotonic(), end - time.monotonic() - 10  # for what comes after it
        if left < 5:
            print(f"{part.name}: no time left", flush=True)
            continue
        try:
            most = left if args.small else min(part.most, left)
            ended = run(part, most, args.device, args.logs / f"{part.name}.log")
            print(f"{part.name}: {ended}, {time.monotonic() - begun:.0f} s", flush=True)
        finally:
            (args.logs / "goals.txt").write_text("\n".join(goals(args.results)) + "\n")
            pack(args)
    print((args.logs / "goals.txt").read_text())


if __name__ == "__main__":
    main()
