from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from dense_reference import crowd, dense_dbscan, to_dense
from scipy.sparse import csgraph
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import adjusted_rand_score

from fastreid_sskd.clustering import (
    CLUSTERING_METHODS,
    NOISE,
    dbscan,
    jaccard_distance,
    pseudo_labels,
    register_clustering,
)
from fastreid_sskd.clustering.methods import complete_graph, hdbscan_labels, numbered

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


def test_arguments_out_of_range():
    for eps in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="eps must be a positive number.*SSKD.CLUSTER.EPS"):
            dbscan(line(0, 1), eps)
    with pytest.raises(ValueError, match="min_samples must be at least 1.*SSKD.CLUSTER.MIN_SAMPLES"):
        dbscan(line(0, 1), 1, 0)
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        dbscan(np.ones((2, 3)), 1)


def blobs(seed=0, num_ids=9, per_id=12, dim=16, spread=0.25):
    """Unit rows of well separated identities, in turn, and the identities."""
    rng = np.random.default_rng(seed)
    identity = np.tile(np.arange(num_ids), per_id)
    rows = rng.normal(size=(num_ids, dim))[identity] + spread * rng.normal(size=(len(identity), dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), identity


def check_numbers(labels, count):
    assert labels.shape == (count,) and labels.dtype == np.int64
    assert set(labels[labels >= 0]) == set(range(labels.max() + 1))
    first = [int((labels == c).argmax()) for c in range(labels.max() + 1)]
    assert first == sorted(first)


OPTIONS = {
    "hdbscan": {"method": "hdbscan", "min_samples": 4},
    "kmeans": {"method": "kmeans", "num_clusters": 9},
    "infomap": {"method": "infomap", "eps": 0.6},
}


@pytest.fixture(params=list(OPTIONS))
def options(request):
    if request.param == "infomap":
        pytest.importorskip("infomap", reason="the extra infomap is not installed")
    return OPTIONS[request.param]


def test_separated_identities_are_found(options):
    features, identity = blobs()
    result = pseudo_labels(features, k1=8, k2=3, **options)
    check_numbers(result.labels, len(features))
    assert adjusted_rand_score(identity, result.labels) == pytest.approx(1)
    assert result.eps == options.get("eps") == result.report.eps


def test_same_labels_for_the_same_seed(options):
    features = crowd(seed=1, num_ids=20)
    first = pseudo_labels(features, k1=8, k2=3, seed=3, **options).labels
    assert np.array_equal(first, pseudo_labels(features, k1=8, k2=3, seed=3, **options).labels)
    assert len(set(first)) > 3


def test_input_of_other_methods_is_unchanged(options):
    features = 3 * crowd(seed=2, num_ids=20)
    before = features.copy()
    pseudo_labels(features, k1=8, k2=3, **options)
    assert np.array_equal(before, features)


@pytest.mark.parametrize("method", ["hdbscan", "kmeans"])
def test_methods_without_a_radius_pass_one_over(method):
    given = [
        pseudo_labels(crowd(seed=3), method=method, num_clusters=3, **radius)
        for radius in ({}, {"eps": 0.5}, {"eps": 7})
    ]
    assert all(result.eps is None and np.array_equal(result.labels, given[0].labels) for result in given)


def test_only_what_is_used_is_computed():
    features = crowd(seed=3)
    assert list(pseudo_labels(features, **OPTIONS["kmeans"]).seconds) == ["kmeans", "centroids"]
    assert list(pseudo_labels(features, **OPTIONS["hdbscan"]).seconds) == [
        "knn",
        "jaccard",
        "hdbscan",
        "centroids",
    ]
    with pytest.raises(ValueError, match="uses must be one of radius, distances, features"):
        register_clustering("new", uses="everything")
    assert "new" not in CLUSTERING_METHODS


# ---- hdbscan -------------------------------------------------------------------------------------


def sparse_distances(seed, variant, tied):
    """Distances of several components, isolated images, duplicates; without ties if asked for."""
    features = crowd(seed=seed, num_ids=15, spread=0.3, isolated=12, duplicated=10)
    distance = jaccard_distance(features, 8, 3, variant=variant).astype(np.float64)
    assert csgraph.connected_components(distance, directed=False)[0] > 5
    if not tied:
        count = len(features)
        noise = np.triu(np.random.default_rng(seed).random((count, count)), 1)
        row = np.repeat(np.arange(count), np.diff(distance.indptr))
        distance.data += 1e-4 * (noise + noise.T)[row, distance.indices]
        distance.data = np.where(row == distance.indices, 0, distance.data * 0.999)
    return distance


def dense_hdbscan(distance, min_samples):
    """scikit-learn's labels of the dense matrix."""
    size = max(min_samples, 2)
    clusterer = HDBSCAN(min_cluster_size=size, min_samples=min_samples, metric="precomputed", copy=True)
    return clusterer.fit_predict(to_dense(distance))


@pytest.mark.parametrize("variant", ["sskd", "faiss"])
@pytest.mark.parametrize("min_samples", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_hdbscan_equals_the_dense_matrix(seed, min_samples, variant):
    # core distances up to the nearest neighbour leave the edges of a spanning tree without ties
    distance = sparse_distances(seed, variant, tied=False)
    labels, expected = hdbscan_labels(distance, min_samples), dense_hdbscan(distance, min_samples)
    check_numbers(labels, distance.shape[0])
    kept = labels >= 0
    assert len(set(labels)) > 5
    assert np.array_equal(labels[kept], numbered(np.where(kept, expected, -1))[kept])
    # noise besides: images with no other below 1
    assert (np.diff(distance.indptr)[~kept & (expected >= 0)] < 2).all()


@pytest.mark.parametrize("min_samples", [3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_hdbscan_is_as_close_to_the_dense_matrix_as_its_own_ties_let_it(seed, min_samples):
    distance = sparse_distances(seed, "sskd", tied=True)
    labels, expected = hdbscan_labels(distance, min_samples), dense_hdbscan(distance, min_samples)
    assert len(set(labels)) > 5
    kept = labels >= 0
    assert adjusted_rand_score(labels[kept], expected[kept]) > 0.93


def test_hdbscan_takes_what_only_distance_one_connects_for_noise():
    # two groups of five at 0.2 and 0.3, a pair at 0.5, and an image alone
    dense = np.ones((13, 13), dtype=np.float32)
    dense[:5, :5], dense[5:10, 5:10], dense[10:12, 10:12] = 0.2, 0.3, 0.5
    np.fill_diagonal(dense, 0)
    stored = dense < 1
    distance = scipy.sparse.csr_matrix((dense[stored], np.nonzero(stored)), shape=dense.shape)
    before = distance.copy()
    assert hdbscan_labels(distance, 4).tolist() == [0] * 5 + [1] * 5 + [-1] * 3
    assert hdbscan_labels(distance, 2).tolist() == [0] * 5 + [1] * 5 + [2] * 2 + [-1]
    assert np.array_equal(before.data, distance.data) and np.array_equal(before.indices, distance.indices)


@pytest.mark.parametrize("min_samples", [1, 3, 5])
def test_completed_graph_has_the_dense_spanning_tree(min_samples):
    distance = jaccard_distance(crowd(seed=5, isolated=9, duplicated=0), 8, 3)
    graph = complete_graph(distance, min_samples)
    assert csgraph.connected_components(graph, directed=False)[0] == 1
    assert (np.diff(graph.indptr) >= min_samples).all() and (graph.data > 0).all()
    assert (graph != graph.T).nnz == 0
    dense, completed = to_dense(distance), graph.toarray()
    stored = completed != 0
    np.testing.assert_allclose(completed[stored], np.maximum(dense[stored], 1e-12), rtol=0, atol=1e-12)
    # as much as is needed of the N (N - 1) missing ones
    assert graph.nnz - distance.nnz < 2 * len(dense) * (min_samples + 1)

    def reachability(matrix):
        core = np.sort(matrix, axis=1)[:, min_samples - 1]
        return np.maximum(matrix, np.maximum(core[:, None], core[None]))

    whole = csgraph.minimum_spanning_tree(np.maximum(reachability(dense), 1e-12)).data
    sparse = csgraph.minimum_spanning_tree(
        np.where(stored, reachability(np.where(stored, completed, 1)), 0)
    ).data
    np.testing.assert_allclose(np.sort(sparse), np.sort(whole), rtol=0, atol=1e-6)


def test_hdbscan_of_fewer_images_than_a_cluster_holds():
    with pytest.warns(UserWarning, match="3 images are not more than k1"):
        labels = pseudo_labels(crowd(seed=6)[:3], k1=4, method="hdbscan", min_samples=4).labels
    assert labels.tolist() == [-1, -1, -1]


def test_complete_graph_of_nothing_but_the_diagonal():
    distance = scipy.sparse.csr_matrix((np.zeros(6, np.float32), np.arange(6), np.arange(7)), shape=(6, 6))
    graph = complete_graph(distance, 4)
    assert csgraph.connected_components(graph, directed=False)[0] == 1
    assert (np.diff(graph.indptr) >= 4).all()
    off = ~np.eye(6, dtype=bool)
    assert set(graph.toarray()[off]) == {0, 1}


# ---- kmeans --------------------------------------------------------------------------------------


def test_kmeans_has_no_noise_and_at_most_the_clusters_asked_for():
    features = crowd(seed=7, num_ids=20)
    labels = pseudo_labels(features, method="kmeans", num_clusters=20).labels
    assert (labels >= 0).all() and labels.max() < 20


def test_kmeans_of_duplicates_leaves_empty_clusters_out():
    features = np.repeat(np.eye(3, dtype=np.float32), 8, axis=0)
    labels = pseudo_labels(features, method="kmeans", num_clusters=6).labels
    check_numbers(labels, 24)
    for group in range(3):
        others = labels[np.arange(24) // 8 != group]
        assert not set(labels[8 * group : 8 * group + 8]) & set(others)


@pytest.mark.parametrize("clusters", [0, 1, -3, 10_000])
def test_kmeans_needs_a_number_of_clusters(clusters):
    with pytest.raises(ValueError, match=f"got {clusters}: set SSKD.CLUSTER.NUM_CLUSTERS"):
        pseudo_labels(crowd(seed=8), method="kmeans", num_clusters=clusters)


def test_kmeans_takes_the_direction_of_features():
    features = crowd(seed=9, num_ids=20)
    scale = 2.0 ** np.random.default_rng(0).integers(-3, 4, (len(features), 1))
    plain = pseudo_labels(features, method="kmeans", num_clusters=15)
    scaled = pseudo_labels((features * scale).astype(np.float32), method="kmeans", num_clusters=15)
    assert adjusted_rand_score(plain.labels, scaled.labels) > 0.9


# ---- infomap -------------------------------------------------------------------------------------


def test_infomap_leaves_out_what_has_no_near_pair_and_small_modules():
    pytest.importorskip("infomap", reason="the extra infomap is not installed")
    features = crowd(seed=10, num_ids=20, isolated=10)
    distance = to_dense(jaccard_distance(features, 8, 3))
    alone = ((distance <= np.float32(0.4)).sum(1)) == 1
    result = pseudo_labels(features, k1=8, k2=3, method="infomap", eps=0.4, min_samples=4)
    assert alone.any() and (result.labels[alone] == -1).all()
    assert np.bincount(result.labels[result.labels >= 0]).min() >= 4
    smaller = pseudo_labels(features, k1=8, k2=3, method="infomap", eps=0.4, min_samples=1)
    assert np.bincount(smaller.labels[smaller.labels >= 0]).min() < 4
    # modules are connected by near pairs
    for module in range(smaller.report.num_clusters):
        own = smaller.labels == module
        near = distance[np.ix_(own, own)] <= np.float32(0.4)
        assert csgraph.connected_components(scipy.sparse.csr_matrix(near))[0] == 1


def test_infomap_uses_no_pair_beyond_eps():
    pytest.importorskip("infomap", reason="the extra infomap is not installed")
    features = crowd(seed=13, num_ids=20)
    # keeps pairs beyond its eps
    estimated = pseudo_labels(features, k1=8, k2=3, method="infomap", pairs_per_image=5)
    given = pseudo_labels(features, k1=8, k2=3, method="infomap", eps=estimated.eps)
    assert np.array_equal(estimated.labels, given.labels)


def test_infomap_of_no_near_pair_is_all_noise():
    pytest.importorskip("infomap", reason="the extra infomap is not installed")
    features = np.eye(12, dtype=np.float32)
    assert (pseudo_labels(features, k1=1, k2=1, method="infomap", eps=1e-9).labels == -1).all()


# ---- numbering -----------------------------------------------------------------------------------


def test_numbered():
    assert numbered(np.array([7, -1, 3, 7, -2, 3, 0])).tolist() == [0, -1, 1, 0, -1, 1, 2]
    assert numbered(np.array([], dtype=int)).tolist() == []
    assert numbered(np.array([-1, -1])).tolist() == [-1, -1]
