"""Results as a table."""

from fastreid_sskd.evaluation.evaluator import METRICS, results_table

ROW = {"mAP": 12.345, "Rank-1": 50.0, "Rank-5": 60.0, "Rank-10": 70.0, "mINP": 1.0, "metric": 3.0}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table():
    header, _, first, second = results_table([(("a", "x"), ROW), (("b", "y"), ROW)], ("set", "row")).splitlines()
    assert cells(header) == ["set", "row", *METRICS] == ["set", "row", "mAP", "Rank-1", "Rank-5", "Rank-10", "mINP"]
    assert cells(first) == ["a", "x", "12.3", "50.0", "60.0", "70.0", "1.0"]
    assert cells(second)[:2] == ["b", "y"]


def test_missing_metric():
    row = {name: value for name, value in ROW.items() if name != "mINP"}
    assert cells(results_table([(("a",), row)], ("set",)).splitlines()[2])[-1] == "-"


def test_no_rows():
    assert cells(results_table([], ("set",)).splitlines()[0]) == ["set", *METRICS]


def test_format():
    assert "\\begin{tabular}" in results_table([(("a",), ROW)], ("set",), tablefmt="latex")
