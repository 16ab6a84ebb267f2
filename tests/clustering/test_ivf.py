import logging

import numpy as np
import pytest
from dense_reference import crowd

from fastreid_sskd.clustering import ApproximateOptions as Options
from fastreid_sskd.clustering import (
    Share,
    knn_share,
    lists_from_candidates,
    merge_shares,
    nearest_neighbors,
    pseudo_labels,
)
from fastreid_sskd.clustering import (
    neighbors as neighbors_module,
)
from fastreid_sskd.clustering.neighbors import recall_of, sample_of

pytest.importorskip("faiss")

FEATURES = crowd(seed=1, num_ids=80, dim=16, spread=0.7)


def test_recall_is_measured_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 11, backend="ivf", approximate=Options(lists=40, probes=6))
    exact = nearest_neighbors(FEATURES, 11)
    hits = np.mean([len(set(a) & set(b)) - 1 for a, b in zip(found.indices, exact.indices, strict=True)]) / 10
    assert 0.5 < hits < 1  # it is approximate here, else this test would show nothing
    assert found.recall == pytest.approx(hits, abs=0.05)
    assert f"{found.recall:.4f}" in caplog.text and "6 of 40 cells" in caplog.text
    assert exact.recall is None


def test_what_is_found_is_exact_and_in_order():
    found = nearest_neighbors(FEATURES, 11, backend="ivf", need_smallest=True, approximate=Options(lists=40, probes=4))
    unit = FEATURES.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert (found.indices[:, 0] == np.arange(len(FEATURES))).all() and (found.similarities[:, 0] == 1).all()
    exact = (unit[:, None] * unit[found.indices]).sum(2)
    np.testing.assert_allclose(found.similarities, exact, rtol=0, atol=1e-6)
    assert (np.diff(found.similarities, axis=1) <= 0).all()
    assert all(len(set(row)) == 11 for row in found.indices)
    assert (found.smallest >= (unit @ unit.T).min(1) - 1e-6).all()


def test_all_cells_are_an_exact_search():
    found = nearest_neighbors(FEATURES, 11, backend="ivf", need_smallest=True, approximate=Options(lists=8, probes=8))
    exact = nearest_neighbors(FEATURES, 11, need_smallest=True)
    assert np.array_equal(found.indices, exact.indices) and found.recall == 1
    assert np.array_equal(found.smallest, exact.smallest)


@pytest.mark.parametrize("min_recall", [0.6, 0.9, 0.99, 1.0])
def test_probes_are_as_many_as_the_recall_needs(min_recall, caplog):
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 11, backend="ivf", approximate=Options(lists=64, min_recall=min_recall))
    assert found.recall >= min_recall - 0.03
    probes = int(caplog.text.split(" of 64 cells")[0].split()[-1])
    if min_recall < 1:
        less = nearest_neighbors(FEATURES, 11, backend="ivf", approximate=Options(lists=64, probes=max(probes // 2, 1)))
        assert probes == 1 or less.recall < min_recall + 0.03


def test_low_recall_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 11, backend="ivf", approximate=Options(lists=64, probes=1))
    assert found.recall < 0.9
    assert "below SSKD.CLUSTER.MIN_RECALL 0.98" in caplog.text and "IVF_PROBES" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        nearest_neighbors(FEATURES, 11, backend="ivf", approximate=Options(lists=64, probes=1, min_recall=0.05))
    assert not caplog.records


def test_short_lists_are_filled_by_an_exact_search():
    # cells of about 4 images, one searched: fewer candidates than neighbours
    found = nearest_neighbors(FEATURES, 21, backend="ivf", approximate=Options(lists=300, probes=1))
    exact = nearest_neighbors(FEATURES, 21)
    short = knn_share(FEATURES, 21, backend="ivf", approximate=Options(lists=300, probes=1)).indices
    short = (short >= 0).sum(1) < 20
    assert short.sum() > 50 and (found.indices >= 0).all()
    assert np.array_equal(found.indices[short], exact.indices[short])


def test_duplicates_and_few_images():
    for features in (np.ones((50, 5), np.float32), FEATURES[:2], np.repeat(FEATURES[:4], 20, axis=0)):
        found = nearest_neighbors(features, 6, backend="ivf", need_smallest=True)
        exact = nearest_neighbors(features, 6, need_smallest=True)
        assert (found.indices[:, 0] == np.arange(len(features))).all()
        np.testing.assert_allclose(found.similarities, exact.similarities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("of", [2, 4])
def test_shares_give_the_lists_of_one_search(of):
    options = {"backend": "ivf", "approximate": Options(lists=40, probes=3), "need_smallest": True}
    parts = [knn_share(FEATURES, 11, share=Share(number, of), **options) for number in range(of)]
    found = lists_from_candidates(FEATURES, 11, merge_shares(parts), need_smallest=True)
    expected = nearest_neighbors(FEATURES, 11, **options)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)
    assert found.recall == expected.recall < 1


def test_labels_with_it():
    exact = pseudo_labels(FEATURES, k1=10, k2=3, pairs_per_image=3)
    found = pseudo_labels(FEATURES, k1=10, k2=3, pairs_per_image=3, knn="ivf", approximate=Options(lists=20, probes=20))
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


@pytest.mark.parametrize(
    "options", [{"reduced_dim": -1}, {"lists": -1}, {"probes": -1}, {"min_recall": 0}, {"min_recall": 1.1}]
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="IVF_LISTS and IVF_PROBES must be"):
        Options(**options)
