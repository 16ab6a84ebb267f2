"""Distances in blocks against the formulas and the host's matrix."""

import numpy as np
import pytest
import torch

from fastreid_sskd.evaluation import ranking
from fastreid_sskd.evaluation.ranking import distance_blocks


def features(count, dim=16, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 2


def whole(*arguments):
    """All blocks one below the other; each is copied before the next overwrites it."""
    return np.concatenate([block.copy() for block in distance_blocks(*arguments)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_are_the_hosts_matrix(metric, rows, monkeypatch):
    from fastreid.utils.compute_dist import build_dist

    query, gallery = features(10), features(7, seed=1)
    before = query.clone(), gallery.clone()
    monkeypatch.setattr(ranking, "BLOCK_BYTES", rows * 7 * 4)
    blocks = [block.shape for block in distance_blocks(query, gallery, metric)]
    assert blocks == [(min(rows, 10 - at), 7) for at in range(0, 10, rows)]
    found = whole(query, gallery, metric)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, build_dist(query, gallery, metric), rtol=1e-5, atol=1e-5)
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


def test_formulas():
    query, gallery = features(3), features(5, seed=1)
    for i in range(3):
        for j in range(5):
            a, b = query[i].double(), gallery[j].double()
            assert whole(query, gallery, "cosine")[i, j] == pytest.approx(float(1 - a @ b / a.norm() / b.norm()), abs=1e-6)
            assert whole(query, gallery, "euclidean")[i, j] == pytest.approx(float(((a - b) ** 2).sum()), rel=1e-5)


def test_a_block_has_at_least_one_row(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 1)
    assert whole(features(4), features(6, seed=1), "cosine").shape == (4, 6)


@pytest.mark.parametrize("num_query, num_gallery", [(0, 3), (2, 0), (0, 0)])
def test_empty_sides(num_query, num_gallery):
    for metric in ("cosine", "euclidean"):
        for block in distance_blocks(features(num_query), features(num_gallery), metric):
            assert block.shape == (num_query, num_gallery)


def test_another_metric():
    with pytest.raises(ValueError, match="one of cosine, euclidean, got 'jaccard'"):
        next(distance_blocks(features(2), features(2), "jaccard"))
