"""The sweep over architectures: what it lists, what it says of a model, and that it goes on where it ended."""

import json

import coverage
import pytest
import timm
import torch


def test_every_family_of_timm_has_a_model():
    """One of each module."""
    families = {timm.models.model_entrypoint(name).__module__.split(".")[-1] for name in coverage.SMALLEST_OF_TIMM}
    assert families == {name for name in timm.list_modules() if hasattr(timm.models, name)}  # others register theirs


def test_a_model_is_checked_once_and_what_was_refused_is_said(tmp_path, monkeypatch):
    """In this process, to be quick."""
    calls = []
    monkeypatch.setattr(
        coverage, "in_a_process", lambda name, checks, _: calls.append(name) or coverage.alone(name, checks)
    )
    words = ["--only", "timm:test_vit", "--checks", "lrp", "deeplift", "--out", str(tmp_path / "coverage.json")]
    coverage.main(words)
    coverage.main(words)
    assert calls == ["timm:test_vit"]
    checks = json.loads((tmp_path / "coverage.json").read_text())["models"]["timm:test_vit"]["checks"]
    assert checks["lrp"]["outcome"] == "works"
    assert checks["lrp"]["said"]
    assert checks["deeplift"]["outcome"] == "refused"
    assert "layer_norm" in checks["deeplift"]["reason"]


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
    checks = coverage.alone(name, ["lrp", "lossless", "deeplift"])["checks"]
    assert checks["lrp"]["outcome"] == "works"
    assert checks["lossless"]["number"] == pytest.approx(1, abs=0.1)
    assert checks["deeplift"]["outcome"] in ({"works", "refused"} if name in REFUSED else {"works"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", coverage.NAMES)
def test_nothing_is_silently_wrong(name):
    """All families, in processes of their own."""
    outcomes = coverage.in_a_process(name, list(coverage.CHECKS), 600)["checks"]
    assert {one["outcome"] for one in outcomes.values()} <= {"works", "refused"}, outcomes
