"""The experiment on logit shifts, from its command line to its table."""

import pytest
import torch
from integrity.toys import of_three_classes
from integrity_roc import main

from common.data.cifar import CifarResNet
from common.subject import Subject
from lightning_xai.integrity import Fingerprint, Verdict
from papers.logit_shift.honest import Honest, folded, task
from papers.logit_shift.rates import Check, edit_rows, honest_rows, training_rows
from papers.logit_shift.score_default import score_rows


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
    assert [(one["error"], one["checks"]) for one in results.values["trainings"]] == [(None, 1)]
    again = main(["--fast-dev-run", "--run", str(tmp_path / "run"), "--resume"])  # from the part that is finished
    assert again.values == results.values


def test_rows_keep_definition_and_measurement_apart():
    """Of an edit that moved a map: called clean, towards the centred map, told, accused."""
    honest = Check("net", "probe", 2, "layer", "", "CLEAN", 0.0, 0.01, None)
    edited = Check("net", "probe", 2, "layer", "rows", "LOGIT_SHIFT", 0.99, 0.9, "raw logit", 0.5, True, "LOGIT_SHIFT")
    by_classes, everything, by_kind = honest_rows([honest, edited])
    assert [one["honest"] for one in (by_classes, everything, by_kind)] == ["2 classes", "all", "probe"]
    assert list(by_classes.values())[1:] == [1, 0, {"mean": 0.0, "low": 0.0, "high": 97.5}, 0, 1, 0.0]
    all_of_one = {"mean": 100.0, "low": 2.5, "high": 100.0}
    assert [list(one.values()) for one in edit_rows([honest, edited])] == [
        ["rows", 1, 1, 0, 0, 0, all_of_one, 0, 1.0, all_of_one]
    ]


def test_a_training_that_was_ended_is_not_counted_as_let_through():
    """By number of classes."""
    one = {"classes": 2, "checks": 4, "suspicion": 0.5, "error": None}
    rows = training_rows([one, one | {"error": "a logit shift", "suspicion": 0.99}, one | {"classes": 3}])
    assert [(row["trained"], row["n"], row["let through"], row["largest suspicion"]) for row in rows] == [
        ("2 classes", 2, 1, 0.99),
        ("3 classes", 1, 1, 0.5),
    ]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_tasks_have_their_number_of_classes(classes):
    """All of them are there, and no two look alike."""
    images = torch.zeros(2000, 3, 1, 1), torch.arange(2000) % 10
    found, labels = task(images, classes, seed=0)
    assert labels.unique().tolist() == list(range(classes))
    if classes == 100:
        assert len(found.flatten(1).unique(dim=0)) == 10


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


def test_the_attack_on_the_scores_moves_maps_of_the_centred_one_alone():
    """On a network of which one class has no probability; the rows name drop, gain and their intervals."""
    model, images = of_three_classes()
    rows = score_rows(Honest(Subject(model, (), ()), "given", images, ("relu2",)))
    for centred, log_odds in zip(rows[::2], rows[1::2], strict=True):
        assert (centred["score"], log_odds["score"]) == ("centred", "log-odds")
        assert centred["method"] == log_odds["method"]
        assert log_odds["correlation under the attack, %"]["mean"] > 99
        assert centred["correlation under the attack, %"]["mean"] < log_odds["correlation under the attack, %"]["mean"]
        more = log_odds["average drop, %"]["mean"] - centred["average drop, %"]["mean"]
        assert log_odds["more drop than centred"]["mean"] == pytest.approx(more, abs=0.11)
