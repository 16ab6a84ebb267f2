"""tools/report.py as a command."""

import functools
import shutil
import sys

import pytest
import torch


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


@pytest.mark.parametrize(
    "output, message",
    [
        ("metrics.json", "end in one of .html"),
        ("", "is a folder"),
        ("config.yaml/r.html", "cannot be written"),
        ("x.html", "is a folder"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    tool, finished, tmp_path, monkeypatch, output, message
):
    """Above all not the run's own files."""
    monkeypatch.setattr("fastreid_sskd.report.page._sections", None)
    copy = shutil.copytree(
        finished, tmp_path / "run.html", ignore=shutil.ignore_patterns("report.html", "*.pth", "events*")
    )
    (copy / "x.html").mkdir()
    before = {file: file.read_bytes() for file in copy.iterdir() if file.is_file()}
    code, out, err = tool(copy, "--output", copy / output)
    assert code == 2 and not out and message in err and "Traceback" not in err
    assert before == {file: file.read_bytes() for file in copy.iterdir() if file.is_file()}


def test_weights_that_are_not_finite(tool, finished, tmp_path):
    """Is said in the page, without a claim about the training."""
    copy = shutil.copytree(
        finished, tmp_path / "run", ignore=shutil.ignore_patterns("report.html", "events*", "source")
    )
    saved = torch.load(copy / "model_final.pth", weights_only=True)
    saved["model"]["teachers.1.backbone.0.weight"][0] = float("nan")
    torch.save(saved, copy / "model_final.pth")
    code, _, _ = tool(copy)
    page = (copy / "report.html").read_text()
    assert code == 0 and "has values that are not finite in its tensor teachers.1.backbone.0.weight" in page


def test_a_folder_that_is_no_run_is_one_sentence(tool, tmp_path):
    code, out, err = tool(tmp_path)
    assert code == 2 and not out and "no config.yaml" in err and "Traceback" not in err


def test_without_matplotlib_it_says_how_to_install_it(tool, finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = tool(finished, "--output", tmp_path / "report.html")
    assert code == 2 and not out and 'pip install "fastreid-sskd[report]"' in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())
