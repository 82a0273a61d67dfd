"""Tables, figure and verdict of ``term_effect.py``: differences to plain training, paired by seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from common.tables import interval, pivot
from lightning_xai.report import Cell, Picture, Table

PRIMARY = {
    "Grad-CAM: energy on the object, %": ("truth", "Grad-CAM", "energy"),
    "input gradient: AUROC of the object's pixels, %": ("truth", "input gradient", "AUROC"),
    "Grad-CAM: AD of a Gaussian minus its own, points": ("advantage", "Grad-CAM", "AD at equal confidence"),
}
"""What the verdict is about, by title: chosen before the first run; higher is better."""
SECONDARY = {
    "accuracy, %": ("", "", "accuracy"),
    "alignment x 100": ("look", "", "alignment"),
    "roughness x 100": ("look", "", "roughness"),
}
EQUAL = " at equal confidence"
LEVEL = 0.95
POWER = 0.8


def finished(folder: Path, task: str) -> pd.DataFrame:
    """Every number of the finished seeds of a task, in long form."""
    files = sorted(folder.glob(f"{task}_*.json"))
    rows = [row for path in files for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    return pd.DataFrame([line for row in rows for line in _lines(row)])


def _lines(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers of one network, and the advantage of its maps over a Gaussian of the same images."""
    head = {key: row[key] for key in ("arm", "strength", "seed")}

    def line(group: str, name: str, measure: str, value: float) -> dict[str, Any]:
        return head | {"group": group, "map": name, "measure": measure, "value": value}

    yield line("", "", "accuracy", row["accuracy"])
    yield line("", "", "temperature", row["temperature"])
    for measure, value in row["look"].items():
        yield line("look", "", measure, 100 * value)
    for name, measures in row["maps"].items():
        for measure, value in measures.items():
            yield line("maps", name, measure, value)
        drop = f"AD{EQUAL}"
        yield line("advantage", name, drop, row["maps"]["gaussian"][drop] - measures[drop])
    for name, measures in row["truth"].items():
        for measure, value in measures.items():
            yield line("truth", name, measure, value)


def differences(values: pd.DataFrame) -> pd.DataFrame:
    """Each number of an arm minus that of plain training with the same seed."""
    keys = ["seed", "group", "map", "measure"]
    is_plain = values["arm"] == "plain"
    both = values[~is_plain].merge(values[is_plain][[*keys, "value"]], on=keys, suffixes=("", " plain"))
    return both.assign(value=both["value"] - both["value plain"]).drop(columns="value plain")


def chosen(values: pd.DataFrame, wanted: Mapping[str, tuple[str, str, str]]) -> pd.DataFrame:
    """The rows of some quantities, in their order, each with its title."""
    found = [
        values[(values["group"] == group) & (values["map"] == name) & (values["measure"] == measure)].assign(
            title=title
        )
        for title, (group, name, measure) in wanted.items()
    ]
    return pd.concat(found)


def visible(values: pd.DataFrame) -> dict[str, float]:
    """The smallest difference that the design would find in four runs of five, by title of what is primary.

    From the scatter of plain training over seeds, as if the two of a pair had nothing in common but their start.
    """
    found = {}
    for title, group in chosen(values[values["arm"] == "plain"], PRIMARY).groupby("title", sort=False)["value"]:
        n = len(group)
        wide = stats.t.ppf((1 + LEVEL) / 2, n - 1) + stats.t.ppf(POWER, n - 1) if n > 1 else float("nan")
        found[str(title)] = float(wide * 2**0.5 * group.std() / n**0.5)
    return found


def tables(values: pd.DataFrame) -> list[Table]:
    """Levels under plain training, the differences that count, and those of every map."""
    named = values.assign(arm=values["arm"] + [f", {s:g}" if s else "" for s in values["strength"]])
    named.loc[values["arm"] == "plain", "arm"] = "plain"
    n = values["seed"].nunique()
    note = f"Means with 95 % intervals over {n} seeds; "
    paired = note + "differences to plain training with the same batches; the number is the arm's strength."
    change = differences(named)
    main = pivot(chosen(change, PRIMARY | SECONDARY), "arm", "title", "Does it help?", caption=paired, digits=2)
    power: list[Cell] = ["smallest visible", *map(visible(values).get, main.columns[1:])]
    found = [Table(main.title, main.columns, [*main.rows, power], paired, 2)]
    plain = named[named["arm"] == "plain"]
    for group, title in (("truth", "On the object"), ("maps", "Under masks")):
        levels = plain[plain["group"] == group]
        if len(levels):
            found.append(pivot(levels, "map", "measure", f"{title}, plain training, %", caption=note[:-2] + "."))
    for group, measure, title in (
        ("truth", "energy", "Energy on the object, points"),
        ("truth", "AUROC", "AUROC of the object's pixels, points"),
        ("maps", f"AD{EQUAL}", f"Average drop{EQUAL}, points; lower is better"),
        ("maps", "AD", "Average drop, points; lower is better"),
        ("maps", "insertion", "Insertion, area x 100; higher is better"),
        ("maps", "deletion", "Deletion, area x 100; lower is better"),
    ):
        rows = change[(change["group"] == group) & (change["measure"] == measure)]
        if len(rows):
            found.append(pivot(rows, "arm", "map", title, caption=paired))
    return found


def verdict(values: pd.DataFrame) -> str:
    """One sentence for each primary quantity: which arms are better, which worse, and what no arm exceeds."""
    sentences = []
    for title, rows in chosen(differences(values), PRIMARY).groupby("title", sort=False):
        spans = {str(arm): interval(group) for arm, group in rows.groupby("arm", sort=False)["value"]}
        helps = [f"{arm} {one['mean']:+.1f}" for arm, one in spans.items() if one["low"] > 0]
        harms = [f"{arm} {one['mean']:+.1f}" for arm, one in spans.items() if one["high"] < 0]
        largest = max(one["high"] for one in spans.values())
        sentences.append(
            f"{title}: better with {_listed(helps)}; worse with {_listed(harms)}; no arm's interval goes above "
            f"{largest:+.1f}."
        )
    return "\n".join(sentences)


def _listed(arms: list[str]) -> str:
    return "; ".join(arms) or "none"


def draw(values: pd.DataFrame, path: Path) -> Picture:
    """Every arm's difference with its interval, a panel for each quantity."""
    rows = chosen(differences(values), PRIMARY | SECONDARY)
    titles, arms = list(rows["title"].unique()), list(rows["arm"].unique())
    figure = Figure(figsize=(3.2 * len(titles) + 2, 0.32 * len(arms) + 1.6), layout="constrained")
    for axes, title in zip(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0], titles, strict=True):
        for at, arm in enumerate(arms):
            one = interval(rows[(rows["title"] == title) & (rows["arm"] == arm)]["value"])
            sure = one["low"] > 0 or one["high"] < 0
            color = "C0" if sure else "grey"
            axes.plot([one["low"], one["high"]], [at, at], color=color)
            axes.plot(one["mean"], at, "o", color=color, markersize=4)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(title.replace(": ", ":\n"), fontsize="small")
        axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    title = "Difference to plain training, paired by seed, with 95 % intervals over seeds; blue: not 0"
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    return Picture(path.name, title)
