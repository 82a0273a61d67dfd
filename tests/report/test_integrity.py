"""Verdicts from logged values."""

from lightning_xai.report.integrity import checks
from lightning_xai.report.run_folder import Log


def test_a_flagged_network_is_told_with_the_first_step():
    """Also if a later check did not flag it."""
    values = {
        "val/xai/integrity/flagged": {0: 0.0, 9: 1.0, 19: 0.0},
        "val/xai/integrity/suspicion": {0: 0.1, 9: 2.0, 19: 0.2},
    }
    (found,) = checks([("guided", Log("guided", values))])
    assert (found.name, found.flagged) == ("guided", True)
    assert found.words.startswith("Flagged in 1 of 3 checks, first at step 9: ")
    assert found.figures == [
        ("Suspicion", 0.2, "The largest share where maps look different; above a threshold a shift is reported.")
    ]


def test_a_network_that_was_never_flagged_is_told_with_the_largest_suspicion():
    """And with the number of checks."""
    values = {"val/xai/integrity/flagged": {0: 0.0, 9: 0.0}, "val/xai/integrity/suspicion": {0: 0.25, 9: 0.125}}
    (found,) = checks([("", Log("", values))])
    assert (found.name, found.flagged) == ("", False)
    assert found.words == "2 checks up to step 9, suspicion 0.25 at most."


def test_other_names_and_stages_are_told():
    """Two callbacks have two names; the usual name and validation go without saying."""
    values = {
        "val/xai/probes/flagged": {0: 0.0},
        "test/xai/integrity/flagged": {0: 0.0},
        "val/xai/gradcam/AverageDrop": {0: 1.0},
    }
    assert [one.name for one in checks([("plain", Log("plain", values))])] == ["plain, probes", "plain, test"]


def test_without_checks_there_is_no_verdict():
    """A missing check is no good news."""
    assert checks([("plain", Log("plain", {"val/loss": {0: 1.0}}))]) == []
