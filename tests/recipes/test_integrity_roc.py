"""The experiment on logit shifts, from its command line to its table."""

import pytest
import torch
from integrity_roc import Check, folded, main, tables

from common.data.cifar import CifarResNet
from lightning_xai.integrity import Fingerprint, Verdict


def test_fast_run_without_data_accuses_no_honest_network_and_finds_every_edit(tmp_path):
    """One network trained on generated images; what moved a map of a clean one is not called clean."""
    results = main(["--fast-dev-run", "--run", str(tmp_path / "run")])
    found = [Check(**one) for one in results.values["checks"]]
    honest, edited = [one for one in found if not one.edit], [one for one in found if one.edit]
    assert len(honest) == 2  # layers
    assert not any(Verdict[one.verdict].alarms for one in honest)
    assert len(edited) == 14
    assert all(one.against_reference != "UNCHANGED" for one in edited)
    assert not any(one.was_clean and one.moved > 0.1 and one.verdict == "CLEAN" for one in edited)
    assert {one.verdict for one in edited if one.edit == "one-class lie"} == {"FALSE_GRADIENT"}
    again = main(["--fast-dev-run", "--run", str(tmp_path / "run"), "--resume"])  # from the part that is finished
    assert again.values == results.values


def test_tables_keep_definition_and_measurement_apart():
    """Of an edit that moved a map: called clean, towards the centred map, told, accused."""
    honest = Check("net", "probe", 2, "layer", "", "CLEAN", 0.0, 0.01, None)
    edited = Check("net", "probe", 2, "layer", "rows", "LOGIT_SHIFT", 0.99, 0.9, "raw logit", 0.5, True, "LOGIT_SHIFT")
    by_classes, by_kind, edits = tables([honest, edited])
    assert by_classes.rows[0] == ["2 classes", "1", "0.0% [0.0%, 97.5%]", "0", "1", "0.000"]
    assert by_kind.rows[0][0] == "probe"
    everything = "100.0% [2.5%, 100.0%]"
    assert edits.rows == [["rows", "1", "1", "0", "0", "0", everything, "1.000", everything]]


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
