"""Followed images: which steps, networks and attributions are shown, and what is missing."""

import pytest
from report.example_run import panel

from lightning_xai.panels import save_panel
from lightning_xai.report.followed import split_name, viewers
from lightning_xai.report.pictures import Pictures
from lightning_xai.report.run_folder import Log

KEY = "val/xai/maps"


def drawn(folder, model, steps, **options):
    """The log of a network with a panel at each step."""
    files = {step: folder / f"{model}_{step}" for step in steps}
    for step, file in files.items():
        save_panel(panel(seed=step, **options), file)
    return model, Log(model, epochs={step - 1: i for i, step in enumerate(steps)}, panels={KEY: files})


def test_every_image_has_a_row_for_each_network_and_a_tile_for_each_attribution(tmp_path):
    """Frames are the steps; the image is the same picture at all of them, and is kept once."""
    pictures = Pictures()
    (found,) = viewers([drawn(tmp_path, name, (10, 20)) for name in ("plain", "guided")], pictures)
    assert (found.title, found.models, found.methods, found.scores) == (
        KEY,
        ["plain", "guided"],
        ["gradcam", "lrp"],
        [],
    )
    assert found.steps == ["step 10, epoch 0", "step 20, epoch 1"]
    assert [(number, [row.model for row in rows]) for number, rows in found.rows] == [
        (1, ["plain", "guided"]),
        (2, ["plain", "guided"]),
    ]
    image, gradcam, lrp = found.rows[0][1][0].tiles
    assert [tile.name for tile in (image, gradcam, lrp)] == ["image", "gradcam", "lrp"]
    assert len(set(image.frames)) == 1
    assert len({*gradcam.frames, *lrp.frames}) == 4
    assert found.rows[0][1][1].tiles[1].frames == gradcam.frames  # both networks were drawn the same
    assert len(pictures.uris) == 2 * (1 + 2 * 2)
    assert found.rows[1][1][0].captions == ["label class 1 | predicted hen (0.25)"] * 2
    assert found.notes == []


def test_ten_thousand_steps_are_sampled_and_that_is_told(tmp_path):
    """The first and the last are among them; the others are not even read."""
    files = {step: tmp_path / f"step={step}" for step in range(10_000)}
    for step in (0, 9999):
        save_panel(panel(), files[step])
    (found,) = viewers([("", Log("", panels={KEY: files}))], Pictures())
    assert (found.steps[0], found.steps[-1]) == ("step 0", "step 9999")
    assert len(found.steps) == 100
    assert found.notes[0] == "100 of 10,000 steps are shown, at even distances."


def test_many_images_are_sampled_and_that_is_told(tmp_path):
    """Eight of them, with their numbers."""
    (found,) = viewers([drawn(tmp_path, "plain", (10,), n=15)], Pictures())
    assert [number for number, _ in found.rows] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert found.notes == ["8 of 15 images are shown, at even distances."]


def test_other_attributions_leave_gaps(tmp_path):
    """The union is shown."""
    logs = [drawn(tmp_path, "a", (10,), methods=["gradcam"]), drawn(tmp_path, "b", (10,), methods=["lrp", "gradcam"])]
    (found,) = viewers(logs, Pictures())
    assert found.methods == ["gradcam", "lrp"]
    frames = [{tile.name: tile.frames[0] for tile in row.tiles} for row in found.rows[0][1]]
    assert frames[0]["lrp"] is None
    assert None not in (frames[0]["gradcam"], frames[1]["gradcam"], frames[1]["lrp"])


def test_a_network_that_was_not_drawn_at_a_step_is_shown_as_before(tmp_path):
    """Before its first picture there is none."""
    (found,) = viewers([drawn(tmp_path, "a", (10, 20, 30)), drawn(tmp_path, "b", (20,))], Pictures())
    first, second = (row.tiles[1].frames for row in found.rows[0][1])
    assert second == [None, first[1], first[1]]


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("0_0.webp", lambda path: path.unlink(), "No such file"),
        ("1_0.webp", lambda path: path.write_bytes(b"no picture"), "expected an image of JPEG, PNG, WEBP"),
        ("1_0.webp", lambda path: path.write_bytes(path.read_bytes()[:300]), ""),
        ("panel.json", lambda path: path.unlink(), "No such file"),
        ("panel.json", lambda path: path.write_text("{}"), "expected lists of texts"),
    ],
)
def test_a_damaged_picture_is_told_and_leaves_a_gap(tmp_path, name, damage, told):
    """The others are shown."""
    log = drawn(tmp_path, "plain", (10, 20))
    damage(log[1].panels[KEY][20] / name)
    (found,) = viewers([log], Pictures())
    image, gradcam, _ = (tile.frames for tile in found.rows[0][1][0].tiles)
    if name == "0_0.webp":  # the image is shown as it was at another step
        assert None not in image
    else:
        (note,) = found.notes
        assert note.startswith("plain_20/1_0.webp " if name == "1_0.webp" else f"{tmp_path.name}/plain_20 ")
        assert told in note
        assert gradcam[0] is not None
        assert gradcam[1] is None


def test_a_second_line_of_a_name_is_the_score(tmp_path):
    """As in the picture of a flagged network."""
    (found,) = viewers([drawn(tmp_path, "", (10,), methods=["cam\nraw logit", "cam\ncentred"])], Pictures())
    assert (found.methods, found.scores) == (["cam"], ["raw logit", "centred"])
    assert split_name("a\nb\nc") == ("a", "b c")
