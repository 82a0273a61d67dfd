"""Tables as a page shows them: of one run, or of two beside one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import number_named
from lightning_xai.report.numbers import number_of_key
from lightning_xai.report.results import Table
from lightning_xai.report.run_folder import Log

_STAGES = {"train": "training", "val": "validation", "test": "test"}

Row = tuple[str, int]
"""Name of a row, and how often the name came before."""


@dataclass(frozen=True)
class PageCell:
    """What is printed.

    Attributes:
        text: The value.
        interval: Its interval.
        gap: Why there is no value.
    """

    text: str
    interval: str = ""
    gap: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table; the first cell of each row is its head.

    Attributes:
        title: What is measured.
        caption: What a reader must know.
        columns: Heads.
        rows: Cells.
        controls: Rows of controls, which stand apart.
        meanings: What numbers say, by their titles.
    """

    title: str
    caption: str
    columns: list[str]
    rows: list[list[PageCell]]
    controls: list[list[PageCell]] = field(default_factory=list)
    meanings: dict[str, str] = field(default_factory=dict)


def side_by_side(runs: Mapping[str, Sequence[Table]]) -> list[PageTable]:
    """Tables of one run as they are; of several runs those of one title as one, with gaps where one run has no value.

    Example:
        >>> table = Table("Average drop, %", ["", "plain"], [["gradcam", 25.0]])
        >>> other = Table("Average drop, %", ["", "plain"], [["lrp", 31.0]])
        >>> for row in side_by_side({"a": [table], "b": [other]})[0].rows:
        ...     print([cell.text or cell.gap for cell in row])
        ['gradcam', '25.0', 'not in b']
        ['lrp', 'not in a', '31.0']
    """
    if len(runs) == 1:
        return [_alone(table) for tables in runs.values() for table in tables]
    titles = dict.fromkeys(table.title for tables in runs.values() for table in tables)
    by_title = {run: {table.title: table for table in tables} for run, tables in runs.items()}
    return [_together(title, {run: tables.get(title) for run, tables in by_title.items()}) for title in titles]


def _alone(table: Table) -> PageTable:
    rows = [[cell_of(table, row, column) for column in range(len(table.columns))] for row in range(len(table.rows))]
    return PageTable(table.title, table.caption, list(table.columns), rows)


def cell_of(table: Table, row: int, column: int) -> PageCell:
    """A cell with its interval apart."""
    whole = table.text(row, column)
    text, _, interval = whole.partition(" [")
    return PageCell(text, f"[{interval}") if isinstance(table.rows[row][column], dict) else PageCell(whole)


def _together(title: str, tables: Mapping[str, Table | None]) -> PageTable:
    there = {run: table for run, table in tables.items() if table is not None}
    cells = {run: _cells(table) for run, table in there.items()}
    rows = dict.fromkeys(row for by_row in cells.values() for row in by_row)
    heads = dict.fromkeys(head for table in there.values() for head in list(table.columns)[1:])
    places = [(run, head) for head in heads for run in tables]
    captions = dict.fromkeys(f"{run}: {table.caption}" for run, table in there.items() if table.caption)
    first = next(iter(there.values())).columns[0]
    return PageTable(
        title,
        " ".join(captions),
        [first, *(", ".join(filter(None, (head, run))) for run, head in places)],
        [
            [PageCell(row[0]), *(cells.get(run, {}).get(row, {}).get(head, _gap(run)) for run, head in places)]
            for row in rows
        ],
    )


def _gap(run: str) -> PageCell:
    return PageCell("", gap=f"not in {run}")


def _cells(table: Table) -> dict[Row, dict[str, PageCell]]:
    seen: Counter[str] = Counter()
    found = {}
    for i in range(len(table.rows)):
        name = table.text(i, 0)
        heads = enumerate(list(table.columns)[1:], start=1)
        found[name, seen[name]] = {head: cell_of(table, i, column) for column, head in heads}
        seen[name] += 1
    return found


def settings(runs: Mapping[str, Mapping[str, Any]]) -> PageTable:
    """Options of the runs; those that differ come first."""
    names = dict.fromkeys(name for one in runs.values() for name in one)
    rows = {name: [_setting(run, one, name) for run, one in runs.items()] for name in names}
    differing = {name: row for name, row in rows.items() if len(set(row)) > 1}
    same = {name: row for name, row in rows.items() if name not in differing}
    caption = f"{len(differing)} differ and come first." if len(runs) > 1 else ""
    columns = ["Option", *(runs if len(runs) > 1 else ["Value"])]
    return PageTable(
        "Options of the command", caption, columns, [[PageCell(name), *row] for name, row in (differing | same).items()]
    )


def _setting(run: str, options: Mapping[str, Any], name: str) -> PageCell:
    if name not in options:
        return _gap(run)
    value = options[name]
    return PageCell(", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value))


def last_values(logs: Iterable[tuple[str, Log]]) -> list[PageTable]:
    """What there is of a run without results: the last values, of explanations as methods by metrics.

    For each network a table of its methods and controls in each stage, and one of all other values.
    """
    return [table for name, log in logs for table in (*_methods_by_metrics(name, log), *_others(name, log))]


def _methods_by_metrics(model: str, log: Log) -> Iterator[PageTable]:
    checks = {(key.stage, key.name) for key, _ in log.own_values() if key.metric == "flagged"}
    groups: dict[tuple[str, int], dict[tuple[str, str], tuple[int, float]]] = {}
    for key, values in log.own_values():
        if key.stage != "train" and (key.stage, key.name) not in checks:
            cells = groups.setdefault((key.stage, -1 if key.dataloader_idx is None else key.dataloader_idx), {})
            cells[key.name, str(key.metric)] = max(values.items())
    for (stage, index), cells in sorted(groups.items()):
        names, metrics = ([*dict.fromkeys(sorted(one[i] for one in cells))] for i in (0, 1))
        numbers = {metric: number_named(metric) for metric in metrics}
        rows = {name: [_value(cells.get((name, one))) for one in metrics] for name in names}
        parts = [_STAGES[stage], f"dataloader {index}" * (index >= 0), model]
        yield PageTable(
            f"Explanations, {', '.join(filter(None, parts))}",
            f"Last values, up to step {max(step for step, _ in cells.values()):,}.",
            ["Method", *(numbers[one].label for one in metrics)],
            [[PageCell(name), *rows[name]] for name in names if name not in log.controls()],
            [[PageCell(name), *rows[name]] for name in names if name in log.controls()],
            {numbers[one].title: numbers[one].meaning for one in metrics if numbers[one].meaning},
        )


def _others(model: str, log: Log) -> Iterator[PageTable]:
    keys = [key for key in sorted(log.values) if (own := LogKey.parse(key)) is None or own.stage == "train"]
    rows = [[PageCell(_words(key)), _value(max(log.values[key].items()))] for key in keys]
    if rows:
        yield PageTable(f"Other values{f', {model}' if model else ''}", "Last values.", ["", "Value"], rows)


def _words(key: str) -> str:
    stage, _, rest = key.partition("/")
    return f"{number_of_key(key).label} ({_STAGES[stage]})" if rest and stage in _STAGES else key


def _value(found: tuple[int, float] | None) -> PageCell:
    return PageCell("", gap="-") if found is None else PageCell(f"{found[1]:.4g}")


def with_controls_apart(table: PageTable, controls: Collection[str]) -> PageTable:
    """A table whose rows of controls stand below those of methods."""
    apart = [row for row in table.rows if row[0].text in controls]
    if not apart or len(apart) == len(table.rows):
        return table
    return replace(table, rows=[row for row in table.rows if row not in apart], controls=apart)
