import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_reference import cosines, crowd, dense_jaccard, lattice, to_dense

from fastreid_sskd.clustering import jaccard as jaccard_module
from fastreid_sskd.clustering import jaccard_distance, nearest_neighbors
from fastreid_sskd.clustering.features import UnitRows
from fastreid_sskd.clustering.jaccard import Encoding, encode, expanded_reciprocal_sets

GOLDEN = sorted((Path(__file__).resolve().parent.parent / "golden").glob("cluster_*.npz"))
VARIANTS = ("sskd", "faiss")


def test_golden_files_are_there():
    assert len(GOLDEN) == 4


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_distances(path):
    golden = np.load(path)
    distance = jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    np.testing.assert_allclose(to_dense(distance), golden["jaccard"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k1, k2", [(20, 6), (5, 3), (7, 2), (9, 1), (10, 12), (1, 1), (2, 2), (30, 6)])
def test_equals_the_dense_formulas(variant, k1, k2):
    features = crowd(seed=k1 + 100 * k2)
    assert len(features) > k1
    distance = jaccard_distance(features, k1, k2, variant=variant)
    np.testing.assert_allclose(
        to_dense(distance), dense_jaccard(features, k1, k2, variant), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("k1, k2", [(20, 6), (7, 1), (9, 12)])
def test_faiss_variant_equals_the_host(k1, k2):
    pytest.importorskip("faiss")
    utils = pytest.importorskip("fastreid.utils")
    # its file once more under another name: the plugin may have replaced the function in the module itself
    path = Path(utils.__file__).parent / "compute_dist.py"
    spec = importlib.util.spec_from_file_location("fastreid.utils._compute_dist_of_the_host", path)
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    features = crowd(seed=k1, duplicated=0)  # the order of exact duplicates is faiss's own
    dense = host.compute_jaccard_distance(torch.from_numpy(features), k1=k1, k2=k2, search_option=3)
    distance = jaccard_distance(features, k1, k2, variant="faiss")
    np.testing.assert_allclose(to_dense(distance), dense, rtol=0, atol=2e-6)


def duplicates():
    """31 equal rows, for lists of 9."""
    rows = np.random.default_rng(6).normal(size=(40, 16)).astype(np.float32)
    return np.concatenate([rows, np.repeat(rows[3:4], 30, 0)])


ODD = {f"ties {seed}": (lattice(seed), 8, 4) for seed in range(3)}  # ordered by index
ODD |= {f"{count} images": (crowd(seed=4)[:count], 20, 6) for count in (21, 22, 23)}  # barely above k1
ODD |= {"duplicates": (duplicates(), 8, 3), "equal": (np.full((30, 8), 0.37, dtype=np.float32), 5, 3)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ODD)
def test_odd_images_equal_the_dense_formulas(case, variant):
    features, k1, k2 = ODD[case]
    assert not case.startswith("ties") or len(np.unique(cosines(features))) < 12
    distance = jaccard_distance(features, k1, k2, variant=variant)
    expected = dense_jaccard(features, k1, k2, variant)
    np.testing.assert_allclose(to_dense(distance), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [2, 3, 20])
def test_fewer_images_than_the_lists_hold_warns_and_cuts_them(variant, count):
    features = crowd(seed=5)[:count]
    with pytest.warns(UserWarning, match=f"{count} images are not more than k1=20.*SSKD.CLUSTER.K1"):
        distance = jaccard_distance(features, 20, 6, variant=variant)
    dense = dense_jaccard(features, 20, 6, variant)
    np.testing.assert_allclose(to_dense(distance), dense, rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_duplicates_than_a_list_holds(variant):
    rng = np.random.default_rng(6)
    features = rng.normal(size=(40, 16)).astype(np.float32)
    features = np.concatenate([features, np.repeat(features[3:4], 30, 0)])  # 31 equal rows, lists of 9
    distance = jaccard_distance(features, 8, 3, variant=variant)
    np.testing.assert_allclose(to_dense(distance), dense_jaccard(features, 8, 3, variant), rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_rows_equal_is_finite(variant):
    features = np.full((30, 8), 0.37, dtype=np.float32)
    distance = jaccard_distance(features, 5, 3, variant=variant)
    assert np.isfinite(distance.data).all()
    np.testing.assert_allclose(to_dense(distance), dense_jaccard(features, 5, 3, variant), rtol=0, atol=2e-6)


def test_layout_of_the_sparse_matrix():
    features = crowd(seed=7)
    distance = jaccard_distance(features, 6, 2)
    assert distance.shape == (len(features),) * 2 and distance.dtype == np.float32
    for i in range(len(features)):
        columns = distance.indices[distance.indptr[i] : distance.indptr[i + 1]]
        assert (np.diff(columns) > 0).all()
        assert i in columns
    assert (distance.diagonal() == 0).all()
    assert ((distance.data >= 0) & (distance.data < 1)).all()
    assert (to_dense(distance) == to_dense(distance).T).all()


def test_equal_images_are_stored_at_distance_zero():
    # two images whose whole neighbour lists are the same: the pair must stay in the matrix as an explicit
    # zero
    features = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    distance = jaccard_distance(features, 2, 3)
    assert np.array_equal(to_dense(distance), 1 - np.kron(np.eye(4), np.ones((3, 3))))
    assert distance.nnz == 4 * 9


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k2", [2, 3, 4, 5, 6])
def test_distances_of_images_that_share_whole_lists_are_exact(variant, k2):
    # Satellites of a tight group see the group in the same order and are nobody's reciprocal neighbour: they
    # share k2 - 1 of their k2 lists and nothing else, so J = 1 - m / (2 - m), m = (k2 - 1) / k2. An eps
    # chosen there must not be decided by rounding.
    axes = np.eye(14)
    group = [axes[0] + 0.05 * step * axes[step] for step in range(8)]
    satellites = [axes[0] + (3 + 0.1 * s) * axes[8 + s] for s in range(6)]
    features = np.array(group + satellites)
    distance = to_dense(jaccard_distance(features, 7, k2, variant=variant))[8:, 8:]
    expected = np.float32(2 / (k2 + 1))
    assert (distance[~np.eye(6, dtype=bool)] == expected).all()
    dense = dense_jaccard(features, 7, k2, variant)[8:, 8:]
    np.testing.assert_allclose(distance, dense, rtol=0, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_the_images_does_not_matter(variant):
    features = crowd(seed=9, duplicated=0)
    order = np.random.default_rng(0).permutation(len(features))
    straight = to_dense(jaccard_distance(features, 9, 4, variant=variant))
    shuffled = to_dense(jaccard_distance(features[order], 9, 4, variant=variant))
    assert np.array_equal(straight[np.ix_(order, order)], shuffled)


def test_threads_do_not_matter():
    features = crowd(seed=10, num_ids=60)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = jaccard_distance(features)
        torch.set_num_threads(3)
        three = jaccard_distance(features)
    finally:
        torch.set_num_threads(threads)
    assert (one != three).nnz == 0


def test_max_distance_keeps_what_is_within():
    features = crowd(seed=11)
    full = jaccard_distance(features)
    near = jaccard_distance(features, max_distance=0.5)
    dense = to_dense(full)
    assert 0 < near.nnz < full.nnz
    assert np.array_equal(to_dense(near), np.where(dense <= 0.5, dense, 1))


def test_inputs_of_any_kind_give_the_same_and_are_left_alone(tmp_path):
    # exact in float16, so that every dtype holds the same numbers; not unit norm
    features = np.round(crowd(seed=12) * 64).astype(np.float32) / 8
    expected = jaccard_distance(features)
    np.save(tmp_path / "features.npy", features)
    kinds = {
        "float16": features.astype(np.float16),
        "float64": features.astype(np.float64),
        "fortran": np.asfortranarray(features),
        "strided": np.repeat(features, 2, axis=1)[:, ::2],
        "read only": np.load(tmp_path / "features.npy", mmap_mode="r"),
        "torch": torch.from_numpy(features.copy()),
        "torch half": torch.from_numpy(features).half(),
        "torch with gradient": torch.from_numpy(features.copy()).requires_grad_(),
        "torch transposed": torch.from_numpy(features.T.copy()).T,
    }
    for kind, given in kinds.items():
        before = given.detach().clone() if isinstance(given, torch.Tensor) else given.copy()
        result = jaccard_distance(given)
        assert np.array_equal(result.data, expected.data), kind
        assert np.array_equal(result.indices, expected.indices), kind
        assert (before == given).all(), kind
        assert given.dtype == before.dtype, kind


@pytest.mark.parametrize(
    "features, message",
    [
        (np.ones((1, 4)), "at least 2 images, got 1"),
        (np.ones((0, 4)), "at least 2 images, got 0"),
        (np.ones(4), "must be .N, d."),
        (np.ones((4, 0)), "must be .N, d."),
    ],
)
def test_shapes_that_cannot_be_clustered(features, message):
    with pytest.raises(ValueError, match=message):
        jaccard_distance(features)


def test_names_and_numbers_out_of_range():
    features = crowd(seed=16)
    with pytest.raises(ValueError, match="SSKD.CLUSTER.VARIANT must be one of sskd, faiss"):
        jaccard_distance(features, variant="mmt")
    with pytest.raises(ValueError, match="SSKD.CLUSTER.KNN is one of auto, torch"):
        jaccard_distance(features, knn="annoy")
    with pytest.raises(ValueError, match="K1 must be a number of images >= 1; got 0"):
        jaccard_distance(features, 0)
    with pytest.raises(ValueError, match="K2 must be a number of images >= 1; got 0"):
        jaccard_distance(features, 20, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_approximate_options_reach_the_search(variant):
    features = crowd(seed=3)
    exact = jaccard_distance(features, 9, 3, variant=variant)
    whole, least = {"reduced_dim": features.shape[1]}, {"reduced_dim": 1, "min_recall": 0.01}
    found = [
        jaccard_distance(features, 9, 3, variant=variant, knn="reduced", **given) for given in (whole, least)
    ]
    np.testing.assert_allclose(to_dense(found[0]), to_dense(exact), rtol=0, atol=2e-6)
    assert abs(to_dense(found[1]) - to_dense(exact)).max() > 0.1


def encoding_of(features):
    neighbors = nearest_neighbors(features, 9, need_smallest=True)
    sets = expanded_reciprocal_sets(UnitRows.from_features(features), neighbors, 9, 5)
    return encode(*sets, neighbors.indices, 4, 2 - 2 * neighbors.smallest.astype(np.float64))


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
    monkeypatch.setattr(jaccard_module, "SPARE_PAIRS", 10)
    encoding = encoding_of(crowd(seed=2))
    everything = to_dense(jaccard_module.pair_distances(encoding).symmetric())
    upper = everything[np.triu_indices(len(everything), 1)]
    nonzero = np.sort(upper[(upper > 0) & (upper < 1)])
    kept = jaccard_module.pair_distances(encoding, keep_smallest=keep)
    limit = nonzero[min(keep, len(nonzero)) - 1]
    assert np.array_equal(np.sort(kept.distance), np.sort(upper[upper <= limit]))
    assert np.array_equal(to_dense(kept.symmetric()), np.where(everything <= limit, everything, 1))


def test_a_dense_block_makes_the_buffer_grow(monkeypatch):
    # every row holds the same few columns, so that all pairs share support: more pairs than a task's first
    # buffer
    count, width = 1200, 5
    values = np.random.default_rng(0).multinomial(1000, [1 / width] * width, count).astype(np.int32)
    encoding = Encoding(
        np.arange(count + 1, dtype=np.int64) * width,
        np.tile(np.arange(width, dtype=np.int32), count),
        values.ravel(),
        1000,
    )
    found = jaccard_module.pair_distances(encoding)
    assert len(found.distance) == count * (count - 1) // 2 > 2**18
    shared = np.minimum(values[:, None], values[None]).sum(2)
    expected = ((2000 - 2 * shared) / (2000 - shared)).astype(np.float32)
    np.fill_diagonal(expected, 0)
    assert np.array_equal(to_dense(found.symmetric()), expected)


def test_limit_of_the_symmetric_matrix():
    found = jaccard_module.pair_distances(encoding_of(crowd(seed=3)))
    everything = to_dense(found.symmetric())
    limit = float(np.median(found.distance))
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
    assert found.i.tolist() == [0, 1, 2] and found.j.tolist() == [2, 3, 4]
    assert found.distance[0] == np.float32(1 - 100 / (2 * total - 100)) < 1


@pytest.mark.parametrize("seed", range(3))
def test_every_distance_as_the_limit(seed):
    """A limit that pairs lie on, as eps may: the same as a filter of all pairs."""
    encoding = encoding_of(crowd(seed=seed))
    whole = jaccard_module.pair_distances(encoding)
    for limit in np.unique(whole.distance):
        kept = jaccard_module.pair_distances(encoding, max_distance=float(limit))
        assert len(kept.distance) == (whole.distance <= limit).sum(), limit
