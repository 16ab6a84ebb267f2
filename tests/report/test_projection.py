"""The map of features."""

import importlib.util

import numpy as np
import pytest
import torch

from fastreid_sskd.report.projection import project


@pytest.fixture
def without_umap(monkeypatch):
    true = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "umap" else true(name))


def test_pca_finds_the_plane_of_the_points(without_umap):
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * [3.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    features = plane @ axes.T + 5.0
    before = features.copy()
    found, method = project(features)
    assert method == "PCA" and np.array_equal(features, before)
    # distances in the plane are kept, the first axis has the larger variance
    assert np.allclose(
        np.linalg.norm(found[:, None] - found, axis=2), np.linalg.norm(plane[:, None] - plane, axis=2)
    )
    assert found.var(0)[0] > found.var(0)[1] and abs(found.mean(0)).max() < 1e-9


@pytest.mark.parametrize(
    "features", [np.zeros((1, 4)), np.ones((3, 1)), np.zeros((5, 3)), np.array([[0.0, 1.0], [1.0, 0.0]])]
)
def test_few_points_and_few_dimensions(without_umap, features):
    found, _ = project(features)
    assert found.shape == (len(features), 2) and np.isfinite(found).all()


def test_umap_where_it_is_installed():
    pytest.importorskip("umap", reason="umap-learn is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, method = project(np.random.default_rng(0).random((30, 5)))
        assert torch.get_num_threads() == 1  # which the bits of a later training depend on
    finally:
        torch.set_num_threads(threads)
    assert method == "UMAP" and found.shape == (30, 2)
