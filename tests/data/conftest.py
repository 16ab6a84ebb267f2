"""The tiny data sets, for the tests of views, batches and loaders."""

import pytest
from tiny_reid import tiny_adaptation


@pytest.fixture
def cfg(data_sets, tmp_path):
    """A tiny adaptation: 2 views of 32 x 16 pixels, batches of 2 identities x 4 images; may be changed."""
    cfg = tiny_adaptation(tmp_path / "out")
    cfg.defrost()
    return cfg
