"""Numbers in texts stand in files that commands wrote: a link to ``results/*.json`` covers the rest of its section.

In the texts on papers links cover the whole text: every measured number is in a linked file, or in a code span (a
setting, or a figure of the paper).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "recipes" / "results"
PAPERS = sorted((ROOT / "recipes" / "papers").rglob("README.md"))
TEXTS = [ROOT / "README.md", *PAPERS]
VERDICTS = {"reproduced", "partly", "not reproduced", "misprint", "not tested"}
LINK = re.compile(r"\]\(([^)#]+)\)")
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
GROUP = re.compile(rf"(?<![\w.])({NUMBER}(?: \[{NUMBER}, {NUMBER}\]| ±{NUMBER})?)(?![\w]|\.\d)")
EXEMPT = re.compile(
    r"`[^`]*`|\]\([^)]*\)|\b(?:[Ss]ections?|[Ff]igures?|[Tt]ables?|[Ee]q\.|torch|Python|version|arXiv) [\d., toand-]+"
)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Heads and what stands below them, code blocks left out."""
    parts = re.split(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    yield from zip(["", *parts[1::2]], parts[::2], strict=True)


def measured(text: str) -> list[list[str]]:
    """The numbers of a text that only a measurement gives, those of one interval together."""
    text = EXEMPT.sub(lambda found: " " * len(found.group()), text)
    found = []
    for match in GROUP.finditer(text):
        numbers = re.findall(NUMBER, match.group(1))
        after = text[match.end() : match.end() + 7]
        if len(numbers) > 1 or re.search(r"[.e]", numbers[0]) or re.match(r" (?:%|points)", after):
            found.append(numbers)
    return found


def holds(row: list[float], text: str) -> bool:
    """Whether a row has a number that is rounded to this text, or to it in percent."""
    mantissa, _, power = text.partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    return any(abs(scale * value - float(text)) <= 0.5000001 * unit for value in row for scale in (1, 100))


def values(thing: Any) -> list[float]:
    """All numbers in a thing that JSON takes, those in its texts too."""
    if isinstance(thing, dict | list):
        return [value for one in (thing.values() if isinstance(thing, dict) else thing) for value in values(one)]
    if isinstance(thing, str):
        return [float(one) for one in re.findall(rf"(?<![\w.]){NUMBER}", thing)]
    return [float(thing)] if isinstance(thing, int | float) else []


def rows_of(file: Path) -> list[list[float]]:
    """The numbers of each row of a file of results."""
    return [values(row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]


def unfounded(text: str, base: Path, *, strict: bool) -> list[list[str]]:
    """Measured numbers that are in no row of the files linked in their section; where strict, in the whole text."""
    wrong = []
    for _, body in sections(text):
        first = re.search(r"\]\([^)]*results/[^)]*\.json\)", body)
        files = [base / one for one in LINK.findall(text if strict else body) if one.endswith(".json")]
        covered = body if strict else body[first.start() :] if first else ""
        rows = [row for file in files for row in rows_of(file)]
        groups = measured(covered)
        wrong += [group for group in groups if not any(all(holds(row, one) for one in group) for row in rows)]
    return wrong


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_numbers_are_those_of_the_files(path):
    """Every group of numbers in one row of a linked file; in the texts on papers without exception."""
    assert not unfounded(path.read_text(encoding="utf-8"), path.parent, strict=path in PAPERS)


def test_wrong_numbers_are_seen(tmp_path):
    """In intervals, percents and powers; settings and the paper's figures are let through."""
    rows = [{"table": "T", "cells": ["a", "0.93 [0.88, 0.97]"]}, {"share": 0.634, "error": 2.52e-17}]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "one.json").write_text(json.dumps({"rows": rows}))
    head = "# A\n[file](results/one.json), eq. 1.2, `1.5`, "
    right = "0.93 [0.88, 0.97], 63.4 %, 63 %, 2.5e-17"
    assert not unfounded(head + right, tmp_path, strict=True)
    for wrong in ("0.92", "0.93 [0.88, 0.98]", "0.634 [0.88, 0.97]", "64 %", "2.6e-17", "0.1 points"):
        assert len(unfounded(head + wrong, tmp_path, strict=False)) == 1, wrong
    assert unfounded("# A\n7.7 %", tmp_path, strict=True)
    assert not unfounded("# A\n7.7 %", tmp_path, strict=False)


@pytest.mark.parametrize("path", PAPERS[1:], ids=lambda path: path.parent.name)
def test_every_claim_has_a_verdict(path):
    """One of five words, in the second of three columns."""
    claims = dict(sections(path.read_text(encoding="utf-8")))["Claims"]
    rows = [line.strip("| ").split(" | ") for line in claims.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 5
    for row in rows:
        assert row[1].rstrip(" |") in VERDICTS, row


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.parent.name)
def test_commands_and_links_exist(path):
    """Scripts with their options, tests with names that ``-k`` finds, and files."""
    text = path.read_text(encoding="utf-8")
    sources = "\n".join(one.read_text(encoding="utf-8") for one in (ROOT / "recipes").rglob("*.py"))
    for link in LINK.findall(text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for script, options in re.findall(r"python (recipes/\w+\.py)([^`]*)`", text):
        assert (ROOT / script).exists(), script
        for option in re.findall(r"--([a-z][a-z-]*)", options):
            assert re.search(rf'"--{option}"|\b{option.replace("-", "_")}:', sources), option
    for test, name in re.findall(r"`pytest (tests/[\w/]+\.py)(?: -k (\w+))?`", text):
        assert re.search(rf"def test_\w*{name}", (ROOT / test).read_text(encoding="utf-8")), (test, name)


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda file: file.stem)
def test_results_say_where_they_come_from(file):
    """The command, the commit and the machine; no path of a machine."""
    text = file.read_text(encoding="utf-8")
    found = json.loads(text)
    assert all(found.get(key) or found.get("versions", {}).get(key) for key in ("command", "commit", "machine"))
    assert not re.search(r"/(?:work|tmp|home|root|opt)/", text)
