"""The page that people read: one file with everything in it, that asks the network for nothing."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lightning_xai.files import read_regular, write_whole
from lightning_xai.images import UNREADABLE
from lightning_xai.report import tables
from lightning_xai.report.curves import sections
from lightning_xai.report.extremes import extremes, inside
from lightning_xai.report.followed import viewers
from lightning_xai.report.integrity import checks
from lightning_xai.report.pictures import FIGURE_BYTES, FIGURE_PIXELS, Pictures, opened
from lightning_xai.report.results import Picture, Results
from lightning_xai.report.run_folder import Log, RunFolder, read_run

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path, other: Path | None = None) -> Path:
    """Write a run's ``report.html``, or ``comparison.html`` with another run beside it.

    The page holds settings, tables, curves, the followed images, the worst and best ones, verdicts and figures, as far
    as the run has them, and says what is missing. It opens from disk, and is made anew from what is in the folder.

    Args:
        folder: The run's folder; the page is written there.
        other: The folder of a run to compare with.

    Returns:
        The file.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If a folder holds nothing of a run.

    Example:
        >>> import tempfile
        >>> from lightning_xai.report import Results
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Results("Trial", "Nothing was done.").save(Path(folder))
        ...     page = write_report(Path(folder)).read_text()
        >>> "<h1>Trial</h1>" in page
        True
    """
    folders = [folder] if other is None else [folder, other]
    runs = dict(zip(_names(folders), map(read_run, folders), strict=True))
    page = render("report.html", **_content(runs))
    path = folder / ("report.html" if other is None else "comparison.html")
    write_whole(path, page)
    return path


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names of folders, as long as they tell them apart."""
    names = [path.resolve().name for path in folders]
    return names if len(set(names)) == len(names) else [str(path) for path in folders]


@dataclass(frozen=True)
class Figure:
    """A figure with its caption; ``note`` says why it cannot be shown."""

    caption: str
    uri: str = ""
    size: tuple[int, int] = (0, 0)
    note: str = ""


def render(template: str, **content: Any) -> str:
    """A page of one of the templates, with everything that comes from others escaped."""
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = b64encode(sha256(script.encode()).digest()).decode()  # no other script runs in the page
    return environment.get_template(template).render(style=style, script=script, digest=digest, **content)


def _content(runs: dict[str, RunFolder]) -> dict[str, Any]:
    several = len(runs) > 1
    logs = [(_named(run if several else "", log.model), log) for run, one in runs.items() for log in one.logs]
    found = [(_named(name if several else "", ""), one) for name, one in runs.items()]
    finished = {name: one.results for name, one in runs.items() if one.results}
    pictures = Pictures()
    images = [
        (_named(name if several else "", image.model), runs[name].path, image)
        for name, one in finished.items()
        for image in one.images
    ]
    directions = {metric: higher for one in finished.values() for metric, higher in one.higher_is_better.items()}
    return {
        "title": " and ".join(runs) if several else found[0][1].title,
        "runs": runs,
        "tables": _tables(finished, logs),
        "checks": checks(logs),
        "viewers": viewers(logs, pictures),
        "extremes": extremes(images, directions, pictures),
        "curves": sections(logs),
        "figures": [_figure(one.path, picture, name * several) for name, one in runs.items() for picture in _of(one)],
        "settings": tables.settings({name: one.settings for name, one in runs.items()}),
        "pictures": pictures.uris,
    }


def _tables(finished: dict[str, Results], logs: list[tuple[str, Log]]) -> list[tables.PageTable]:
    if not finished:
        return tables.last_values(logs)
    controls = {name for _, log in logs for name in log.controls()}
    found = tables.side_by_side({name: one.tables for name, one in finished.items()})
    return [tables.with_controls_apart(one, controls) for one in found]


def _named(run: str, model: str) -> str:
    return ", ".join(filter(None, (run, model)))


def _of(run: RunFolder) -> Sequence[Picture]:
    return run.results.pictures if run.results else ()


def _figure(folder: Path, picture: Picture, run: str) -> Figure:
    caption = ": ".join(filter(None, (run, picture.caption)))
    try:
        shown = opened(read_regular(inside(folder, picture.file), FIGURE_BYTES), FIGURE_PIXELS)
        pictures = Pictures()
        pictures.add_figure(shown)
        return Figure(caption, pictures.uris[0], shown.size)
    except FileNotFoundError:
        return Figure(caption, note=f"The picture {picture.file} is missing in the run's folder.")
    except UNREADABLE as error:
        return Figure(caption, note=f"The picture {picture.file} cannot be shown: {error}")
