"""benchmarks/gpu.py: what it runs, its record, and the lines that docs/speed.md has of it."""

import json
import os
import subprocess
import sys

import gpu
import pytest
from measure import Row, machine


@pytest.fixture
def record():
    step = Row("step", "resnet50, K = 3", "s/step", 0.2, 0.3, 0.19, "over the floor +5.0%", "bfloat16")
    seconds = {"seconds": {"total": 0.5}, "product": {"seconds": 0.25}, "wall_ratio": 2.0}
    case = {"images": 12936, "dim": 2048, **seconds}
    return {
        "machine": {**machine(), "device": "A GPU"},
        "tests": {"result": "7 passed in 60 s"},
        "step": {"rows": [vars(step)]},
        "loader": {"failed": "took more than 60 s"},
        "refresh": {"cases": [case]},
    }


def test_lines_hold_every_part_and_what_failed(record):
    text = gpu.lines(json.loads(json.dumps(record)))
    assert text.startswith("A GPU, ") and "Tests: 7 passed in 60 s." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line][2:]
    assert [row[0] for row in rows] == ["step", "refresh"]
    assert rows[0][3:6] == ["0.2", "0.3", "0.19"] and rows[1][3:7] == ["0.5", "-", "0.25", "2.00 X @ X.T"]
    assert text.endswith("Not measured, loader: took more than 60 s.")


def test_only_the_lines_between_the_marks_are_replaced():
    page = gpu.DOCS.read_text(encoding="utf-8")
    changed = gpu.in_page(page, "new | lines \\1")
    before, _, rest = page.partition("<!-- gpu -->\n")
    assert (
        before
        and changed
        == f"{before}<!-- gpu -->\nnew | lines \\1\n<!-- end of gpu -->"
        + rest.partition("<!-- end of gpu -->")[2]
    )
    assert gpu.in_page(changed, "again") != changed


def test_the_page_says_what_the_record_says():
    page = gpu.DOCS.read_text(encoding="utf-8")
    kept = gpu.RECORD.is_file()
    text = (
        gpu.lines(json.loads(gpu.RECORD.read_text())) if kept else "Nothing has been measured on a GPU yet."
    )
    assert gpu.in_page(page, text) == page


def test_parts_are_within_the_time_and_exist():
    assert sum(limit for _, limit in gpu.PARTS.values()) <= 480
    for name, (command, _) in gpu.PARTS.items():
        assert name == "tests" or (gpu.ROOT / command[0]).is_file()


def test_a_part_that_fails_or_takes_too_long_is_said(monkeypatch, capfd):
    monkeypatch.setitem(gpu.PARTS, "step", (["-c", "raise SystemExit(3)"], 60))
    monkeypatch.setitem(gpu.PARTS, "loader", (["-c", "import time; time.sleep(60)"], 0.2))
    monkeypatch.setitem(gpu.PARTS, "tests", (["-c", "print('== 2 passed in 1 s ==')"], 60))
    assert gpu.run_part("step", "cpu") == {"failed": "exit status 3"}
    assert gpu.run_part("loader", "cpu") == {"failed": "took more than 0.2 s"}
    assert gpu.run_part("tests", "cpu") == {"result": "2 passed in 1 s"}


def test_without_a_gpu_it_says_what_it_would_do():
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, gpu.__file__], capture_output=True, text=True, check=True, env=hidden
    )
    assert "no GPU" in done.stdout and "-m gpu" in done.stdout and "benchmarks/refresh.py" in done.stdout
    assert not gpu.RECORD.is_file() or "gpu.json" in done.stdout
