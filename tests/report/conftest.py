"""A finished run of the whole pipeline, and its report."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _data_sets(data_sets):
    """Every test here reads the tiny data sets."""


@pytest.fixture(autouse=True)
def _without_umap(monkeypatch):
    """The map is by PCA: UMAP takes half a minute to start."""
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture(scope="session")
def finished(finished_folder):
    """Folder of a finished run."""
    return finished_folder


@pytest.fixture(scope="session")
def report(world, finished):
    """The path of the finished run's report."""
    from fastreid_sskd.report import write_report

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        patch.setitem(sys.modules, "umap", None)
        return write_report(str(finished))
