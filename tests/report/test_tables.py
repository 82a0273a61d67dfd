"""Tables of one run and of two."""

from lightning_xai.report import Table
from lightning_xai.report.run_folder import Log
from lightning_xai.report.tables import PageCell, last_values, settings, side_by_side, with_controls_apart


def test_tables_of_one_run_stay_as_they_are():
    """Numbers have the table's digits, intervals are apart."""
    table = Table("Drop", ["", "plain"], [["cam", {"mean": 1.25, "low": 1, "high": 2}], ["lrp", None]], "9 images", 2)
    (shown,) = side_by_side({"run": [table]})
    assert (shown.title, shown.caption, shown.columns) == ("Drop", "9 images", ["", "plain"])
    assert shown.rows == [[PageCell("cam"), PageCell("1.25", "[1.00, 2.00]")], [PageCell("lrp"), PageCell("")]]


def test_text_in_brackets_is_no_interval():
    """Only numbers with an interval are taken apart."""
    (shown,) = side_by_side({"run": [Table("T", ["", "x"], [["a [1]", "b [2]"]])]})
    assert shown.rows == [[PageCell("a [1]"), PageCell("b [2]")]]


def test_tables_of_two_runs_are_put_side_by_side_with_gaps():
    """Rows, columns and tables that one run lacks are told."""
    first = [
        Table("Drop", ["", "plain"], [["cam", 1.0], ["lrp", 2.0]], "of a"),
        Table("Gain", ["", "plain"], [["cam", 3.0]]),
    ]
    second = [Table("Drop", ["", "plain", "guided"], [["cam", 4.0, 5.0]], "of b")]
    drop, gain = side_by_side({"a": first, "b": second})
    not_a, not_b = PageCell("", gap="not in a"), PageCell("", gap="not in b")
    assert drop.columns == ["", "plain, a", "plain, b", "guided, a", "guided, b"]
    assert drop.caption == "a: of a b: of b"
    assert drop.rows == [
        [PageCell("cam"), PageCell("1.0"), PageCell("4.0"), not_a, PageCell("5.0")],
        [PageCell("lrp"), PageCell("2.0"), not_b, not_a, not_b],
    ]
    assert gain.rows == [[PageCell("cam"), PageCell("3.0"), not_b]]


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


def test_last_values_are_methods_by_metrics_with_controls_apart():
    """Of the last step; a control is what methods are compared with; other values have a table of their own."""
    values = {
        "val/xai/gradcam/AverageDrop": {1: 9.0, 2: 5.0},
        "val/xai/gradcam/AverageDrop_over_controls": {2: 1.5},
        "val/xai/random/AverageDrop": {2: 6.5},
        "val/xai/model/GradientAlignment": {2: 0.5},
        "val/xai/integrity/flagged": {2: 0.0},
        "val/loss": {1: 2.0, 9: 0.5},
        "lr-Adam": {1: 0.1},
    }
    explained, others = last_values([("plain", Log("plain", values))])
    assert explained.title == "Explanations, validation, plain"
    assert explained.columns == [
        "Method",
        "Average drop, %; lower is better",
        "Average drop: better than the best control by, %; higher is better",
        "Gradient alignment; higher is better",
    ]
    read = [[cell.text or cell.gap for cell in row] for row in (*explained.rows, *explained.controls)]
    assert read == [["gradcam", "5", "1.5", "-"], ["model", "-", "-", "0.5"], ["random", "6.5", "-", "-"]]
    assert len(explained.controls) == 1
    assert explained.meanings["Average drop"].startswith("Average Drop, 100/N")
    assert [[cell.text for cell in row] for row in others.rows] == [
        ["lr-Adam", "0.1"],
        ["Loss; lower is better (validation)", "0.5"],
    ]


def test_controls_of_a_recipes_table_stand_apart():
    """As far as the logs know them."""
    (table,) = side_by_side({"a": [Table("T", ["", "x"], [["random", 1.0], ["cam", 2.0]])]})
    apart = with_controls_apart(table, {"random"})
    assert ([row[0].text for row in apart.rows], [row[0].text for row in apart.controls]) == (["cam"], ["random"])
    assert with_controls_apart(table, {"other"}) == table


def test_a_small_negative_number_is_printed_as_zero():
    """A sign without a digit says nothing."""
    table = Table("Change", ["", "drop"], [["gradcam", {"mean": -0.04, "low": -1.26, "high": 0.3}]])
    assert table.text(0, 1) == "0.0 [-1.3, 0.3]"
