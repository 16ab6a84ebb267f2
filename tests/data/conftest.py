"""The tiny data sets, for the tests of views, batches and loaders."""

import pytest
from tiny_reid import tiny_adaptation, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of the tiny data sets."""
    return write_world(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def data_sets(world, monkeypatch):
    """FASTREID_DATASETS names the tiny data sets."""
    monkeypatch.setenv("FASTREID_DATASETS", str(world))
    return world


@pytest.fixture
def cfg(data_sets, tmp_path):
    """A tiny adaptation: 2 views of 32 x 16 pixels, batches of 2 identities x 4 images; may be changed."""
    cfg = tiny_adaptation(tmp_path / "out")
    cfg.defrost()
    return cfg
