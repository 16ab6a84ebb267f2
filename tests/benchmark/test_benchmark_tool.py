"""tools/benchmark.py as a command."""

import functools
import json

import pytest
import torch
from tiny_reid import CONFIGS

from fastreid_sskd import benchmark
from fastreid_sskd.benchmark import runner


@pytest.fixture
def tool(run_tool, monkeypatch, tmp_path):
    """Runs the tool in a folder of the test's own; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_tool, "benchmark")


def test_runs_and_weights_in_one_table(tool, finished, tmp_path):
    source = finished / "source" / "peer0"
    pair = f"stage 1={source / 'config.yaml'}:{source / 'model_final.pth'}"
    code, out, _ = tool(
        "table", f"adapted={finished}", pair, "--selection", "last,best", "--output-file", tmp_path / "t.txt"
    )
    assert code == 0
    lines = out.split("\n")
    starts = (
        "adapted, direct transfer",
        "adapted, teacher 0",
        "adapted, teacher 1",
        "adapted, ensemble",
        "adapted",
        "stage 1",
    )
    assert all(line.startswith(start) for line, start in zip(lines[2:], starts, strict=False)), out
    assert (tmp_path / "t.txt").read_text() == out
    assert len(list((tmp_path / "runs" / "records").iterdir())) == 1  # of the evaluation


def test_a_run_folder_on_another_set(tool, finished):
    code, out, _ = tool("table", finished, "--tests", "DukeMTMC", "--format", "json", "--records", "")
    assert code == 0 and {row["target"] for row in json.loads(out)} == {"DukeMTMC"}
    assert [row["method"] for row in json.loads(out)] == [
        "SSKD, teacher 0",
        "SSKD, teacher 1",
        "SSKD, ensemble",
    ]
    _, above, _ = tool("table", finished.parent, "--tests", "DukeMTMC", "--format", "json", "--records", "")
    assert above == out


def test_a_folder_without_weights(tool, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = tool("table", tmp_path / "empty", "--tests", "DukeMTMC")
    assert code == 2 and "no run with config.yaml and model_final.pth" in err


def test_published_rows(tool):
    code, out, err = tool("table", "--published", "Market1501 -> DukeMTMC")
    assert code == 0 and "MMT-500 (as published)" in out and "SSKD" not in out
    assert "Left out" in err and "SSKD (the paper)" in err


def test_published_rows_of_the_pairs_in_the_table(tool, finished):
    _, out, _ = tool("table", finished, "--published")
    assert "SSKD, ensemble" in out and "P2LR (as published)" in out and "81.0" in out


def test_errors_are_one_sentence(tool, tmp_path):
    code, out, err = tool("table", tmp_path / "nowhere")
    assert code == 2 and not out and "nowhere" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "args, message",
    [
        (("table",), "name run folders or CONFIG:WEIGHTS"),
        (("table", "--published"), "name run folders or CONFIG:WEIGHTS"),
        (("grid", "grid.yml", "--output", "out", "--seeds", "1;2"), "seeds are whole numbers"),
        (
            ("grid", "grid.yml", "--output", "out", "--opts", "SEED", "4"),
            "--opts SEED: give --runs or --seeds",
        ),
    ],
)
def test_command_lines_refused(tool, args, message):
    code, out, err = tool(*args)
    assert code == 2 and not out and message in err and "Traceback" not in err


def test_a_run_that_stopped_ends_with_3_behind_the_table_of_the_others(tool, monkeypatch, make_result):
    outcome = benchmark.Outcome([make_result(method="one")], {}, {("two", 1): "0 clusters"})
    monkeypatch.setattr(benchmark, "run_grid", lambda *args: outcome)
    code, out, err = tool("run", "--config-file", "demo.yml", "--output", "out")
    assert code == 3 and "one" in out and "50.0" in out and "No row of two, seed 1: 0 clusters" in err


def test_a_row_that_cannot_be_had_is_no_failure(tool, monkeypatch, make_result):
    outcome = benchmark.Outcome([make_result()], {("bound", 1): "a source needs identities"}, {})
    monkeypatch.setattr(benchmark, "run_grid", lambda *args: outcome)
    code, _, err = tool("run", "--config-file", "demo.yml", "--output", "out")
    assert code == 0 and "No row of bound, seed 1: a source needs identities" in err


def test_an_error_inside_a_training_is_no_refusal(tool, monkeypatch, tmp_path):
    """It has a traceback; status 2 is for what is refused."""

    def broken(cfg, resume):
        raise ValueError("inside a training")

    monkeypatch.setattr(runner, "run", broken)
    monkeypatch.setattr(runner, "check_inputs", lambda cfg: None)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="inside a training"):
        tool("run", "--config-file", CONFIGS / "sskd_d2m.yml", "--runs", "1", "--output", "out",
             "--opts", "SSKD.SOURCE.WEIGHTS", f"['{tmp_path}/a.pth']", "MODEL.DEVICE", "cpu")  # fmt: skip


def test_unknown_test_set(tool, finished):
    code, _, err = tool("table", finished, "--tests", "Marked1501", "--records", "")
    assert code == 2 and "no data set is named 'Marked1501'; the nearest that there is: Market1501" in err


def test_folder_of_the_table_is_made(tool, finished, tmp_path):
    code, out, _ = tool("table", finished, "--output-file", tmp_path / "new" / "table.txt")
    assert code == 0 and (tmp_path / "new" / "table.txt").read_text() == out
