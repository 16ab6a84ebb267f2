"""The tiny data sets, a finished run of the whole pipeline on them, and its report."""

import pytest
from tiny_reid import tiny_adaptation, write_world

from fastreid_sskd.engine import run


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of the tiny data sets."""
    return write_world(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def data_sets(world, monkeypatch):
    """FASTREID_DATASETS names the tiny data sets."""
    monkeypatch.setenv("FASTREID_DATASETS", str(world))


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """Folder of a run of two source models and two epochs of two peers on the target."""
    output = tmp_path_factory.mktemp("runs") / "sskd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        run(tiny_adaptation(output))
    return output


@pytest.fixture(scope="session")
def report(world, finished):
    """The path of the finished run's report."""
    from fastreid_sskd.report import write_report

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        return write_report(str(finished))
