"""Curves: which ones belong together, and drawings that follow the page."""

import re

import numpy as np
import pytest

from lightning_xai import GradCAM
from lightning_xai.callbacks.faithfulness import default_controls
from lightning_xai.report.curves import DASHES, sections
from lightning_xai.report.run_folder import Log


def curve(n=3, scale=1.0):
    """A curve that rises."""
    return {10 * i: scale * i for i in range(n)}


def of(*logs):
    """Sections by title."""
    return {section.title: section for section in sections(logs)}


def test_curves_are_sorted_into_sections_and_tests_left_out():
    """By key; those of an integrity check are no explanations, and two of its figures are drawn."""
    keys = ["train/guided_gradient/cosine", "val/loss", "lr-Adam", "test/xai/gradcam/AverageDrop"]
    keys += ["val/xai/gradcam/AverageDrop", "val/xai/integrity/flagged", "val/xai/integrity/suspicion"]
    keys += ["val/xai/integrity/share", "val/xai/integrity/gradcam_disagreement"]
    found = of(("", Log("", {key: curve() for key in keys})))
    assert {title: [chart.title for chart in one.charts] for title, one in found.items()} == {
        "Training": ["Alignment: cosine of gradient and guided gradient; higher is better"],
        "Validation": ["Loss; lower is better"],
        "Explanations": ["Average drop, %; lower is better"],
        "Integrity": [
            "Verdict: 1 where a logit shift or a false gradient is seen; lower is better",
            "Suspicion; lower is better",
        ],
        "Other": ["lr-Adam"],
    }


def test_one_chart_holds_all_attributions_of_a_metric():
    """Colours tell attributions, dashes networks."""
    keys = [f"val/xai/{name}/AverageGain" for name in ("gradcam", "lrp")]
    logs = [
        (model, Log(model, {key: curve(scale=i + 1) for i, key in enumerate(keys)})) for model in ("plain", "guided")
    ]
    explanations = of(*logs)["Explanations"]
    assert len(explanations.charts) == 1
    assert [(line.label, line.colour, line.dash) for line in explanations.legend] == [
        ("gradcam, plain", 0, DASHES[0]),
        ("lrp, plain", 1, DASHES[0]),
        ("gradcam, guided", 0, DASHES[1]),
        ("lrp, guided", 1, DASHES[1]),
    ]


def test_each_control_has_a_dash_of_its_own():
    """All are of one grey."""
    controls = default_controls({"gradcam": GradCAM()})
    keys = [f"val/xai/{name}/AverageDrop" for name in ("gradcam", *controls)]
    logs = [("", Log("", {key: curve() for key in [*keys, "val/xai/gradcam/AverageDrop_over_controls"]}))]
    grey = [line for line in of(*logs)["Explanations"].legend if "control" in line.label]
    assert len({line.dash for line in grey}) == len(grey) == len(controls)


def test_networks_have_colours_where_there_are_no_attributions():
    """As losses have."""
    logs = [(model, Log(model, {"train/loss": curve(scale=i + 1)})) for i, model in enumerate(("plain", "guided"))]
    assert [(line.label, line.colour) for line in of(*logs)["Training"].legend] == [("plain", 0), ("guided", 1)]


def test_drawings_take_colours_and_letters_from_the_page():
    """No colour of their own is left, no style for all of the page, and each name is used once."""
    found = of(("", Log("", {"train/loss": curve(), "train/cosine": curve(5)})))["Training"]
    svgs = [chart.svg for chart in found.charts]
    for svg in svgs:
        assert svg.startswith("<svg")
        assert not re.search(r"#[0-9a-f]{6}\b|<style|<metadata", svg)
        assert {"var(--line-0)", "var(--rule)", "currentColor"} <= set(re.findall(r"var\(--[\w-]+\)|currentColor", svg))
    names = re.findall(r' id="(.*?)"', "".join(svgs))
    assert names
    assert len(names) == len(set(names))


def test_words_tell_the_last_values():
    """For those who do not see the drawing."""
    logs = [
        (model, Log(model, {"val/accuracy": curve(scale=i + 0.125)})) for i, model in enumerate(("plain", "guided"))
    ]
    (chart,) = of(*logs)["Validation"].charts
    assert chart.words == "Accuracy; higher is better, over steps 0 to 20. Last values: plain 0.25; guided 2.25."


def test_what_never_changes_is_told_and_not_drawn():
    """No map that shows nothing, as a rule."""
    found = of(("", Log("", {f"val/xai/{name}/ConstantMaps": {9: 0.0, 19: 0.0} for name in ("gradcam", "lrp")})))
    assert found["Explanations"].charts == []
    assert found["Explanations"].notes == ["Maps that show nothing, %; lower is better: 0 throughout."]


def test_long_curves_are_thinned_and_that_is_told():
    """A drawing of 100,000 steps is no larger than one of 400."""
    found = of(("", Log("", {"train/loss": {i: np.sin(i / 999) for i in range(100_000)}})))["Training"]
    assert len(found.charts[0].svg) < 30_000
    assert found.notes == ["Of long curves 400 points are drawn, at even distances."]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_leave_a_gap(bad):
    """Nothing else is lost, nothing is warned of."""
    (chart,) = of(("", Log("", {"train/loss": {0: 1.0, 10: bad, 20: 0.5, 30: 0.25}})))["Training"].charts
    assert "nan" not in chart.svg
    assert "inf" not in chart.svg.replace("xlink", "")


def test_a_single_epoch_is_a_point():
    """With its value in words."""
    (chart,) = of(("a", Log("a", {"val/loss": {9: 1.0}})), ("b", Log("b", {"val/loss": {9: 2.0}})))["Validation"].charts
    assert chart.words.endswith("Last values: a 1; b 2.")
    assert "<use" in chart.svg
