"""The table of what is found of architectures: counts, reasons, and a row for each model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from typing import Any

Outcome = dict[str, Any]


def word_for(outcome: Outcome) -> str | None:
    """An outcome in a word; what works and says how far it is from right, warned."""
    return "warned" if outcome.get("said") and outcome["outcome"] == "works" else outcome.get("outcome")


def cell(outcome: Outcome) -> str:
    """The number, or what happened."""
    word = word_for(outcome)
    shown = {"works": outcome.get("number"), "warned": f"{outcome.get('number')} (warned)"}
    return str(shown.get(word or "", f"**{word}**"))


def table(found: dict[str, dict[str, Any]], names: Collection[str], checks: Collection[str]) -> str:
    """Counts, the reasons of what was refused or wrong, and a row for each model.

    Args:
        found: What was found of models, by name.
        names: Of the models, in the order of the rows.
        checks: Of the checks, in the order of the columns.
    """
    rows = [found[name] for name in names if name in found]
    lines = [f"# Every family of timm, torchvision and transformers ({len(rows)} of {len(names)} models)", ""]
    lines += [
        "Written by `python recipes/coverage.py --table`: one small model of each family, random weights, small "
        "images. What the columns are, and when a check works, the docstring of the recipe says.",
        "",
    ]
    head = [" | ".join(checks) + " |", "|---" * (len(checks) + 1) + "|"]
    lines += [f"| models | {head[0]}", head[1]]
    for word in ("works", "warned", "unclear", "refused", "wrong", "time"):
        counts = [sum(word_for(row["checks"].get(one, {})) == word for row in rows) for one in checks]
        lines.append(f"| {word} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "## What was refused or wrong, and why", "", *reasons(rows), "", "## Model by model", ""]
    lines += [f"| model | {head[0]}", head[1]]
    for row in rows:
        cells = [cell(row["checks"][one]) if one in row["checks"] else "-" for one in checks]
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each reason, whatever the function and the module it was said of, with the checks and the models."""
    said: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        for check, told in row["checks"].items():
            if told["outcome"] in ("refused", "wrong"):
                functions, reason = _without_names(told.get("reason", f"the number is {told.get('number')}"))
                for kind, one in {"checks": check, "functions": functions, "models": row["model"]}.items():
                    said[reason][kind].add(one)
    lines = []
    for reason, found in sorted(said.items(), key=lambda pair: -len(pair[1]["models"])):
        checks, functions, models = (
            ", ".join(sorted(found[kind] - {""})) for kind in ("checks", "functions", "models")
        )
        lines.append(f"- **{checks}** ({len(found['models'])}): {functions}{functions and ' '}{reason} *{models}*")
    return lines


def _without_names(reason: str) -> tuple[str, str]:
    """The function that a reason begins with, and the rest without the names of modules and what came of shapes."""
    reason = re.sub(r"^\w+Error: | '[^']*'|Tokens\('[^']*'", lambda one: "Tokens(..." * one[0].startswith("T"), reason)
    reason = re.sub(r", got (\([\d, ]+\)|\d+ of \d+ \(.*?\))", "", reason)
    parts = re.fullmatch(r"(`\w+`) in(?: \(\w+\)| the model) (.*)", reason, re.DOTALL)
    return (parts[1], parts[2]) if parts else ("", reason)
