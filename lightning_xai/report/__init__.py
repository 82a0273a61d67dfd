"""What a run found, as a file that programs read and a page that people read."""

from __future__ import annotations

from .results import Picture, Results, Table

__all__ = ["Picture", "Results", "Table"]
