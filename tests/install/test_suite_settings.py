"""tests/conftest.py: optional folders are skipped with a reason, thread counts are set."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_sample(tmp_path, variables: dict) -> str:
    """pytest's report on one test each of the marker and the fixtures, under the suite's conftest.py."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  real_data:\n  slow:\n")
    (tmp_path / "test_sample.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.real_data\n"
        "def test_marker(): pass\n"
        "def test_images(real_data): assert (real_data / 'here').exists()\n"
        "def test_weights(weights): assert (weights / 'here').exists()\n"
        "def test_threads(): assert os.environ['OMP_NUM_THREADS'] and os.environ['OMP_WAIT_POLICY']\n"
    )
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "FASTREID_", "PYTEST_"))
    }
    inherited["PYTHONPATH"] = str(ROOT / "tests")  # the suite's own modules, which pytest finds beside its conftest.py
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**inherited, **variables}, capture_output=True, text=True, check=False
    )
    return done.stdout


def test_real_data_is_skipped_with_a_reason(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    shown = run_sample(tmp_path, {"FASTREID_SSKD_REAL_DATA": nowhere, "FASTREID_SSKD_WEIGHTS": nowhere})
    assert "1 passed, 3 skipped" in shown
    assert f"no folder of real images at {nowhere}: set FASTREID_SSKD_REAL_DATA" in shown
    assert f"no folder of pre-trained weights at {nowhere}: set FASTREID_SSKD_WEIGHTS" in shown


def test_real_data_is_used_when_there(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "here").touch()
    shown = run_sample(
        tmp_path, {"FASTREID_SSKD_REAL_DATA": str(folder), "FASTREID_SSKD_WEIGHTS": str(folder)}
    )
    assert "4 passed" in shown
