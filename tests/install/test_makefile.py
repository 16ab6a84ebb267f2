"""The Makefile picks a Python that works and sets up before it runs anything; CI runs `make test`."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder with the Makefile only, with the given stand-ins for interpreters on PATH."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "environment.py").write_text("import sys; print('environment', sys.argv[1:])\n")
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(*arguments: str, **scripts: str) -> subprocess.CompletedProcess:
        for name, script in scripts.items():
            path = folder / name.replace("_", ".")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        # of the caller's environment, nothing: this may itself be a child of make
        variables = {"PATH": str(folder), "LANG": "C"}
        return subprocess.run(
            [program, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )

    return run


WORKS = f'exec "{sys.executable}" "$@"'


def test_make_skips_interpreters_that_do_not_run(make):
    """A pyenv shim is on PATH for every version that pyenv knows, and fails for those not activated."""
    done = make("setup", python3_13="exit 127", python3_12="exit 1", python3=WORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "environment ['.venv']"
    shown = make("-n", "setup").stdout
    assert '"python3" tools/environment.py' in shown


def test_make_prefers_the_newest(make):
    assert (
        '"python3.12" tools' in make("-n", "setup", python3_10=WORKS, python3_12=WORKS, python3=WORKS).stdout
    )


def test_make_without_any_python(make):
    done = make("test", python3="exit 1")
    assert done.returncode != 0
    assert "no Python 3.10-3.13" in done.stderr and "PYTHON=" in done.stderr


def test_make_refuses_the_wrong_python(make):
    done = make("setup", "PYTHON=old", old="exit 1", python3=WORKS)
    assert done.returncode != 0 and "PYTHON=old does not run or is not Python 3.10-3.13" in done.stderr


def test_make_passes_choices_on(make):
    done = make("setup", "EXTRAS=gpu,test", "TORCH=torch==2.4.1 numpy<2", "VENV=other", python3=WORKS)
    expected = ["other", "--extras", "gpu,test", "--torch", "torch==2.4.1 numpy<2"]
    assert done.stdout.strip() == f"environment {expected}"


PYTEST = 'OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ".venv/bin/python" -m pytest -n 2 --dist loadfile'


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", '".venv/bin/python" tools/compare.py --config-file configs/demo.yml --output runs/demo'),
        ("test", PYTEST),
        ("test-quick", f'{PYTEST} -m "not slow"'),
        ("lint", '".venv/bin/python" -m ruff check .'),
    ],
)
def test_make_targets_set_up_first(make, target, command):
    lines = [line.strip() for line in make("-n", target, python3=WORKS).stdout.splitlines()]
    assert lines[-1] == command
    assert any("tools/environment.py" in line for line in lines[:-1])
    for name in re.findall(r"\b(?:tools|configs)/\S+", command):
        assert (ROOT / name).exists()


def test_make_alone_lists_the_targets(make):
    shown = make(python3=WORKS, awk='exec /usr/bin/env -i PATH=/usr/bin:/bin awk "$@"').stdout
    assert all(
        f"make {target} " in shown for target in ("setup", "demo", "test", "test-quick", "lint", "matrix")
    )


def test_ci_runs_the_suite():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    # pytest's closing line must be the last of the output
    assert script.strip().splitlines()[-1] == "make test"
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
