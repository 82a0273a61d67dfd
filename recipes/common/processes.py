"""Processes of their own, for what is to be measured or stopped alone."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

LIBRARIES = ("lightning_xai", "lightning_xai.integrity", "lightning_xai.regularization")


def fresh_processes() -> ForkServerContext:
    """Starts processes that share nothing with this one; the libraries are imported once for all of them."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([*LIBRARIES, "timm", "torchvision", "transformers"])
    return processes
