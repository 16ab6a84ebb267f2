import numpy as np
import pytest
import torch
from dense_reference import crowd, to_dense

from fastreid_sskd.clustering import jaccard as jaccard_module
from fastreid_sskd.clustering import nearest_neighbors
from fastreid_sskd.clustering.features import UnitRows
from fastreid_sskd.clustering.jaccard import Encoding, encode, expanded_reciprocal_sets


def encoding_of(features):
    neighbors = nearest_neighbors(features, 9, need_smallest=True)
    sets = expanded_reciprocal_sets(UnitRows.from_features(features), neighbors, 9, 5)
    return encode(sets, neighbors.indices, 4, 2 - 2 * neighbors.smallest.astype(np.float64))


def dense_from_encoding(encoding):
    """J from the integers, one pair at a time."""
    count = len(encoding.indptr) - 1
    v = np.zeros((count, count), dtype=np.int64)
    for i in range(count):
        row = slice(encoding.indptr[i], encoding.indptr[i + 1])
        assert len(set(encoding.indices[row])) == row.stop - row.start
        v[i, encoding.indices[row]] = encoding.values[row]
    assert (v.sum(1) == encoding.total).all()
    shared = np.array([[int(np.minimum(v[i], v[j]).sum()) for j in range(count)] for i in range(count)])
    return ((2 * encoding.total - 2 * shared) / (2 * encoding.total - shared)).astype(np.float32)


@pytest.mark.parametrize("rows_per_task", [1, 7, 10_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_distances_are_exact_whatever_the_tasks(rows_per_task, threads, monkeypatch):
    monkeypatch.setattr(jaccard_module, "ROWS_PER_TASK", rows_per_task)
    encoding = encoding_of(crowd(seed=1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = jaccard_module.pair_distances(encoding).symmetric()
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(to_dense(found), dense_from_encoding(encoding))


@pytest.mark.parametrize("rows_per_task", [1, 7, 10_000])
@pytest.mark.parametrize("keep", [1, 5, 60, 500, 100_000])
def test_keeping_the_smallest(keep, rows_per_task, monkeypatch):
    monkeypatch.setattr(jaccard_module, "ROWS_PER_TASK", rows_per_task)
    encoding = encoding_of(crowd(seed=2))
    everything = to_dense(jaccard_module.pair_distances(encoding).symmetric())
    upper = everything[np.triu_indices(len(everything), 1)]
    nonzero = np.sort(upper[(upper > 0) & (upper < 1)])
    kept = jaccard_module.pair_distances(encoding, keep_smallest=keep)
    limit = nonzero[min(keep, len(nonzero)) - 1]
    assert np.array_equal(np.sort(kept.data), np.sort(upper[upper <= limit]))
    assert np.array_equal(to_dense(kept.symmetric()), np.where(everything <= limit, everything, 1))


def test_a_dense_block_makes_the_buffer_grow(monkeypatch):
    # every row holds the same few columns, so that all pairs share support: more pairs than a task's first buffer
    count, width = 1200, 5
    values = np.random.default_rng(0).multinomial(1000, [1 / width] * width, count).astype(np.int32)
    encoding = Encoding(
        np.arange(count + 1, dtype=np.int64) * width,
        np.tile(np.arange(width, dtype=np.int32), count),
        values.ravel(),
        1000,
    )
    found = jaccard_module.pair_distances(encoding)
    assert len(found.data) == count * (count - 1) // 2 > count + 2**18
    shared = np.minimum(values[:, None], values[None]).sum(2)
    expected = ((2000 - 2 * shared) / (2000 - shared)).astype(np.float32)
    np.fill_diagonal(expected, 0)
    assert np.array_equal(to_dense(found.symmetric()), expected)


def test_limit_of_the_symmetric_matrix():
    found = jaccard_module.pair_distances(encoding_of(crowd(seed=3)))
    everything = to_dense(found.symmetric())
    limit = float(np.median(found.data))
    near = found.symmetric(limit)
    assert near.has_sorted_indices and (np.diff(near.indptr) >= 1).all()
    assert np.array_equal(to_dense(near), np.where(everything <= limit, everything, 1))


def test_a_distance_that_rounds_to_one_is_not_stored():
    # rows 0 and 1 share one part in 2^30, rows 0 and 2 a hundred
    total = 2**30
    encoding = Encoding(
        np.array([0, 3, 5, 7, 8, 9]),
        np.array([0, 1, 2, 1, 3, 2, 4, 3, 4], dtype=np.int32),
        np.array([total - 101, 1, 100, 1, total - 1, 100, total - 100, total, total], dtype=np.int32),
        total,
    )
    found = jaccard_module.pair_distances(encoding)
    assert found.indptr.tolist() == [0, 1, 2, 3, 3, 3]
    assert found.indices.tolist() == [2, 3, 4]
    assert found.data[0] == np.float32(1 - 100 / (2 * total - 100)) < 1


@pytest.mark.parametrize("seed", range(3))
def test_every_distance_as_the_limit(seed):
    """A limit that pairs lie on, as eps may: the same as a filter of all pairs, whose distances are rounded to float32."""
    encoding = encoding_of(crowd(seed=seed))
    whole = jaccard_module.pair_distances(encoding)
    for limit in np.unique(whole.data):
        kept = jaccard_module.pair_distances(encoding, max_distance=float(limit))
        assert len(kept.data) == (whole.data <= limit).sum(), limit
