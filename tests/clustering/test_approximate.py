import logging
from dataclasses import replace

import numpy as np
import pytest
from dense_reference import crowd

from fastreid_sskd.clustering import (
    KNN_BACKENDS,
    Shard,
    approximate,
    find_candidates,
    lists_from_candidates,
    merge_shards,
    nearest_neighbors,
    pseudo_labels,
)
from fastreid_sskd.clustering.features import UnitRows
from fastreid_sskd.clustering.neighbors import recall_of

FEATURES = crowd(seed=1, num_ids=80, dim=48, spread=0.7)


def test_recall_of_reduced_is_measured_and_logged(caplog, monkeypatch):
    monkeypatch.setattr(approximate, "MORE_CANDIDATES", 0)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 11, knn="reduced", reduced_dim=12)
    exact = nearest_neighbors(FEATURES, 11)
    hits = np.mean([len(set(a) & set(b)) - 1 for a, b in zip(found.indices, exact.indices, strict=True)]) / 10
    assert 0.3 < hits < 0.95 and found.recall == pytest.approx(hits, abs=0.05)
    assert f"finds only {found.recall:.4f}" in caplog.text and "REDUCED_DIM" in caplog.text


def test_more_candidates_find_what_the_projection_hid():
    options = {"knn": "reduced", "reduced_dim": 24}
    found = nearest_neighbors(FEATURES, 11, **options)
    assert found.recall > 0.97
    unit = FEATURES.astype(np.float64) / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    np.testing.assert_allclose(
        found.similarities, (unit[:, None] * unit[found.indices]).sum(2), rtol=0, atol=1e-6
    )
    assert (np.diff(found.similarities, axis=1) <= 0).all()


def test_features_of_low_rank_lose_nothing():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 6)) @ rng.normal(size=(6, 40))).astype(np.float32)
    options = {"knn": "reduced", "need_smallest": True, "reduced_dim": 6}
    found, exact = (
        nearest_neighbors(features, 9, **options),
        nearest_neighbors(features, 9, need_smallest=True),
    )
    assert np.array_equal(found.indices, exact.indices) and found.recall == 1
    assert np.array_equal(found.smallest, exact.smallest)
    projected = approximate._projected(UnitRows.from_features(features), 6).tensor.numpy().astype(np.float64)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(projected @ projected.T, unit @ unit.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [48, 100])
def test_nothing_to_reduce_is_an_exact_search(dim, caplog):
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 11, knn="reduced", reduced_dim=dim)
    assert np.array_equal(found.indices, nearest_neighbors(FEATURES, 11).indices)
    assert found.recall is None and "searching exactly" in caplog.text


def test_one_column_and_few_images():
    for features in (np.array([[1], [2], [-1]], np.float32), FEATURES[:2], np.ones((40, 6), np.float32)):
        found = nearest_neighbors(features, 4, knn="reduced", need_smallest=True)
        exact = nearest_neighbors(features, 4, need_smallest=True)
        assert (found.indices[:, 0] == np.arange(len(features))).all()
        np.testing.assert_allclose(found.similarities, exact.similarities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("of", [2, 4])
def test_shards_of_reduced_give_the_lists_of_one_search(of):
    options = {"knn": "reduced", "reduced_dim": 12, "need_smallest": True}
    parts = [find_candidates(FEATURES, 11, shard=Shard(number, of), **options) for number in range(of)]
    found = lists_from_candidates(FEATURES, 11, merge_shards(parts))
    expected = nearest_neighbors(FEATURES, 11, **options)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)


def test_input_is_unchanged_and_its_scale_does_not_matter():
    scaled = FEATURES * np.float32(4)
    before = scaled.copy()
    options = {"knn": "reduced", "reduced_dim": 12}
    found = nearest_neighbors(scaled, 11, **options)
    assert np.array_equal(before, scaled)
    plain = nearest_neighbors(FEATURES, 11, **options)
    assert (found.indices == plain.indices).mean() > 0.99


def test_short_lists_are_filled_by_an_exact_search(monkeypatch):
    """Of an approximate search that finds fewer candidates than neighbors."""

    def sparing(rows, search):
        found = KNN_BACKENDS["torch"](rows, search)
        found.indices[::2, 5:], found.approximate[::2, 5:] = -1, -np.inf
        return replace(found, error=None)

    monkeypatch.setitem(KNN_BACKENDS, "sparing", sparing)
    found, exact = nearest_neighbors(FEATURES, 21, knn="sparing"), nearest_neighbors(FEATURES, 21)
    assert np.array_equal(found.indices, exact.indices) and found.recall == 1


def test_low_recall_is_warned_of(caplog):
    options = {"knn": "reduced", "reduced_dim": 4}
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 11, **options)
        assert found.recall < 0.98 and "below SSKD.CLUSTER.MIN_RECALL 0.98" in caplog.text
        caplog.clear()
        nearest_neighbors(FEATURES, 11, min_recall=0.01, **options)
    assert f"recall at 11 is {found.recall:.4f}" in caplog.text and "below" not in caplog.text


def test_labels_with_it():
    exact = pseudo_labels(FEATURES, k1=10, k2=3, pairs_per_image=3)
    found = pseudo_labels(FEATURES, k1=10, k2=3, pairs_per_image=3, knn="reduced", reduced_dim=47)
    assert exact.recall is None and found.recall == 1
    assert np.array_equal(found.labels, exact.labels)


def test_recall_of_ties():
    exact = np.array([[1, 0.9, 0.8, 0.8]], dtype=np.float32)
    assert recall_of(np.array([[1, 0.9, 0.8, 0.8]], dtype=np.float32), exact) == 1
    assert recall_of(np.array([[1, 0.9, 0.8, 0.7]], dtype=np.float32), exact) == pytest.approx(2 / 3)
    assert recall_of(np.array([[1, 0.1, 0.1, 0.1]], dtype=np.float32), exact) == 0
    assert recall_of(np.ones((3, 1), np.float32), np.ones((3, 1), np.float32)) == 1
