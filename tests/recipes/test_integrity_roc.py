"""The experiment on logit shifts, from its command line to its table."""

import pytest
import torch
from integrity_roc import Outcome, area_under_curve, folded, main, tables

from common.data.cifar import CifarResNet
from lightning_xai.integrity import Fingerprint, Verdict


def test_fast_run_without_data_finds_what_users_would_see(tmp_path):
    """One network trained on generated images: every edit that moves its raw maps is told, its clean form is not."""
    results = main(["--fast-dev-run", "--run", str(tmp_path / "run")])
    found = [Outcome(**one) for one in results.values["outcomes"]]
    clean = [one for one in found if one.edit == "clean"]
    assert len(clean) == 2  # layers
    assert all(one.verdict != "LOGIT_SHIFT" for one in clean)
    assert {one.against_reference for one in clean} == {"UNCHANGED"}
    assert {one.against_reference for one in found if one.edit != "clean"} == {"LOGIT_SHIFT"}
    assert all(one.verdict != "CLEAN" for one in found if one.agreement < 0.8)
    assert all("clean checks, 0 false alarms" in table.caption for table in results.tables)
    again = main(["--fast-dev-run", "--run", str(tmp_path / "run"), "--resume"])  # from the part that is finished
    assert again.values == results.values


def test_tables_say_what_was_told_of_each_edit():
    """Of an edit that is seen: number, area, and the shares that were flagged."""
    clean = Outcome("net", "layer", "clean", 0.0, 0.01, "CLEAN", 1.0, 1.0, "UNCHANGED")
    edited = Outcome("net", "layer", "rows", 10.0, 0.9, "LOGIT_SHIFT", 0.5, 1.0, "LOGIT_SHIFT")
    (table,) = tables([clean, edited])
    assert table.rows == [["rows", "yes", "1", "1.0000", "100.0%", "0.0%", "100.0%"]]


def test_area_under_curve_counts_pairs():
    """Of four pairs, two are in order and one is a tie."""
    assert area_under_curve([0.1, 0.3], [0.3, 0.2]) == pytest.approx(2.5 / 4)


def test_folded_batchnorms_leave_the_network_unchanged():
    """Every one of them is in the weights of a convolution."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarResNet(1)
        model(images)  # statistics
    fingerprint = Fingerprint.of(model.eval(), images)
    model = folded(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert fingerprint.compare(model, images).verdict is Verdict.UNCHANGED


def test_groups_with_real_weights_need_data(capsys):
    """Said before anything is trained."""
    with pytest.raises(SystemExit):
        main(["--only", "photos"])
    assert "--only photos expected --data" in capsys.readouterr().err
