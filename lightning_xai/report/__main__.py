"""``python -m lightning_xai.report RUN [RUN2]``: the page of a run, or of two runs side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_xai.report.page import write_report


def main(argv: Sequence[str] | None = None) -> Path:
    """Read the command line, write the page; returns its file."""
    parser = argparse.ArgumentParser("python -m lightning_xai.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run; the page is written there")
    parser.add_argument("other", type=Path, metavar="RUN2", nargs="?", help="folder of a run to compare it with")
    args = parser.parse_args(argv)
    try:
        path = write_report(args.run, args.other)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(path)
    return path


if __name__ == "__main__":
    main()
