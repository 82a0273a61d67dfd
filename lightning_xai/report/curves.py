"""Curves over the steps of training, drawn as SVG that takes its colours and letters from the page."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_xai.log_keys import LogKey
from lightning_xai.report.numbers import number_of_key
from lightning_xai.report.pictures import evenly
from lightning_xai.report.run_folder import Log

COLOURS = 8
"""Lines of the page's style sheet: ``--line-0`` and so on, the last one grey for controls; then they begin anew."""
DASHES = ("", "5 2", "1.5 2", "7 2 1.5 2", "10 4", "7 2 1.5 2 1.5 2")
"""The first for methods; as many others as there are controls by default."""
DRAWN_OF_CHECKS = ("/flagged", "/suspicion")
"""The other figures of a check move with training and accuse nobody; their last values are in the page's table."""
_POINTS = 400

Points = Mapping[int, float]


@dataclass(frozen=True)
class Line:
    """One line: what it is of, for whom, and how it is drawn."""

    name: str
    model: str
    points: Points
    colour: int
    dash: str

    @property
    def label(self) -> str:
        """Name and model, as far as there are several."""
        return ", ".join(filter(None, (self.name, self.model)))


@dataclass(frozen=True)
class Chart:
    """A drawing, and what it says in words."""

    title: str
    svg: str
    words: str


@dataclass(frozen=True)
class Section:
    """Charts that share their lines' colours.

    Attributes:
        title: Training, validation, an attribution's metrics, ...
        charts: The drawings.
        legend: Lines by their label.
        notes: What was not drawn.
    """

    title: str
    charts: list[Chart]
    legend: list[Line]
    notes: list[str]


def sections(logs: Sequence[tuple[str, Log]]) -> list[Section]:
    """All curves of one or several networks.

    Example:
        >>> log = Log("", values={"val/accuracy": {9: 0.5, 19: 0.75}})
        >>> [(one.title, [chart.words for chart in one.charts]) for one in sections([("", log)])]
        [('Validation', ['Accuracy; higher is better, over steps 9 to 19. Last values: 0.75.'])]
    """
    found: dict[str, dict[str, list[tuple[str, str, Points]]]] = {}
    for model, log in logs:
        checks = {key.removesuffix("flagged") for key in log.values if key.endswith("/flagged")}
        for key in sorted(log.values):
            section, chart, name = _place(key)
            if any(key.startswith(prefix) for prefix in checks):
                section = "Integrity"
                if not key.endswith(DRAWN_OF_CHECKS):
                    continue
            found.setdefault(section, {}).setdefault(chart, []).append((name, model, log.values[key]))
    order = ["Training", "Validation", "Explanations", "Integrity", "Other"]
    controls = {name for _, log in logs for name in log.controls()}
    return [_section(title, found[title], controls) for title in order if title in found]


def _place(key: str) -> tuple[str, str, str]:
    """Section, chart and line that a logged key belongs to; those of tests, single values, to no section shown."""
    stage, *rest = key.split("/")
    own = LogKey.parse(key)
    if stage == "test":
        return "Test", key, ""
    if own is None or own.metric is None:
        titles = {"train": "Training", "val": "Validation"}
        return (titles[stage], number_of_key(key).label, "") if stage in titles and rest else ("Other", key, "")
    if stage == "train":
        inner = "/".join(own.name.split("/")[1:])  # a term taken at an inner layer
        return "Training", number_of_key(key).label + f" at {inner}" * bool(inner), ""
    index = "" if own.dataloader_idx is None else f", dataloader {own.dataloader_idx}"
    return "Explanations", number_of_key(key).label + index, own.name


def _section(title: str, charts: Mapping[str, list[tuple[str, str, Points]]], controls: Collection[str]) -> Section:
    every = [line for lines in charts.values() for line in lines]
    names, models = ([*dict.fromkeys(line[i] for line in every)] for i in (0, 1))
    methods = [name for name in names if name not in controls]

    def styled(name: str, model: str, points: Points) -> Line:
        if name in controls:  # all in grey, behind the methods
            dash = DASHES[1 + sorted(controls).index(name) % (len(DASHES) - 1)]
            return Line(f"{name} (control)", model, points, COLOURS - 1, dash)
        colour = methods.index(name) if len(methods) > 1 else models.index(model)
        return Line(name, model, points, colour % (COLOURS - 1), DASHES[models.index(model) % len(DASHES)])

    charts = {chart: sorted(found, key=lambda one: one[0] in controls) for chart, found in charts.items()}
    lines = {chart: [styled(*one) for one in found] for chart, found in charts.items()}
    legend = {line.label: line for found in lines.values() for line in found if line.label}
    notes = [f"{chart}: {_constant(found):.4g} throughout." for chart, found in lines.items() if _is_constant(found)]
    if any(len(points) > _POINTS for _, _, points in every):
        notes.append(f"Of long curves {_POINTS} points are drawn, at even distances.")
    drawn = [_chart(f"{title}: {chart}", chart, found) for chart, found in lines.items() if not _is_constant(found)]
    return Section(title, drawn, list(legend.values()) if drawn else [], notes)


def _is_constant(lines: Sequence[Line]) -> bool:
    return len({value for line in lines for value in line.points.values()}) == 1


def _constant(lines: Sequence[Line]) -> float:
    return next(iter(lines[0].points.values()))


def _chart(key: str, title: str, lines: Sequence[Line]) -> Chart:
    steps = sorted({step for line in lines for step in line.points})
    last = "; ".join(f"{line.label} {line.points[max(line.points)]:.4g}".strip() for line in lines)
    words = f"{title}, over steps {steps[0]} to {steps[-1]}. Last values: {last}."
    return Chart(title, _svg(key, lines), words)


_RULE, _TEXT = "#fe01fe", "#fe02fe"


def _svg(key: str, lines: Iterable[Line]) -> str:
    """A drawing whose colours are the page's, so that it is readable in light, in dark and on paper."""
    own = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 8, "axes.linewidth": 0.6}
    with style.context(["default", own]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(3.6, 2.2), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            points = evenly(sorted(line.points.items()), _POINTS)
            dash = tuple(float(part) for part in line.dash.split())
            axes.plot(
                *zip(*points, strict=True),
                color=f"#fe00{line.colour:02d}",
                linewidth=1.3,
                linestyle=(0, dash) if dash else "-",
                marker="o" if len(points) <= 20 else "",
                markersize=2.5,
            )
        axes.grid(color=_RULE, linewidth=0.5)
        axes.spines[:].set_color(_RULE)
        axes.tick_params(color=_RULE, labelcolor=_TEXT)
        axes.set_xlabel("step", color=_TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue())


def _themed(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # styles would be the page's
    svg = re.sub(r"#fe00(\d\d)", lambda found: f"var(--line-{int(found[1])})", svg)
    svg = svg.replace(_RULE, "var(--rule)").replace(_TEXT, "currentColor")
    used = set(re.findall(r"#([\w-]+)", svg))
    # Names of groups repeat in each drawing, and a page may have each name but once.
    return re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
