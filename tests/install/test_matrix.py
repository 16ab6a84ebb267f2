"""tools/matrix.py finds interpreters, counts what pytest reports, and keeps a record."""

import json
import os
import sys
from pathlib import Path


def test_matrix_finds_interpreters(matrix, tmp_path, monkeypatch):
    current = "{}.{}".format(*sys.version_info[:2])
    assert matrix.find_python(current) == Path(sys.executable)

    # a shim that does not run comes first, and pyenv's own folder is looked into
    shim = tmp_path / "shims" / "python3.99"
    pyenv = tmp_path / "versions" / "3.99.1" / "bin" / "python"
    for path, script in ((shim, "exit 127"), (pyenv, "echo 3.99")):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent) + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert matrix.find_python("3.99") == pyenv
    assert matrix.find_python("3.98") is None


def test_matrix_counts_real_results(matrix, tmp_path):
    (tmp_path / "test_sample.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): pass\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError\n"
        "def test_error(broken): pass\n"
    )
    quiet = [str(tmp_path), "-q", "-c", os.devnull, "--rootdir", str(tmp_path)]
    entry = matrix.run_tests(Path(sys.executable), quiet, timeout=120)
    counts = {key: entry[key] for key in ("result", "passed", "failed", "skipped")}
    assert counts == {"result": "failed", "passed": 1, "failed": 2, "skipped": 1}
    assert matrix.run_tests(Path(sys.executable), [*quiet, "-k", "good"], timeout=120)["result"] == "passed"
    nothing = matrix.run_tests(Path(sys.executable), [*quiet, "-k", "no_such_test"], timeout=120)
    assert nothing["result"] == "pytest stopped with status 5"


def test_matrix_gives_up_on_a_hang(matrix, tmp_path):
    (tmp_path / "test_sample.py").write_text("import time\ndef test_hang(): time.sleep(600)\n")
    entry = matrix.run_tests(Path(sys.executable), [str(tmp_path), "-c", os.devnull], timeout=2)
    assert entry["result"] == "timed out after 2 s"


def test_matrix_keeps_other_entries(matrix, tmp_path):
    path = tmp_path / "matrix.json"
    assert matrix.read_record(path) == []
    record = [
        {"python": "3.12", "combination": "newest", "result": "passed"},
        {"python": "3.10", "combination": "newest", "result": "failed"},
    ]
    path.write_text(json.dumps(record))
    merged = matrix.merge(
        matrix.read_record(path), {"python": "3.10", "combination": "newest", "result": "not found"}
    )
    assert [(e["python"], e["result"]) for e in merged] == [("3.10", "not found"), ("3.12", "passed")]
    merged = matrix.merge(merged, {"python": "3.10", "combination": "oldest", "result": "passed"})
    assert len(merged) == 3


def test_matrix_table_marks_what_was_not_tested(matrix):
    entry = {"python": "3.11", "combination": "newest", "interpreter": "3.11.7", "torch": "2.15.0"}
    entry |= {"torchvision": "0.29.2", "numpy": "2.4.6", "date": "2026-01-31", "result": "failed"}
    entry |= {"passed": 10, "failed": 1, "skipped": 2, "pytest": " ".join(matrix.QUICK)}
    lines = matrix.table(
        [entry, {"python": "3.12", "combination": "newest", "result": "not found"}]
    ).splitlines()
    assert len(lines) == 2 + len(matrix.COMBINATIONS)
    assert "| 3.11.7 | 2.15.0 | 0.29.2 | 2.4.6 | 2026-01-31 | 10 passed, 1 failed, 2 skipped |" in lines
    entry["pytest"] = "tests/losses"
    assert "1 failed, 2 skipped (of `tests/losses` only) |" in matrix.table([entry])
    assert sum(line.endswith("| untested |") for line in lines) == len(matrix.COMBINATIONS) - 2
    assert sum(line.endswith("| not found |") for line in lines) == 1


def test_matrix_tests_the_declared_lower_bounds(matrix, metadata):
    """The oldest combination is what setup.py promises, to the minor version."""
    bounds = dict(r.split(">=") for r in metadata["install_requires"])
    oldest = [combination for combination in matrix.COMBINATIONS if combination.name == "oldest"]
    assert oldest
    for pin in oldest[0].torch.split():
        name, version = pin.split("==")
        assert version.split(".")[:2] == bounds[name].split(".")[:2], name
    pinned = {pin.split("==")[0] for pin in oldest[0].torch.split()}
    assert {"torch", "torchvision", "numpy"} <= pinned
