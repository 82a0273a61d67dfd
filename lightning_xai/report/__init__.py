"""What a run found, as a file that programs read and a page that people read."""

from __future__ import annotations

from .page import write_report
from .results import Example, Picture, Results, Table

__all__ = ["Example", "Picture", "Results", "Table", "write_report"]
