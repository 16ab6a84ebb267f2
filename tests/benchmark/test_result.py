"""Records: what goes in comes out."""

import json
import math

import pytest

from fastreid_sskd.benchmark import Result, read_results, write_results


def test_results_come_back_from_their_file(tmp_path, make_result):
    results = [make_result(), make_result(12.3456789, seed=2), Result("only a name", "T")]
    path = tmp_path / "new" / "results.json"
    write_results(results, str(path))
    assert read_results(str(path)) == results
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    assert "hours" not in json.loads(path.read_text())[2]  # nothing is said that is not known


def test_no_results(tmp_path):
    write_results([], str(tmp_path / "none.json"))
    assert read_results(str(tmp_path / "none.json")) == []


def test_metrics_are_those_of_a_table_to_four_digits():
    result = Result("m", "T", {"mAP": 12.34567, "metric": 3.0, "Rank-20": 1.0})
    assert result.metrics == {"mAP": 12.3457}


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan])
def test_a_metric_that_is_no_percentage_is_refused(value):
    with pytest.raises(ValueError, match="percentages"):
        Result("m", "T", {"mAP": value})


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"method": "m", "target": "T", "score": 1}]'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_results(str(tmp_path / "x.json"))
