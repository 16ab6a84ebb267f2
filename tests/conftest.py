"""What all tests share: thread counts, and the folders of real images and weights that a machine may have."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _available_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# The OpenMP runtimes read these when they are loaded: here no test has imported torch, faiss or numba yet.
os.environ.setdefault("OMP_NUM_THREADS", str(_available_cores()))
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "torch" in sys.modules:  # a pytest plugin was first
    sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))

import fastreid_sskd  # noqa: F401  mends the host, so that any one test file may import fastreid first


def optional_folder(variable: str, default: Path) -> Path:
    """The folder that the variable names, or `default`; a relative name counts from the repository root."""
    return (ROOT / (os.environ.get(variable) or default)).resolve()


REAL_DATA = optional_folder("FASTREID_SSKD_REAL_DATA", ROOT.parent / "shared" / "data")
WEIGHTS = optional_folder("FASTREID_SSKD_WEIGHTS", ROOT.parent / "shared" / "weights")


def _require(folder: Path, what: str, variable: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no folder of {what} at {folder}: set {variable} to run this test")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test that uses the fixture the marker too, so that `-m "not real_data"` leaves it out."""
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that carry the marker without asking for the folder's path."""
    if item.get_closest_marker("real_data"):
        _require(REAL_DATA, "real images", "FASTREID_SSKD_REAL_DATA")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real re-ID images, to be used as FASTREID_DATASETS; skips the test where there is none."""
    return _require(REAL_DATA, "real images", "FASTREID_SSKD_REAL_DATA")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Folder of pre-trained backbone weights; skips the test where there is none."""
    return _require(WEIGHTS, "pre-trained weights", "FASTREID_SSKD_WEIGHTS")
