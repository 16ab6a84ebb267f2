"""Silhouette on sparse distances: scikit-learn's on the dense ones, and zeros where it says nothing."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import silhouette_samples

from fastreid_sskd.clustering import jaccard_distance, pseudo_labels
from fastreid_sskd.clustering.diagnostics import sparse_silhouette


def people(seed=0, identities=8, images=9, spread=0.6):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, 16)).repeat(images, axis=0)
    return (centres + spread * rng.normal(size=centres.shape)).astype(np.float32)


def dense(distances):
    full = np.ones(distances.shape)
    rows = np.repeat(np.arange(distances.shape[0]), np.diff(distances.indptr))
    full[rows, distances.indices] = distances.data
    np.fill_diagonal(full, 0)
    return full


@pytest.mark.parametrize("seed", range(3))
def test_against_the_dense_distances(seed):
    features = people(seed)
    distances = jaccard_distance(features, 10, 3)
    labels = np.random.default_rng(seed).integers(0, 6, len(features))
    np.testing.assert_allclose(
        sparse_silhouette(distances, labels), silhouette_samples(dense(distances), labels, metric="precomputed"), atol=1e-6
    )


def test_noise_is_left_out_and_counts_zero():
    features = people()
    distances = jaccard_distance(features, 10, 3)
    labels = pseudo_labels(features, k1=10, k2=3, eps=0.5).labels
    labels[::7] = -1
    kept = labels != -1
    found = sparse_silhouette(distances, labels)
    numbers = np.unique(labels[kept], return_inverse=True)[1]
    expected = silhouette_samples(dense(distances)[np.ix_(kept, kept)], numbers, metric="precomputed")
    np.testing.assert_allclose(found[kept], expected, atol=1e-6)
    assert (found[~kept] == 0).all()


def test_true_people_score_higher_than_mixed_ones():
    distances = jaccard_distance(people(), 10, 3)
    true = np.repeat(np.arange(8), 9)
    mixed = np.random.default_rng(0).permutation(true)
    halves = true // 2  # two people a cluster
    scores = [sparse_silhouette(distances, labels).mean() for labels in (true, halves, mixed)]
    assert scores[0] > scores[1] > scores[2] and scores[0] > 0.3


def test_alone_all_noise_one_cluster_and_nothing():
    distances = jaccard_distance(people(identities=2, images=5), 3, 1)
    for labels in (np.full(10, -1), np.zeros(10, int)):
        assert (sparse_silhouette(distances, labels) == 0).all()
    labels = np.array([0] * 5 + [1] * 4 + [2])
    assert sparse_silhouette(distances, labels)[-1] == 0
    empty = scipy.sparse.csr_matrix((0, 0), dtype=np.float32)
    assert sparse_silhouette(empty, np.zeros(0, int)).shape == (0,)


def test_identical_images_and_input_unchanged():
    """Distances that are all 0 inside and all 1 outside; explicit zeros, which are pairs at distance 0."""
    block = scipy.sparse.csr_matrix(
        (np.zeros(8, np.float32), np.array([0, 1, 0, 1, 2, 3, 2, 3]), np.array([0, 2, 4, 6, 8])), shape=(4, 4)
    )
    before = block.copy()
    assert sparse_silhouette(block, np.array([0, 0, 1, 1])).tolist() == [1.0] * 4
    assert sparse_silhouette(block, np.array([0, 1, 0, 1])).tolist() == [-0.5] * 4
    assert (block.data == before.data).all() and block.nnz == 8


def test_cluster_numbers_with_gaps():
    distances = jaccard_distance(people(), 10, 3)
    labels = np.repeat(np.arange(8), 9)
    np.testing.assert_array_equal(sparse_silhouette(distances, labels), sparse_silhouette(distances, labels * 3))


def test_sizes_that_differ():
    with pytest.raises(ValueError, match=r"\(10, 10\) and \(9,\)"):
        sparse_silhouette(scipy.sparse.csr_matrix((10, 10)), np.zeros(9, int))
