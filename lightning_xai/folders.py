"""A folder of images, explained: pictures, raw maps, a table and a page to look through; what is done is not redone."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_xai.attribution import Attribution
from lightning_xai.baselines import black, to_pixels
from lightning_xai.explain import attribute, trace_of
from lightning_xai.files import read_json, write_whole
from lightning_xai.images import UNREADABLE, image_files, read_image
from lightning_xai.metrics import average_drop, average_gain, masked_scores
from lightning_xai.networks import Preprocessing, class_names_of
from lightning_xai.panels import FACTS, read_panel, save_panel
from lightning_xai.report import write_album
from lightning_xai.scores import log_softmax, predicted
from lightning_xai.trace import plain_tensors
from lightning_xai.visualization import Panel, overlay

_SETTINGS_BYTES = 1_000_000


@dataclass(frozen=True)
class Explainer:
    """A classifier, the methods that explain its predicted classes, and where the results go.

    Attributes:
        model: The classifier, on its device.
        attributions: Named methods.
        preprocessing: How the classifier wants its images.
        out: The folder of the results.
        class_names: Names of the classes; None for the model's own, or ImageNet's for 1000 classes.
        batch_size: Images in a pass.
        settings: What the results depend on, by name: a folder with others is refused.
    """

    model: nn.Module
    attributions: Mapping[str, Attribution]
    preprocessing: Preprocessing
    out: Path
    class_names: Sequence[str] | None = None
    batch_size: int = 8
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, source: Path) -> Path:
        """Explain the images of a folder that are not yet explained; returns the page.

        In the folder of the results ``pictures/<id>/`` holds an image and its overlays, ``maps/<id>.npz`` the raw maps
        (H,W) by method, ``explanations.csv`` a line for each image, and ``index.html`` all of them. What cannot be read
        is named in the last two.

        Raises:
            FileNotFoundError: If there are no images.
            ValueError: If the folder of the results has others.
        """
        files, unread = image_files(source, self.out)
        if not files:
            raise FileNotFoundError(f"`IMAGES` expected images in {str(source)!r}, found none.")
        self._begin()
        named = {_name(path, source): path for path in files}
        left = [name for name in named if not (self._pictures(name) / FACTS).is_file()]
        try:
            with tqdm(total=len(named), initial=len(named) - len(left), unit="image") as progress:
                for start in range(0, len(left), self.batch_size):
                    some = {name: named[name] for name in left[start : start + self.batch_size]}
                    for pictures in _of_one_size(self._read(some, unread)):
                        self._explain(pictures, [_told(named[name], source) for name in pictures])
                    progress.update(len(some))
        finally:
            page = self._tell(source, list(named), unread)
        return page

    def _begin(self) -> None:
        path, told = self.out / "settings.json", json.loads(json.dumps(dict(self.settings), default=str))
        if path.exists() and (earlier := read_json(path, _SETTINGS_BYTES)) != told:
            changed = sorted(name for name in told if told[name] != earlier.get(name))
            raise ValueError(
                f"`--out` expected a folder of the same settings, got {str(self.out)!r}, written with other {changed}. "
                "Give another folder, or delete that one."
            )
        write_whole(path, json.dumps(told))

    def _pictures(self, name: str) -> Path:
        return self.out / "pictures" / name

    def _read(self, files: Mapping[str, Path], unread: dict[Path, str]) -> dict[str, Tensor]:
        found = {}
        for name, path in files.items():
            try:
                picture = read_image(path)
            except UNREADABLE as error:
                unread[path] = str(error)
                continue
            found[name] = self.preprocessing.transform(picture)
        return found

    def _explain(self, pictures: Mapping[str, Tensor], files: list[str]) -> None:
        """Explain images of one size, and write what was found, ``panel.json`` of each last."""
        images = torch.stack(list(pictures.values())).to(next(self.model.parameters(), torch.empty(0)))
        trace = trace_of(self.model, images, self.attributions)
        with plain_tensors():
            targets = predicted(trace.logits)
            maps = attribute(trace, targets, self.attributions)
            facts = {"file": files} | self._facts(trace, targets, maps)
            mean, std = self._standard(trace.images)
            pixels = to_pixels(trace.images, mean, std)
            drawn = {name: overlay(pixels, one).cpu() for name, one in maps.items()}
        for i, name in enumerate(pictures):
            buffer = BytesIO()
            arrays: dict[str, Any] = {method: one[i].cpu().numpy() for method, one in maps.items()}
            np.savez_compressed(buffer, **arrays)
            write_whole(self.out / "maps" / f"{name}.npz", buffer.getvalue())
            of_image = {method: one[i : i + 1] for method, one in drawn.items()}
            panel = Panel(pixels[i : i + 1].cpu(), of_image, {fact: [values[i]] for fact, values in facts.items()})
            save_panel(panel, self._pictures(name))

    def _standard(self, images: Tensor) -> tuple[Sequence[float], Sequence[float]]:
        known = self.preprocessing.standard
        return known if known[0] else ((0.0,) * images.shape[1], (1.0,) * images.shape[1])

    def _facts(self, trace: Any, targets: Tensor, maps: Mapping[str, Tensor]) -> dict[str, list[Any]]:
        names = self.class_names or class_names_of(self.model, trace.logits.shape[1])
        before = log_softmax(trace.logits.double(), targets)
        behind = black(trace.images, *self._standard(trace.images))
        numbers = targets.tolist()
        facts = {"prediction": [names[one] if names else str(one) for one in numbers], "class": numbers}
        facts["probability"] = before.exp().tolist()
        for name, one in maps.items():
            after = masked_scores(trace.predict, trace.images, one, targets, baseline=behind)
            facts[f"{name} drop"] = average_drop(before, after).tolist()
            facts[f"{name} gain"] = average_gain(before, after).tolist()
        return facts

    def _tell(self, source: Path, names: Sequence[str], unread: Mapping[Path, str]) -> Path:
        """Write the table and the page of what is done."""
        folders = [self._pictures(name) for name in names]
        panels = [read_panel(folder) for folder in folders if (folder / FACTS).is_file()]
        rows = [{name: values[0] for name, values in panel.facts.items()} for panel in panels]
        rows += [{"file": _told(path, source), "error": error} for path, error in unread.items()]
        columns = list(dict.fromkeys(["file", *(name for row in rows for name in row)]))
        text = StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        table.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
        write_whole(self.out / "explanations.csv", text.getvalue())
        told = [f"{row['file']}: {row['error']}" for row in rows if "error" in row]
        settings = {name: _in_words(said) for name, said in self.settings.items() if said}
        return write_album(self.out, f"{source.name}, explained", panels, told, settings)


def _name(path: Path, source: Path) -> str:
    """A name of its own for a file as it is now: a changed file is explained anew, and no name leads anywhere."""
    found = path.stat()
    return sha256(os.fsencode(_told(path, source)) + f"|{found.st_size}|{found.st_mtime_ns}".encode()).hexdigest()[:16]


def _told(path: Path, source: Path) -> str:
    """A file's name as it is told: from the given folder on."""
    return str(path.relative_to(source)) if path != source else path.name


def _of_one_size(pictures: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for shape in dict.fromkeys(one.shape for one in pictures.values()):
        yield {name: one for name, one in pictures.items() if one.shape == shape}


def _in_words(said: Any) -> str:
    """A setting; a path by its name."""
    if isinstance(said, (list, tuple)):
        return ", ".join(map(str, said))
    return said.name if isinstance(said, Path) else str(said)


def _cell(value: Any) -> Any:
    """A value for a table: a spreadsheet takes no name for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
