"""Make a W&B view of how a project's models explain themselves, or a report that compares two runs.

    python recipes/wandb_dashboard.py --entity E --project P                          # a saved view of the project
    python recipes/wandb_dashboard.py --entity E --project P --report RUN_A RUN_B     # a report; RUN: id, as in its URL
    python recipes/wandb_dashboard.py --entity E --project P --offline RUN_FOLDER --print

Sections: Explanations (the followed images over steps, the attributions side by side, and the table of them, to be
filtered by label and prediction and sorted by drop), Faithfulness (each metric of all attributions and controls, beside
accuracy), Training term, Integrity. Panels refer to keys alone, and only to keys that a run has logged, so that none is
empty: keys are read from the project's latest runs, or from folders of offline runs (``--offline``), which may be
synced before or after. Make the view again when attributions were added or a model was flagged: a key that nobody had
logged has no panel yet.

Needs ``pip install -e ".[dashboard]"`` and ``wandb login``; with ``--offline`` and ``--print`` neither a login
nor a connection. What a server makes of the specification cannot be tried without one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from common.offline_runs import history
from common.options import option, parsed
from lightning_xai.integrity import FIGURES, figure_named
from lightning_xai.log_keys import LogKey
from lightning_xai.metrics import number_named
from lightning_xai.regularization import TERM_NUMBERS

LATEST = 20  # runs of a project whose keys are looked at; each costs a request
STEP = "trainer/global_step"  # Lightning's, in every row; W&B's own step counts rows
WIDTH = 24  # columns of a report's grid

Sections = dict[str, list[Any]]
"""Panels by the title of their section."""


@dataclass(frozen=True)
class Keys:
    """What runs have logged, by kind."""

    numbers: frozenset[str]
    images: frozenset[str]
    tables: frozenset[str]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Keys:
        """Kinds of values in the form of a run's summary: media are dicts with a ``_type``; W&B's own keys begin so."""
        own = {key: value for key, value in values.items() if not key.startswith("_")}
        kinds = {key: value.get("_type", "") if isinstance(value, Mapping) else "" for key, value in own.items()}
        tables = frozenset(key for key, kind in kinds.items() if kind.startswith("table"))
        images = frozenset(key for key, kind in kinds.items() if kind.startswith("image"))
        return cls(frozenset(key for key, kind in kinds.items() if not kind), images, tables)

    def __or__(self, other: Keys) -> Keys:
        return Keys(self.numbers | other.numbers, self.images | other.images, self.tables | other.tables)

    @property
    def drawn(self) -> list[str]:
        """Keys of panels of pictures: each is logged as images ``<key>/<name>`` and as a table ``<key>/table``."""
        tables = (key.removesuffix("/table") for key in self.tables if key.endswith("/table"))
        return sorted(filter(LogKey.parse_pictures, tables), key=_stage_first)

    @property
    def watched(self) -> list[str]:
        """Keys of integrity checks: each has a number ``<key>/flagged``."""
        flags = [own for own in map(LogKey.parse, self.numbers) if own and own.metric == "flagged"]
        return sorted((str(LogKey(own.stage, own.name)) for own in flags), key=_stage_first)

    def pictures(self, key: str) -> list[str]:
        """Images of a panel, those that are explained first."""
        inner = tuple(f"{one}/" for one in self.drawn if one.startswith(f"{key}/"))  # of other runs' dataloaders
        found = {one for one in self.images if one.startswith(f"{key}/") and not one.startswith(inner)}
        return sorted(found, key=lambda one: (one != f"{key}/image", one))


NOTHING = Keys(frozenset(), frozenset(), frozenset())


def keys_of_history(rows: Iterable[Mapping[str, Any]]) -> Keys:
    """Keys of an offline run's rows, where parts of media are named ``<key>._type`` and so on."""
    values: dict[str, Any] = {}
    for row in rows:
        media = {name.removesuffix("._type"): value for name, value in row.items() if name.endswith("._type")}
        values |= {key: {"_type": kind} for key, kind in media.items()}
        values |= {key: value for key, value in row.items() if key.rpartition(".")[0] not in media}
    return Keys.of(values)


def explanations(keys: Keys) -> list[Any]:
    """The followed images: side by side at a step, over steps for each attribution, and as a table."""
    return [panel for key in keys.drawn if key not in keys.watched for panel in _pictures(keys, key)]


def faithfulness(keys: Keys) -> list[Any]:
    """Accuracy, then each metric with all attributions and controls."""
    accuracies = sorted(key for key in keys.numbers if "acc" in key.lower() and "/xai/" not in key)
    watched = tuple(f"{key}/" for key in keys.watched)
    own = sorted(
        _own(key for key in keys.numbers if not key.startswith(watched)), key=lambda one: _stage_first(str(one))
    )
    groups = _grouped(
        [one for one in own if one.stage != "train"], lambda one: (one.stage, one.metric, one.dataloader_idx)
    )
    plots = [_lines("Accuracy", accuracies)] if accuracies else []
    return plots + [_lines(_title(found[0]), found) for found in groups.values()]


def training_term(keys: Keys) -> list[Any]:
    """The losses, the weight, how well gradients are aligned, what it costs."""
    own = _own(key for key in sorted(keys.numbers) if key.startswith("train/guided_gradient"))
    found = _grouped(own, lambda one: one.metric)
    order = [*(name for name in TERM_NUMBERS if name in found), *(name for name in found if name not in TERM_NUMBERS)]
    return [_lines(TERM_NUMBERS[name].label if name in TERM_NUMBERS else name, found[name]) for name in order]


def integrity(keys: Keys) -> list[Any]:
    """The verdict, the figures that it rests on, and the pictures of models that were flagged."""
    watched = tuple(f"{key}/" for key in keys.watched)
    own = _own(sorted((key for key in keys.numbers if key.startswith(watched)), key=_stage_first))
    figures = _grouped(own, lambda one: one.metric)
    order = [*(name for name in FIGURES if name in figures), *(name for name in figures if name not in FIGURES)]
    plots = [_lines((figure_named(name) or number_named(name)).label, figures[name]) for name in order]
    return plots + [panel for key in keys.watched if key in keys.drawn for panel in _pictures(keys, key)]


SECTIONS: dict[str, Callable[[Keys], list[Any]]] = {
    "Explanations": explanations,
    "Faithfulness": faithfulness,
    "Training term": training_term,
    "Integrity": integrity,
}


def sections_of(keys: Keys) -> Sections:
    """Sections with panels; those for which nothing was logged are left out."""
    found = {title: panels(keys) for title, panels in SECTIONS.items()}
    return {title: panels for title, panels in found.items() if panels}


def view(entity: str, project: str, name: str, sections: Sections) -> ws.Workspace:
    """The saved view of a project."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(title, panels, is_open=True, panel_settings=ws.SectionPanelSettings(x_axis=STEP))
            for title, panels in sections.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def report(entity: str, project: str, runs: Sequence[str], sections: Sections, *, to_save: bool) -> wr.Report:
    """A report of two runs; to be saved, it needs the project's number, for which the server is asked."""
    chosen = wr.Runset(name=" and ".join(runs), filters=f"Metric('ID') in {list(runs)}")
    if to_save:
        chosen.entity, chosen.project = entity, project
    differences = wr.RunComparer(diff_only="split", layout=_whole_row())
    blocks: list[Any] = [wr.TableOfContents(), wr.H1("Settings"), wr.PanelGrid([chosen], panels=[differences])]
    for title, panels in sections.items():
        blocks += [wr.H1(title), wr.PanelGrid([chosen], panels=_in_rows(panels))]
    title = f"Explanations of {' and '.join(runs)}"
    return wr.Report(project, entity, title=title, blocks=blocks, width="fluid")


def _in_rows(panels: Sequence[Any]) -> list[Any]:
    """Panels placed one after another, row by row."""
    x = y = height = 0
    for panel in panels:
        if x + panel.layout.w > WIDTH:
            x, y, height = 0, y + height, 0
        panel.layout.x, panel.layout.y = x, y
        x, height = x + panel.layout.w, max(height, panel.layout.h)
    return list(panels)


def _pictures(keys: Keys, key: str) -> list[Any]:
    images = keys.pictures(key)
    side_by_side = wr.MediaBrowser(
        title=f"{key}, side by side", media_keys=images, num_columns=len(images), layout=_whole_row()
    )
    over_steps = [
        wr.MediaBrowser(title=f"{_last(one)} over steps", media_keys=[one], grid_x_axis="step", grid_y_axis="index")
        for one in images
        if _last(one) != "image"
    ]
    return [side_by_side, *over_steps, wr.WeavePanelSummaryTable(table_name=f"{key}/table", layout=_whole_row())]


def _whole_row() -> wr.Layout:
    return wr.Layout(w=WIDTH, h=10)


def _lines(title: str, keys: Sequence[str | LogKey]) -> Any:
    return wr.LinePlot(title=title, x=STEP, y=[str(key) for key in keys])


def _own(keys: Iterable[str]) -> list[LogKey]:
    return [own for own in map(LogKey.parse, keys) if own is not None and own.metric is not None]


def _stage_first(key: str) -> tuple[bool, str]:
    """Tests come last: a plot of one is a single point."""
    return key.startswith("test/"), key


def _grouped(keys: Iterable[LogKey], group_of: Callable[[LogKey], Any]) -> dict[Any, list[LogKey]]:
    found: dict[Any, list[LogKey]] = {}
    for key in keys:
        found.setdefault(group_of(key), []).append(key)
    return found


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _title(key: LogKey) -> str:
    index = "" if key.dataloader_idx is None else f", dataloader {key.dataloader_idx}"
    return f"{key.stage}: {number_named(str(key.metric)).label}{index}"


def keys_of_project(entity: str, project: str, runs: Sequence[str] | None) -> Keys:
    """Keys of the named runs, or of the latest ones."""
    api = wandb.Api()
    path = f"{entity}/{project}"
    found = [api.run(f"{path}/{run}") for run in runs] if runs else islice(api.runs(path, order="-created_at"), LATEST)
    keys = NOTHING
    for run in found:
        keys |= Keys.of(run.summary_metrics)
    return keys


def keys_of_folders(folders: Sequence[Path]) -> Keys:
    """Keys of offline runs."""
    keys = NOTHING
    for folder in folders:
        keys |= keys_of_history(history(folder))
    return keys


@dataclass(frozen=True)
class Settings:
    """The dashboard."""

    entity: str = option("", "user or team", required=True)
    project: str = option("", "project, as given to WandbLogger", required=True)
    name: str = option("Explanations", "name of the view")
    report: tuple[str, str] | None = option(None, "compare two runs, by their ids, in a report", metavar="RUN")
    offline: tuple[Path, ...] = option((), "take keys from these offline runs", nargs="+", metavar="FOLDER")
    print: bool = option(False, "write the specification as JSON, and save nothing")


def main(argv: Sequence[str] | None = None) -> None:
    """Save or print the view or the report."""
    args = parsed(Settings, __doc__, argv)
    try:
        made = _made(args)
        if args.print:
            # there is no public way to the JSON that `save` sends
            print(json.dumps(made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json"), indent=1))
        else:
            made.save()
    except wandb.errors.Error as error:
        raise SystemExit(
            f"W&B: {error}\nLog in with `wandb login`, or set WANDB_API_KEY; --offline FOLDER --print needs neither."
        ) from error
    except ValueError as error:
        raise SystemExit(str(error)) from error


def _made(args: Settings) -> ws.Workspace | wr.Report:
    runs = args.report
    keys = keys_of_folders(args.offline) if args.offline else keys_of_project(args.entity, args.project, runs)
    sections = sections_of(keys)
    if not sections:
        raise ValueError(
            f"--project expected runs that have logged explanations, found none in {args.entity}/{args.project}. "
            "Train with WandbLogger and SaliencyMaps, Faithfulness or ModelIntegrity."
        )
    if not runs:
        return view(args.entity, args.project, args.name, sections)
    if not args.print:
        wandb.Api()  # without a login it raises an error of its own; the report's would be a plain one
    return report(args.entity, args.project, runs, sections, to_save=not args.print)


if __name__ == "__main__":
    main()
