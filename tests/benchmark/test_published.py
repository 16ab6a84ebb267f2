"""Published figures: checked, marked, and never printed where nobody could check them."""

from pathlib import Path

import pytest
import yaml

from fastreid_sskd.benchmark import load_published, published_results

FILE = Path(__file__).resolve().parents[2] / "fastreid_sskd" / "benchmark" / "published.yml"


def entry(**changes):
    given = {
        "method": "MMT",
        "where": "its README",
        "verified": True,
        "results": {"A -> B": [10.0, 20.0, None, 40.0]},
        "backbone": "resnet50",
    }
    return {**given, **changes}


def write(tmp_path, *entries):
    path = tmp_path / "published.yml"
    path.write_text(yaml.safe_dump(list(entries)))
    return str(path)


def test_rows_of_a_pair(tmp_path):
    entries = load_published(
        write(tmp_path, entry(), entry(method="other", results={"B -> A": [1, 2, 3, 4]}))
    )
    (row,), unverified = published_results(entries, ["A -> B"])
    assert (row.method, row.source, row.target, row.published) == ("MMT", "A", "B", "its README")
    assert row.metrics == {"mAP": 10.0, "Rank-1": 20.0, "Rank-10": 40.0}
    assert (row.seed, row.epochs, row.hours, unverified) == (None, None, None, [])
    assert published_results(entries, ["B -> C"]) == ([], [])


def test_unverified_figures_are_left_out_and_said_to_be(tmp_path):
    entries = load_published(write(tmp_path, entry(), entry(method="hearsay", verified=False, where="")))
    rows, unverified = published_results(entries, ["A -> B", "A -> B"])
    assert [row.method for row in rows] == ["MMT"] and unverified == ["hearsay"]


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"verified": "yes"}, "true"), ({"where": ""}, "where"),
        ({"results": {"A to B": [1, 2, 3, 4]}}, "Source -> Target"),
        ({"results": {"A -> B": [1, 2]}}, "in percent"),
        ({"results": {"A -> B": [0.1, 2, 3, 400]}}, "in percent"),
        ({"results": {"A -> B": ["x", 2, 3, 4]}}, "in percent"), ({"results": []}, "results is"),
        ({"url": "x"}, "knows besides"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused_by_name(tmp_path, changes, problem):
    with pytest.raises(ValueError, match=problem) as error:
        load_published(write(tmp_path, entry(), entry(**changes)))
    assert "entry 2" in str(error.value) and "MMT" in str(error.value)


def test_a_file_that_is_no_list(tmp_path):
    (tmp_path / "published.yml").write_text("method: MMT\n")
    with pytest.raises(ValueError, match="list of entries"):
        load_published(str(tmp_path / "published.yml"))


def test_the_projects_own_file():
    """No figure of SSKD's own paper is given as a fact."""
    entries = load_published(str(FILE))
    rows, unverified = published_results(
        entries, ["Market1501 -> DukeMTMC", "DukeMTMC -> Market1501", "Market1501 -> MSMT17"]
    )
    assert not any("SSKD" in row.method for row in rows) and unverified == ["SSKD (the paper)"]
    mmt = next(row for row in rows if row.method == "MMT-500" and row.target == "DukeMTMC")
    assert mmt.metrics == {"mAP": 63.1, "Rank-1": 76.8, "Rank-5": 88.0, "Rank-10": 92.2}
    assert all(row.published for row in rows) and len(
        {(row.method, row.source, row.target) for row in rows}
    ) == len(rows)
