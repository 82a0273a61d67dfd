"""What a run found, as a file that programs read and a page that people read."""

from __future__ import annotations

from lightning_xai.report.album import write_album
from lightning_xai.report.extremes import worst_and_best
from lightning_xai.report.page import write_report
from lightning_xai.report.results import Cell, Example, Picture, Results, Table

__all__ = ["Cell", "Example", "Picture", "Results", "Table", "worst_and_best", "write_album", "write_report"]
