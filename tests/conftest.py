"""What all tests share.

Thread counts, folders of real images and weights that a machine may have, the skips allowed.
"""

import logging
import os
import runpy
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


def optional_folder(variable: str, default: Path) -> Path:
    """The folder that the variable names, or `default`; a relative name counts from the repository root."""
    return (ROOT / (os.environ.get(variable) or default)).resolve()


REAL_DATA = optional_folder("FASTREID_SSKD_REAL_DATA", ROOT.parent / "shared" / "data")
WEIGHTS = optional_folder("FASTREID_SSKD_WEIGHTS", ROOT.parent / "shared" / "weights")


def _require(folder: Path, what: str, variable: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no folder of {what} at {folder}: set {variable} to run this test")
    return folder


# Beginnings of the reasons for which `make test` lets a test be skipped: what no package index gives.
LISTED_SKIPS = ["no folder of real images", "no folder of pre-trained weights", "no CUDA"]
if sys.version_info < (3, 11):
    LISTED_SKIPS.append("the extra infomap is not installed")  # it has no wheels for this Python
if not os.environ.get("CI"):  # .ci/run brings them; Python, pip and make are all that a user needs
    LISTED_SKIPS += ["no browser found", "no C++ compiler"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test` passes it: every extra is installed there, so that a skip would hide a test."""
    parser.addoption(
        "--only-listed-skips",
        action="store_true",
        help="a skip for a reason not in tests/conftest.py is a failure",
    )


def _refuse_unlisted(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (report.skipped and config.getoption("--only-listed-skips")) or hasattr(report, "wasxfail"):
        return
    file, line, reason = report.longrepr
    if not reason.removeprefix("Skipped: ").startswith(tuple(LISTED_SKIPS)):
        report.outcome = "failed"
        report.longrepr = (
            f"{file}:{line}: this skip is not allowed ({reason}): bring what is missing, or list it in "
            "tests/conftest.py"
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """A test that is skipped."""
    outcome = yield
    _refuse_unlisted(item.config, outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """A file that is skipped as a whole, by `importorskip` at its top."""
    outcome = yield
    _refuse_unlisted(collector.config, outcome.get_result())


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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny data sets."""
    from tiny_reid import write_world

    return write_world(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def data_sets(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FASTREID_DATASETS names the tiny data sets."""
    monkeypatch.setenv("FASTREID_DATASETS", str(world))
    return world


@pytest.fixture(scope="session")
def finished_folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two source models and two epochs of two peers on the tiny target, evaluated after
    each.
    """
    from tiny_reid import tiny_adaptation

    from fastreid_sskd.engine import run

    output = tmp_path_factory.mktemp("runs") / "sskd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        run(tiny_adaptation(output))
    return output


@pytest.fixture
def host_logging():
    """Undoes what the host's `setup_logger` does to the logger of all tests. The log goes to pytest
    meanwhile.
    """
    logger = logging.getLogger("fastreid")
    before = logger.propagate, logger.level, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.propagate, logger.handlers[:] = before[0], before[2]
    logger.setLevel(before[1])  # not an assignment: what is enabled is remembered below it


@pytest.fixture
def run_tool(host_logging, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs tools/NAME.py in this process; returns exit status, stdout and stderr."""

    def call(name: str, *args) -> tuple:
        path = str(ROOT / "tools" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(path, run_name="__main__")
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call
