"""Tables of one run and of two."""

from lightning_xai.report import Table
from lightning_xai.report.run_folder import Log
from lightning_xai.report.tables import Cell, last_values, settings, side_by_side


def test_tables_of_one_run_stay_as_they_are():
    """Numbers have the table's digits, intervals are apart."""
    table = Table("Drop", ["", "plain"], [["cam", {"mean": 1.25, "low": 1, "high": 2}], ["lrp", None]], "9 images", 2)
    (shown,) = side_by_side({"run": [table]})
    assert (shown.title, shown.caption, shown.columns) == ("Drop", "9 images", ["", "plain"])
    assert shown.rows == [[Cell("cam"), Cell("1.25", "[1.00, 2.00]")], [Cell("lrp"), Cell("")]]


def test_text_in_brackets_is_no_interval():
    """Only numbers with an interval are taken apart."""
    (shown,) = side_by_side({"run": [Table("T", ["", "x"], [["a [1]", "b [2]"]])]})
    assert shown.rows == [[Cell("a [1]"), Cell("b [2]")]]


def test_tables_of_two_runs_are_put_side_by_side_with_gaps():
    """Rows, columns and tables that one run lacks are told."""
    first = [
        Table("Drop", ["", "plain"], [["cam", 1.0], ["lrp", 2.0]], "of a"),
        Table("Gain", ["", "plain"], [["cam", 3.0]]),
    ]
    second = [Table("Drop", ["", "plain", "guided"], [["cam", 4.0, 5.0]], "of b")]
    drop, gain = side_by_side({"a": first, "b": second})
    not_a, not_b = Cell("", gap="not in a"), Cell("", gap="not in b")
    assert drop.columns == ["", "plain, a", "plain, b", "guided, a", "guided, b"]
    assert drop.caption == "a: of a b: of b"
    assert drop.rows == [
        [Cell("cam"), Cell("1.0"), Cell("4.0"), not_a, Cell("5.0")],
        [Cell("lrp"), Cell("2.0"), not_b, not_a, not_b],
    ]
    assert gain.rows == [[Cell("cam"), Cell("3.0"), not_b]]


def test_rows_of_one_name_are_told_apart_by_their_order():
    """A method with several scores, say."""
    tables = [Table("T", ["method", "score", "x"], [["cam", "raw", x], ["cam", "centred", x + 1]]) for x in (1.0, 5.0)]
    (shown,) = side_by_side({"a": tables[:1], "b": tables[1:]})
    assert [[cell.text for cell in row] for row in shown.rows] == [
        ["cam", "raw", "raw", "1.0", "5.0"],
        ["cam", "centred", "centred", "2.0", "6.0"],
    ]


def test_settings_that_differ_come_first():
    """Lists are told in one line, None is empty."""
    shown = settings(
        {"a": {"seed": 0, "data": None, "lr": 0.1}, "b": {"seed": 0, "data": None, "lr": 0.2, "n": [1, 2]}}
    )
    assert shown.caption == "2 differ and come first."
    assert [[cell.text or cell.gap for cell in row] for row in shown.rows] == [
        ["lr", "0.1", "0.2"],
        ["n", "not in a", "1, 2"],
        ["seed", "0", "0"],
        ["data", "", ""],
    ]


def test_last_values_are_those_of_the_last_step():
    """With gaps where a network has none."""
    shown = last_values(
        [("plain", Log("plain", {"loss": {1: 2.0, 9: 0.5}})), ("guided", Log("guided", {"cos": {1: 1.0}}))]
    )
    assert [[cell.text or cell.gap for cell in row] for row in shown.rows] == [
        ["cos", "not in plain", "1"],
        ["loss", "0.5", "not in guided"],
    ]


def test_a_small_negative_number_is_printed_as_zero():
    """A sign without a digit says nothing."""
    table = Table("Change", ["", "drop"], [["gradcam", {"mean": -0.04, "low": -1.26, "high": 0.3}]])
    assert table.text(0, 1) == "0.0 [-1.3, 0.3]"
