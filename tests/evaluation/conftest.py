"""The tiny data sets and a tiny model, for the tests of the evaluation."""

import pytest
import torch
from fastreid.modeling import build_model
from tiny_reid import tiny_adaptation


@pytest.fixture
def cfg(data_sets, tmp_path):
    """A tiny adaptation with two peers; may be changed."""
    cfg = tiny_adaptation(tmp_path / "out")
    cfg.defrost()
    return cfg


@pytest.fixture
def model(cfg):
    """Two peers that differ, with random weights, in training mode."""
    torch.manual_seed(0)
    return build_model(cfg)
