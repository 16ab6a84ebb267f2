from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from dense_reference import crowd, dense_dbscan, to_dense
from sklearn.cluster import DBSCAN

from fastreid_sskd.clustering import NOISE, dbscan, jaccard_distance

GOLDEN = sorted((Path(__file__).resolve().parent.parent / "golden").glob("cluster_*.npz"))


def line(*places):
    """Dense distances of points on a line."""
    places = np.array(places, dtype=np.float64)
    return np.abs(places[:, None] - places)


def oracle(distance, eps, min_samples):
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance).labels_


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_labels(path):
    golden = np.load(path)
    eps, min_samples = float(golden["eps"]), int(golden["min_samples"])
    assert np.array_equal(dbscan(golden["jaccard"], eps, min_samples), golden["labels"])
    distance = jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    assert np.array_equal(dbscan(distance, eps, min_samples), golden["labels"])


@pytest.mark.parametrize("variant", ["sskd", "faiss"])
@pytest.mark.parametrize("eps", [0.2, 0.3, 0.45, 0.6, 0.999])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 8])
def test_equals_scikit_learn_and_the_definition(variant, eps, min_samples):
    distance = jaccard_distance(crowd(seed=int(eps * 1000) + min_samples), 10, 4, variant=variant)
    labels = dbscan(distance, eps, min_samples)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, oracle(distance, eps, min_samples))
    dense = to_dense(distance)
    assert np.array_equal(labels, dense_dbscan(dense, np.float32(eps), min_samples))
    assert np.array_equal(labels, dbscan(dense, eps, min_samples))


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_definition_on_coarse_random_graphs(seed):
    # distances from a coarse grid: eps falls on many of them, and most points are border points of something
    rng = np.random.default_rng(seed)
    distance = np.round(rng.random((40, 40)) * 8) / 8
    distance = np.triu(distance, 1)
    distance = distance + distance.T
    labels = dbscan(distance, 0.125, 6)
    assert np.array_equal(labels, dense_dbscan(distance, 0.125, 6))
    assert np.array_equal(labels, oracle(distance, 0.125, 6))


def test_toy_points():
    distance = line(0, 1, 2, 10, 11, 12, 30)
    assert dbscan(distance, 1, 3).tolist() == [0, 0, 0, 1, 1, 1, -1]
    assert dbscan(distance, 1, 4).tolist() == [-1] * 7
    assert dbscan(distance, 8, 3).tolist() == [0, 0, 0, 0, 0, 0, -1]


def test_border_point_between_two_clusters_takes_the_smaller_label():
    # the middle point is no core (3 neighbours with itself) and lies within eps of a core on either side
    places = [0, 0.5, 1, 1.5, 2.5, 3.5, 4, 4.5, 5]
    assert dbscan(line(*places), 1, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    # numbers follow the first core image, so listing the right-hand cluster first turns it round
    assert dbscan(line(*places[::-1]), 1, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    # a border point that is listed first does not number its cluster
    first = [2.5, 3.5, 4, 4.5, 5, 0, 0.5, 1, 1.5]
    assert dbscan(line(*first), 1, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_stored_zeros_are_neighbours_and_the_diagonal_need_not_be_stored():
    row, column = [0, 1, 0, 2, 1, 2], [1, 0, 2, 0, 2, 1]
    distance = scipy.sparse.csr_matrix((np.zeros(6, np.float32), (row, column)), shape=(4, 4))
    assert distance.nnz == 6
    assert dbscan(distance, 0.1, 3).tolist() == [0, 0, 0, -1]
    assert dbscan(distance, 0.1, 4).tolist() == [-1] * 4


def test_eps_on_a_distance_includes_it():
    third = np.float32(1) / np.float32(3)
    distance = np.array([[0, third], [third, 0]], dtype=np.float32)
    assert float(third) > 1 / 3  # eps is compared as float32, as the distances are
    assert dbscan(distance, 1 / 3, 2).tolist() == [0, 0]
    assert dbscan(distance, np.nextafter(third, np.float32(0)), 2).tolist() == [-1, -1]


def test_whole_number_distances_do_not_cut_eps():
    distance = np.array([[0, 1, 5], [1, 0, 5], [5, 5, 0]])
    for given in (distance, scipy.sparse.csr_matrix(distance)):
        assert dbscan(given, 1.5, 2).tolist() == [0, 0, -1]
        assert dbscan(given, 0.5, 1).tolist() == [0, 1, 2]


def test_input_is_unchanged():
    distance = jaccard_distance(crowd(seed=3), 10, 4)
    before = distance.copy()
    dbscan(distance, 0.4)
    assert np.array_equal(before.data, distance.data)
    assert np.array_equal(before.indices, distance.indices)
    assert np.array_equal(before.indptr, distance.indptr)


def test_all_noise_and_empty():
    assert (dbscan(np.ones((5, 5)), 0.5, 2) == NOISE).all()
    assert dbscan(np.ones((0, 0)), 0.5, 2).shape == (0,)


@pytest.mark.parametrize("eps", [0, -1, np.nan, np.inf])
def test_eps_out_of_range(eps):
    with pytest.raises(ValueError, match="eps must be a positive number.*SSKD.CLUSTER.EPS"):
        dbscan(line(0, 1), eps)


def test_other_arguments_out_of_range():
    with pytest.raises(ValueError, match="min_samples must be at least 1.*SSKD.CLUSTER.MIN_SAMPLES"):
        dbscan(line(0, 1), 1, 0)
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        dbscan(np.ones((2, 3)), 1)
