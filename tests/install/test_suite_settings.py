"""tests/conftest.py: optional folders are skipped with a reason, other skips fail, thread counts are set."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OPTIONAL = """
import os, pytest
@pytest.mark.real_data
def test_marker(): pass
def test_images(real_data): assert (real_data / 'here').exists()
def test_weights(weights): assert (weights / 'here').exists()
def test_threads(): assert os.environ['OMP_NUM_THREADS'] and os.environ['OMP_WAIT_POLICY']
"""


def run_sample(
    tmp_path, *arguments: str, sample: str = OPTIONAL, **variables: str
) -> subprocess.CompletedProcess:
    """pytest on one file under the suite's conftest.py."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  real_data:\n  slow:\n")
    (tmp_path / "test_sample.py").write_text(sample)
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("OMP_", "MKL_", "FASTREID_", "PYTEST_")) and k != "CI"
    }
    # the suite's own modules, which pytest finds beside its conftest.py
    inherited["PYTHONPATH"] = str(ROOT / "tests")
    command = [sys.executable, "-m", "pytest", "-rsfE", "-p", "no:cacheprovider", *arguments, str(tmp_path)]
    return subprocess.run(
        command, cwd=tmp_path, env={**inherited, **variables}, capture_output=True, text=True, check=False
    )


def test_real_data_is_skipped_with_a_reason(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    done = run_sample(
        tmp_path, "--only-listed-skips", FASTREID_SSKD_REAL_DATA=nowhere, FASTREID_SSKD_WEIGHTS=nowhere
    )
    shown = done.stdout
    assert "1 passed, 3 skipped" in shown and done.returncode == 0
    assert f"no folder of real images at {nowhere}: set FASTREID_SSKD_REAL_DATA" in shown
    assert f"no folder of pre-trained weights at {nowhere}: set FASTREID_SSKD_WEIGHTS" in shown


def test_real_data_is_used_when_there(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "here").touch()
    shown = run_sample(
        tmp_path, FASTREID_SSKD_REAL_DATA=str(folder), FASTREID_SSKD_WEIGHTS=str(folder)
    ).stdout
    assert "4 passed" in shown


SKIPS = """
import pytest
def test_runs(): pass
def test_inside(): pytest.importorskip('no_such_module')
@pytest.mark.skipif(True, reason='a whim')
def test_marked(): pass
@pytest.fixture
def lacking(): pytest.skip('nothing here')
def test_fixture(lacking): pass
@pytest.mark.skipif(True, reason='no CUDA')
def test_gpu(): pass
def test_page(): pytest.skip('no browser found: install one')
@pytest.mark.xfail(strict=True)
def test_known(): assert False
"""


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_skip_that_is_not_listed_fails(tmp_path, processes):
    done = run_sample(tmp_path, "--only-listed-skips", *processes, sample=SKIPS)
    assert "1 failed, 1 passed, 2 skipped, 1 xfailed, 2 errors" in done.stdout and done.returncode == 1, (
        done.stdout
    )
    assert "test_sample.py:5: this skip is not allowed (Skipped: a whim)" in done.stdout
    assert "list it in tests/conftest.py" in done.stdout


def test_skips_are_free_without_the_option_and_ci_must_have_a_browser(tmp_path):
    done = run_sample(tmp_path, sample=SKIPS)
    assert "1 passed, 5 skipped, 1 xfailed" in done.stdout and done.returncode == 0
    done = run_sample(tmp_path, "--only-listed-skips", "-k", "page", sample=SKIPS, CI="true")
    assert "1 failed" in done.stdout and "(Skipped: no browser found: install one)" in done.stdout


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_file_that_is_skipped_whole_fails(tmp_path, processes):
    sample = "import pytest\npytest.importorskip('no_such_module')\ndef test_never(): pass\n"
    done = run_sample(tmp_path, "--only-listed-skips", *processes, sample=sample)
    assert done.returncode not in (0, 5) and "1 error" in done.stdout
    assert "test_sample.py:2: this skip is not allowed" in done.stdout and "no_such_module" in done.stdout
