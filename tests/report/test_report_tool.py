"""tools/report.py as a command."""

import functools

import pytest


@pytest.fixture
def tool(run_tool):
    """Runs the tool; returns exit status, stdout and stderr."""
    return functools.partial(run_tool, "report")


def test_options_reach_the_report(tool, finished, tmp_path):
    path = tmp_path / "out.html"
    code, out, _ = tool(finished, "--output", path, "--no-images", "--queries", "2", "--clusters", "1")
    text = path.read_text()
    assert code == 0 and str(path) in out
    assert text.count("before: AP") == 2 == text.count("after: AP") and "<img" not in text
    assert text.count("cluster, ") == 1  # the largest
    tool(finished, "--output", path, "--no-features")
    assert "Features were not asked for." in path.read_text()


def test_a_folder_that_is_no_run_is_one_sentence(tool, tmp_path):
    code, out, err = tool(tmp_path)
    assert code == 2 and not out and "no config.yaml" in err and "Traceback" not in err
