import logging

import numpy as np
import pytest
from dense_reference import crowd

from fastreid_sskd.clustering import (
    Shard,
    approximate,
    find_candidates,
    lists_from_candidates,
    merge_shards,
    nearest_neighbors,
    pseudo_labels,
)
from fastreid_sskd.clustering import (
    neighbors as neighbors_module,
)
from fastreid_sskd.clustering.features import UnitRows
from fastreid_sskd.clustering.neighbors import recall_of, sample_of

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
    found = lists_from_candidates(FEATURES, 11, merge_shards(parts), need_smallest=True)
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


# ---- ivf, which needs faiss ----------------------------------------------------------------------


SHORT = crowd(seed=1, num_ids=80, dim=16, spread=0.7)


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss")


def test_recall_of_ivf_is_measured_and_logged(caplog, faiss):
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(SHORT, 11, knn="ivf", ivf_lists=40, ivf_probes=6)
    exact = nearest_neighbors(SHORT, 11)
    hits = np.mean([len(set(a) & set(b)) - 1 for a, b in zip(found.indices, exact.indices, strict=True)]) / 10
    assert 0.5 < hits < 1  # it is approximate here, else this test would show nothing
    assert found.recall == pytest.approx(hits, abs=0.05)
    assert f"{found.recall:.4f}" in caplog.text and "6 of 40 cells" in caplog.text
    assert exact.recall is None


def test_what_is_found_is_exact_and_in_order(faiss):
    found = nearest_neighbors(SHORT, 11, knn="ivf", need_smallest=True, ivf_lists=40, ivf_probes=4)
    unit = SHORT.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert (found.indices[:, 0] == np.arange(len(SHORT))).all() and (found.similarities[:, 0] == 1).all()
    exact = (unit[:, None] * unit[found.indices]).sum(2)
    np.testing.assert_allclose(found.similarities, exact, rtol=0, atol=1e-6)
    assert (np.diff(found.similarities, axis=1) <= 0).all()
    assert all(len(set(row)) == 11 for row in found.indices)
    assert (found.smallest >= (unit @ unit.T).min(1) - 1e-6).all()


def test_all_cells_are_an_exact_search(faiss):
    found = nearest_neighbors(SHORT, 11, knn="ivf", need_smallest=True, ivf_lists=8, ivf_probes=8)
    exact = nearest_neighbors(SHORT, 11, need_smallest=True)
    assert np.array_equal(found.indices, exact.indices) and found.recall == 1
    assert np.array_equal(found.smallest, exact.smallest)


@pytest.mark.parametrize("min_recall", [0.6, 0.9, 0.99, 1.0])
def test_probes_are_as_many_as_the_recall_needs(min_recall, caplog, faiss):
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(SHORT, 11, knn="ivf", ivf_lists=64, min_recall=min_recall)
    assert found.recall >= min_recall - 0.03
    probes = int(caplog.text.split(" of 64 cells")[0].split()[-1])
    if min_recall < 1:
        less = nearest_neighbors(SHORT, 11, knn="ivf", ivf_lists=64, ivf_probes=max(probes // 2, 1))
        assert probes == 1 or less.recall < min_recall + 0.03


def test_low_recall_is_warned_of(caplog, faiss):
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(SHORT, 11, knn="ivf", ivf_lists=64, ivf_probes=1)
    assert found.recall < 0.9
    assert "below SSKD.CLUSTER.MIN_RECALL 0.98" in caplog.text and "IVF_PROBES" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        nearest_neighbors(SHORT, 11, knn="ivf", ivf_lists=64, ivf_probes=1, min_recall=0.05)
    assert not caplog.records


def test_short_lists_are_filled_by_an_exact_search(faiss):
    # cells of about 4 images, one searched: fewer candidates than neighbours
    found = nearest_neighbors(SHORT, 21, knn="ivf", ivf_lists=300, ivf_probes=1)
    exact = nearest_neighbors(SHORT, 21)
    short = find_candidates(SHORT, 21, knn="ivf", ivf_lists=300, ivf_probes=1).indices
    short = (short >= 0).sum(1) < 20
    assert short.sum() > 50 and (found.indices >= 0).all()
    assert np.array_equal(found.indices[short], exact.indices[short])


def test_duplicates_and_few_images(faiss):
    for features in (np.ones((50, 5), np.float32), SHORT[:2], np.repeat(SHORT[:4], 20, axis=0)):
        found = nearest_neighbors(features, 6, knn="ivf", need_smallest=True)
        exact = nearest_neighbors(features, 6, need_smallest=True)
        assert (found.indices[:, 0] == np.arange(len(features))).all()
        np.testing.assert_allclose(found.similarities, exact.similarities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("of", [2, 4])
def test_shards_of_ivf_give_the_lists_of_one_search(of, faiss):
    options = {"knn": "ivf", "ivf_lists": 40, "ivf_probes": 3, "need_smallest": True}
    parts = [find_candidates(SHORT, 11, shard=Shard(number, of), **options) for number in range(of)]
    found = lists_from_candidates(SHORT, 11, merge_shards(parts), need_smallest=True)
    expected = nearest_neighbors(SHORT, 11, **options)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)
    assert found.recall == expected.recall < 1


def test_labels_with_it(faiss):
    exact = pseudo_labels(SHORT, k1=10, k2=3, pairs_per_image=3)
    found = pseudo_labels(SHORT, k1=10, k2=3, pairs_per_image=3, knn="ivf", ivf_lists=20, ivf_probes=20)
    assert exact.recall is None and found.recall == 1
    assert np.array_equal(found.labels, exact.labels)


def test_recall_of_ties():
    exact = np.array([[1, 0.9, 0.8, 0.8]], dtype=np.float32)
    assert recall_of(np.array([[1, 0.9, 0.8, 0.8]], dtype=np.float32), exact) == 1
    assert recall_of(np.array([[1, 0.9, 0.8, 0.7]], dtype=np.float32), exact) == pytest.approx(2 / 3)
    assert recall_of(np.array([[1, 0.1, 0.1, 0.1]], dtype=np.float32), exact) == 0
    assert recall_of(np.ones((3, 1), np.float32), np.ones((3, 1), np.float32)) == 1


def test_samples():
    assert sample_of(5, 0).tolist() == [0, 1, 2, 3, 4]
    first, other = sample_of(10_000, 0), sample_of(10_000, 1)
    assert len(first) == neighbors_module.SAMPLE_ROWS and (np.diff(first) > 0).all()
    assert np.array_equal(first, sample_of(10_000, 0)) and len(set(first) & set(other)) < 30
