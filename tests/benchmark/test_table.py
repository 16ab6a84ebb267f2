"""The table of many results."""

import csv
import io
import json
import math
import os

import pytest

from fastreid_sskd.benchmark import FORMATS, summarise, write_table


def test_mean_and_standard_deviation_over_seeds(make_result):
    values = [40.0, 43.0, 50.0]
    (row,) = summarise([make_result(v, seed=i, hours=i) for i, v in enumerate(values, start=1)])
    mean = sum(values) / 3
    assert row.mean("mAP") == pytest.approx(mean)
    assert row.deviation("mAP") == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    assert (row.seeds, row.mean_hours) == (3, 2.0)


def test_one_seed_has_no_deviation(make_result):
    (row,) = summarise([make_result()])
    assert row.deviation("mAP") is None and "±" not in write_table([make_result()], "markdown")


def test_rows_that_differ_by_more_than_the_seed(make_result):
    changes = [
        {},
        {"method": "n"},
        {"backbone": "osnet"},
        {"source": "R"},
        {"target": "U"},
        {"selection": "best on U"},
        {"images_per_bn": 16},
        {"epochs": 5},
        {"published": "a README"},
    ]
    assert len(summarise([make_result(**change) for change in changes])) == len(changes)


def test_devices_and_hours_do_not_make_rows(make_result):
    (row,) = summarise([make_result(device="cpu"), make_result(device="a GPU", seed=2, hours=None)])
    assert row.devices == "cpu + a GPU" and row.mean_hours is None


def test_the_same_run_twice_counts_once(make_result):
    """Also under another spelling of its folder."""
    runs = ("a", "a", "./a", os.path.abspath("a"), "b/../a")
    (row,) = summarise([make_result(run=run) for run in runs])
    assert row.seeds == 1 and row.run == "a"


def test_two_runs_of_one_seed_are_refused(make_result):
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        summarise([make_result(run="a"), make_result(60.0, run="b")])


def test_a_metric_that_one_seed_lacks_has_no_mean(make_result):
    partial = make_result(seed=2, metrics={"mAP": 10.0})
    (row,) = summarise([make_result(), partial])
    assert row.mean("Rank-1") is None and row.mean("mAP") == 30.0


def test_what_all_rows_share_is_said_once_below(make_result):
    text = write_table([make_result(), make_result(method="n", epochs=9)], "markdown")
    head, note = text.split("\n")[0], text.split("\n\n")[1]
    assert "epochs" in head and "images per BN" not in head
    assert "images per BN 32" in note and "source -> target S -> T" in note and "selection last epoch" in note
    assert "images per BN" in write_table(
        [make_result(), make_result(method="n")], "markdown", all_columns=True
    )


def test_all_columns_of_a_single_row(make_result):
    head = write_table([make_result()], "terminal").split("\n")[0]
    for column in ("method", "backbone", "source -> target", "mAP", "Rank-1", "Rank-5", "Rank-10",
                   "mINP", "seeds",
                   "selection",
                   "images per BN", "epochs", "hours", "device"):  # fmt: skip
        assert column in head


def test_published_rows_are_marked(make_result):
    published = make_result(
        70.0, method="MMT", published="MMT README", seed=None, hours=None, device="", metrics={"mAP": 70.0}
    )
    text = write_table([make_result(), published], "markdown")
    row = next(line for line in text.split("\n") if "MMT" in line)
    assert "MMT (as published)" in row and "70.0" in row
    assert "As published, not run here (a row without seeds): MMT: MMT README." in text
    assert "(as published)" not in next(line for line in text.split("\n") if line.startswith("| m "))


def test_quality_of_labels(make_result):
    """Means over seeds, where each has some; a column only where a row has."""
    labels = [
        {"precision": 0.8, "recall": 0.5, "noise": 0.2},
        {"precision": 0.6, "recall": 0.6, "noise": 0.1},
    ]
    good = [make_result(seed=seed, labels=found) for seed, found in enumerate(labels)]
    text = write_table([make_result(method="n"), *good], "markdown", all_columns=True)
    assert "0.70, 0.55, 0.15" in text and "0.70" not in write_table([*good, make_result(seed=5)])
    assert "labels:" not in write_table([make_result()], "markdown")
    (line,) = csv.DictReader(io.StringIO(write_table(good, "csv")))
    assert [float(line[f"label {what}"]) for what in labels[0]] == pytest.approx([0.7, 0.55, 0.15])
    assert json.loads(write_table(good, "json"))[0]["labels"]["noise"] == pytest.approx(0.15)


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_results(fmt):
    assert isinstance(write_table([], fmt), str)


def test_csv_and_json_have_plain_numbers(make_result):
    results = [make_result(40.0), make_result(50.0, seed=2)]
    (line,) = csv.DictReader(io.StringIO(write_table(results, "csv")))
    assert (line["method"], line["mAP"], float(line["mAP sd"]), line["seeds"]) == ("m", "45.0", 7.0711, "2")
    (row,) = json.loads(write_table(results, "json"))
    assert row["mean"]["mAP"] == 45.0 and row["seed_numbers"] == [1, 2]
    assert row["standard_deviation"]["mAP"] == pytest.approx(math.sqrt(50))


def test_latex_escapes_names(make_result):
    text = write_table(
        [make_result(method="50%_a&b"), make_result(method="n", seed=2), make_result(method="n", seed=3)],
        "latex",
    )
    assert r"50\%\_a\&b" in text and "$\\pm$" in text and text.startswith("\\begin{tabular}")
    assert all(line.startswith("%") for line in text[text.index("\\end{tabular}") :].split("\n")[1:] if line)


def test_csv_quotes_names(make_result):
    (line,) = csv.DictReader(io.StringIO(write_table([make_result(method='a, "b"')], "csv")))
    assert line["method"] == 'a, "b"'


def test_unknown_format(make_result):
    with pytest.raises(ValueError, match="terminal, markdown, latex, csv, json"):
        write_table([make_result()], "html")


def test_gains_over_a_row_are_paired_by_seed(make_result):
    ours = [make_result(v, method="ours", seed=k, run=f"o{k}") for k, v in ((1, 50.0), (2, 56.0), (3, 65.0))]
    theirs = [make_result(v, method="theirs", seed=k, run=f"t{k}") for k, v in ((1, 49.0), (2, 52.0))]
    table = write_table([*ours, *theirs], "markdown", against="theirs")
    cells = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert "mAP - theirs, by seed" in table
    assert "+2.5 ± 2.1 (2)" in cells["ours"]  # 1 and 4; the third seed has no partner
    assert "+" not in cells["theirs"]
    assert "between equal seeds" in table and "within spread" not in cells["ours"]
    single = write_table([ours[0], theirs[0]], "markdown", against="theirs")
    assert "+1.0 (1)" in single
    other = write_table(
        [ours[0], make_result(method="theirs", target="another")], "markdown", against="theirs"
    )
    assert "+" not in other.split("All rows")[0]
    with pytest.raises(ValueError, match="no row is of 'nobody': there are ours; theirs"):
        write_table([*ours, *theirs], against="nobody")


def test_gains_are_over_one_row_only(make_result):
    """Of the same source and network, where there are several; over none where that leaves no single one."""
    rows = [
        make_result(mAP, method=method, source=source, run=f"{method} {source}")
        for mAP, method, source in (
            (50.0, "start", "R"),
            (20.0, "start", "S"),
            (55.0, "a", "R"),
            (33.0, "b", "S"),
        )
    ]
    cells = {
        tuple(cell.strip() for cell in line.split("|")[1:3]): line
        for line in write_table(rows, "markdown", against="start").splitlines()
        if line.startswith("| ")
    }
    assert "+5.0 (1)" in cells["a", "R -> T"] and "+13.0 (1)" in cells["b", "S -> T"]
    assert not any("(1)" in cells["start", f"{source} -> T"] for source in "RS")
    unclear = [*rows[:2], make_result(60.0, method="c", source="Q", run="c")]
    assert "(1)" not in write_table(unclear, "markdown", against="start")


@pytest.mark.parametrize(
    "second, said",
    [
        (54.0, "+2.5 ± 2.1 (2)"),
        (60.0, "+5.5 ± 6.4 (2), within spread"),
        (45.0, "-2.0 ± 4.2 (2), within spread"),
    ],
)
def test_a_gain_within_its_spread_is_said_to_be(make_result, second, said):
    ours = [make_result(v, method="ours", seed=k, run=f"o{k}") for k, v in ((1, 51.0), (2, second))]
    theirs = [make_result(50.0, method="theirs", seed=k, run=f"t{k}") for k in (1, 2)]
    table = write_table([*ours, *theirs], "markdown", against="theirs")
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    }
    assert said in cells["ours"]
