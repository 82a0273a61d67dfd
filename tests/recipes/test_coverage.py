"""The sweep over architectures: what it lists, what it says of a model, and that it goes on where it ended."""

import json

import coverage
import pytest
import timm
import torch

from common.architectures import NAMES, OF_TRANSFORMERS, SMALLEST_OF_TIMM, class_of_transformers


def found(name, checks):
    """Outcomes of one model, in this process."""
    told = dict(coverage.alone(name, checks))
    return {one: told[one] for one in checks}


@pytest.mark.skipif(not set(SMALLEST_OF_TIMM) <= set(timm.list_models()), reason="an older timm has fewer models")
def test_every_family_of_timm_has_a_model():
    """One of each module."""
    families = {timm.models.model_entrypoint(name).__module__.split(".")[-1] for name in SMALLEST_OF_TIMM}
    assert families == {name for name in timm.list_modules() if hasattr(timm.models, name)}  # others register theirs


def test_a_model_is_checked_once_and_what_was_refused_is_said(tmp_path, monkeypatch):
    """In this process, to be quick."""
    calls = []
    monkeypatch.setattr(
        coverage, "in_a_process", lambda name, checks, _: calls.append(name) or {"checks": found(name, checks)}
    )
    words = ["--only", "timm:test_vit", "--checks", "lrp", "deeplift", "--out", str(tmp_path / "coverage.json")]
    coverage.main(words)
    coverage.main(words)
    assert calls == ["timm:test_vit"]
    (row,) = json.loads((tmp_path / "coverage.json").read_text())["rows"]
    assert row["model"] == "timm:test_vit"
    checks = row["checks"]
    assert checks["lrp"]["outcome"] == "works"
    assert checks["lrp"]["said"]
    assert checks["deeplift"]["outcome"] == "refused"
    assert "layer_norm" in checks["deeplift"]["reason"]
    text = (tmp_path / "coverage.md").read_text()
    assert "| timm:test_vit | - |" in text
    assert "| warned | 0 | 0 | 0 | 0 | 0 | 1 |" in text
    assert f"(1 of {len(NAMES)} models)" in text


def test_a_model_that_takes_too_long_is_stopped_and_what_it_found_is_kept():
    """By the time of the processor, in a process of its own."""
    told = coverage.in_a_process("timm:test_vit", ["layer", *["term"] * 99], 2)  # which no machine does in two seconds
    assert told["checks"]["layer"]["outcome"] == "works"
    assert told["checks"]["term"]["outcome"] == "time"


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_of_transformers_is_checked():
    """As its library gives it: logits in an object."""
    pytest.importorskip("transformers")
    assert len({class_of_transformers(kind) for kind in OF_TRANSFORMERS}) >= 25
    checks = found("transformers:ViT", ["layer", "gradcam", "gradient", "guided", "lrp", "integrated", "term"])
    assert {one["outcome"] for one in checks.values()} == {"works"}


def test_an_error_that_is_not_ours_is_wrong():
    """A bug looks like one."""

    def check(model, images):
        return {}["missing"]

    assert coverage.checked(check, torch.nn.Identity(), torch.ones(1))["outcome"] == "wrong"


FAST = [
    *("timm:test_resnet", "timm:test_byobnet", "timm:test_convnext", "timm:test_efficientnet", "timm:test_nfnet"),
    *("timm:regnetx_002", "timm:starnet_s050", "timm:lcnet_035", "timm:inception_next_atto", "timm:resnetv2_18"),
    *("torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"),
]
REFUSED = {"timm:test_convnext", "timm:inception_next_atto", "timm:test_nfnet"}
"""Layer normalisation, or weights that are made in the pass, have no slope from a baseline."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAST)
def test_relevance_arrives_or_its_loss_is_said(name):
    """A dozen families, chosen for their differences."""
    checks = found(name, ["lrp", "lossless", "deeplift"])
    assert checks["lrp"]["outcome"] == "works"
    assert checks["lossless"]["number"] == pytest.approx(1, abs=0.1)
    assert checks["deeplift"]["outcome"] in ({"works", "refused"} if name in REFUSED else {"works"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_silently_wrong(name):
    """All families."""
    outcomes = found(name, list(coverage.CHECKS))
    assert {one["outcome"] for one in outcomes.values()} <= {"works", "refused", "unclear"}, outcomes
