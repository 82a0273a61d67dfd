"""Folders that others wrote: a hundred damaged or hostile ones, drawn from a seed, end in a page or a sentence."""

import json
import os
import random
import shutil
import struct
from io import BytesIO

import pytest
from PIL import Image
from report.example_run import write_log, write_run

from lightning_xai.__main__ import main
from lightning_xai.report import write_report
from lightning_xai.report.run_folder import read_run

VALUES = [None, "x", -1, 1e999, float("nan"), True, [], {}, [1, 2, 3], {"mean": 1}, 10**30]
VALUES += ["\ud800", "<script>alert(1)</script>"]
TEXTS = ["", "[", "nan", "\x00" * 100, "[" * 5000 + "]" * 5000, '{"a":' * 1000 + "1" + "}" * 1000]
TEXTS += ["\\ud800", "\u202e", "{}", "[]", "1"]


def damaged_json(rng, path):
    """One field of any depth gets another value, or the file another text."""
    found = json.loads(path.read_text()) if rng.random() < 0.7 else None
    if not isinstance(found, dict) or not found:
        path.write_text(rng.choice(TEXTS), encoding="utf-8")
        return
    place = found
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
            place = place[key]
        else:
            break
    place[key] = rng.choice(VALUES)
    path.write_text(json.dumps(found))


def damaged_bytes(rng, path):
    """Bytes are changed, cut off or repeated."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    kept = bytes(content[: rng.choice([0, 10, len(content) // 2, len(content)])])
    path.write_bytes(kept * rng.choice([1, 1, 3]))


def damaged_csv(rng, path):
    """Steps and values that are no numbers of ours."""
    words = ["nan", "inf", "-1", "1e300", "9" * 5000, "x" * 200_000, '"', "\x00", "1,2,3"]
    rows = path.read_text().splitlines()
    for _ in range(3):
        cells = rng.choice(rows).split(",")
        cells[rng.randrange(len(cells))] = rng.choice(words)
        rows.append(",".join(cells))
    path.write_text("\n".join(rows))


def replaced(rng, path):
    """Something else stands in its place."""
    path.unlink()
    rng.choice([os.mkfifo, lambda one: one.symlink_to("/dev/zero"), lambda one: one.symlink_to("/etc/passwd"),
                lambda one: one.symlink_to(one), lambda one: one.mkdir(), lambda one: one.touch()])(path)  # fmt: skip


def bombed(rng, path):
    """A picture of many pixels and few bytes."""
    buffer = BytesIO()
    Image.new("1", rng.choice([(9000, 9000), (20_000, 10_000)])).save(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def damage(rng, folder):
    """One of the files is damaged in one of these ways."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.html"]
    path = rng.choice([rng.choice(files), rng.choice([one for one in files if one.suffix in (".json", ".csv")])])
    ways = {".json": [damaged_json] * 3, ".csv": [damaged_csv] * 2, ".webp": [bombed], ".png": [bombed]}[path.suffix]
    rng.choice([*ways, damaged_bytes, replaced])(rng, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, with few pictures."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", methods=("gradcam",), steps=(10,), flagged_at=10)
    (folder / "settings.json").write_text('{"seed": 1, "data": {"mean": [0.5]}}')
    return folder


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_run_ends_in_a_page_or_in_a_sentence(run, tmp_path, seed):
    """No foreign traceback, no waiting, and nothing of outside in the page."""
    folder, rng = tmp_path / "run", random.Random(seed)
    shutil.copytree(run, folder)
    damage(rng, folder)
    page = main(["report", str(folder)]).read_text(encoding="utf-8")
    assert "root:" not in page
    assert "<script>alert" not in page
    assert len(page) < 2_000_000


def test_a_table_that_is_damaged_is_named_and_the_others_are_shown(run, tmp_path):
    """So are pictures and images."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    found = json.loads((folder / "results.json").read_text())
    found["tables"].append({"title": "Bad", "columns": [1], "rows": []})
    found["tables"].append({"title": "Worse", "columns": ["a"], "rows": [[{}]]})
    found["tables"][0]["digits"] = "many"
    found["higher_is_better"]["AverageDrop"] = None
    found["tables"].append({"title": "Good", "columns": ["a"], "rows": [["kept"]]})
    (folder / "results.json").write_text(json.dumps(found))
    read = read_run(folder)
    assert [table.title for table in read.results.tables] == ["Good"]
    assert [note.partition(" is left out: ")[0] for note in read.notes] == [
        *(f"results.json: number {i} of the tables" for i in (1, 2, 3)),
        "results.json: higher_is_better",
    ]


def test_the_page_is_written_through_no_link(run, tmp_path):
    """Neither that of the page nor one under a name that is used meanwhile."""
    folder, outside = tmp_path / "run", tmp_path / "outside.txt"
    shutil.copytree(run, folder)
    outside.write_text("precious")
    for name in ("report.html", "report.partial", "report.html.partial"):
        (folder / name).symlink_to(outside)
    assert "<html" in write_report(folder).read_text()
    assert outside.read_text() == "precious"
    assert not (folder / "report.html").is_symlink()


def test_a_folder_in_place_of_the_page_is_told(run, tmp_path):
    """In a sentence, and nothing half written stays."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "report.html").mkdir()
    with pytest.raises(SystemExit, match=r"report\.html"):
        main(["report", str(folder)])
    assert not list(folder.glob(".*"))


def event(step, tag, value):
    """A record of TensorBoard's file, by hand."""
    inner = b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + bytes([len(inner)]) + inner
    message = b"\x09" + struct.pack("<d", 1.0) + b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary
    return struct.pack("<Q", len(message)) + bytes(4) + message + bytes(4)


def test_event_files_are_read_to_their_damage(tmp_path):
    """What comes before it is shown, and the file is named."""
    whole = event(3, b"val/loss", 0.5) + event(5, b"val/loss", 0.25)
    file = tmp_path / "events.out.tfevents.1.host"
    file.write_bytes(whole + event(7, b"val/loss", 0.125)[:-6])
    run = read_run(tmp_path)
    assert (run.logs[0].values, run.notes) == ({"val/loss": {3: 0.5, 5: 0.25}}, [])
    file.write_bytes(whole + struct.pack("<Q", 2) + bytes(4) + b"\x0f\x00" + bytes(4))
    run = read_run(tmp_path)
    assert run.logs[0].values == {"val/loss": {3: 0.5, 5: 0.25}}
    assert "tfevents" in run.notes[0]


def test_tensorboards_own_files_are_read(tmp_path):
    """Written by Lightning's logger, with pictures."""
    pytest.importorskip("tensorboard")
    from pytorch_lightning.loggers import TensorBoardLogger
    from report.example_run import panel

    from lightning_xai.callbacks.loggers import log_panel

    logger = TensorBoardLogger(tmp_path)
    for step in (1, 2):
        logger.log_metrics({"val/xai/gradcam/AverageDrop": step / 4, "epoch": step}, step)
        log_panel([logger], "val/xai/maps", panel(), step)
    logger.finalize("success")
    (log,) = read_run(tmp_path).logs
    assert (log.model, log.values["val/xai/gradcam/AverageDrop"], log.epochs) == ("", {1: 0.25, 2: 0.5}, {1: 1, 2: 2})
    assert sorted(log.panels["val/xai/maps"]) == [1, 2]


@pytest.mark.parametrize("place", ["metrics.csv", "results.json"])
def test_pipes_are_not_waited_for(tmp_path, place):
    """A reader would wait for a writer that never comes."""
    write_log(tmp_path)
    for path in tmp_path.rglob("metrics.csv"):
        path.unlink()
        os.mkfifo(path)
    if place == "results.json":
        os.mkfifo(tmp_path / place)
    assert any("expected a regular file" in note for note in read_run(tmp_path).notes)
