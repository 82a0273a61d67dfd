"""A page to look through many explained images, which stay files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from lightning_xai.files import write_whole
from lightning_xai.panels import StoredPanel
from lightning_xai.report.page import render
from lightning_xai.report.results import Cell, Table


def write_album(
    folder: Path,
    title: str,
    panels: Sequence[StoredPanel],
    notes: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Write ``index.html``: all images under all methods, by predicted class; they are loaded as they come into sight.

    Args:
        folder: Where it is written; the panels' folders are in it.
        title: Its heading.
        panels: Stored panels of one image each, with ``prediction`` and numbers among their facts.
        notes: What is missing, in sentences.
        settings: What the images were explained with, by name.

    Returns:
        The file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     page = write_album(Path(name), "No <images>", []).read_text()
        >>> "<h1>No &lt;images&gt;</h1>" in page
        True
    """
    groups: dict[str, list[StoredPanel]] = {}
    for panel in panels:
        groups.setdefault(str(panel.facts["prediction"][0]), []).append(panel)
    methods = dict.fromkeys(column for panel in panels for column in panel.columns[1:])
    rows: list[list[Cell]] = [
        [name, *(fmean(one.facts[f"{name} {what}"][0] for one in panels) for what in ("drop", "gain"))]
        for name in methods
    ]
    caption = f"Over {len(panels)} images, in percent, of the predicted class."
    table = Table("Means", ["method", "drop, lower is better", "gain, higher is better"], rows, caption)
    told = {"notes": notes, "settings": settings or {}}
    page = render("album.html", title=title, groups=sorted(groups.items()), table=table, folder=folder, **told)
    write_whole(folder / "index.html", page)
    return folder / "index.html"
