from pathlib import Path

import numpy as np
import pytest
import torch
from dense_reference import crowd

from fastreid_sskd.clustering import cluster_centroids

GOLDEN = sorted((Path(__file__).resolve().parent.parent / "golden").glob("cluster_*.npz"))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_centroids(path, kind):
    golden = np.load(path)
    centroids = cluster_centroids(kind(golden["features"]), kind(golden["labels"]))
    np.testing.assert_allclose(np.asarray(centroids), golden["centroids"], rtol=0, atol=1e-5)


def test_equals_a_loop():
    features = crowd(seed=1)
    labels = np.random.default_rng(0).integers(-1, 7, len(features))
    centroids = cluster_centroids(features, labels)
    assert centroids.dtype == np.float32 and centroids.shape == (7, features.shape[1])
    for cluster in range(7):
        members = [features[i].astype(np.float64) for i in range(len(features)) if labels[i] == cluster]
        mean = sum(members) / len(members)
        np.testing.assert_allclose(centroids[cluster], mean / np.sqrt((mean**2).sum()), rtol=0, atol=1e-6)


def test_same_kind_out_as_in():
    features, labels = crowd(seed=2)[:6], np.array([0, 0, 1, -1, 1, 2])
    expected = cluster_centroids(features, labels)
    given = torch.from_numpy(features.copy()).requires_grad_()
    for numbers in (labels, torch.from_numpy(labels)):
        found = cluster_centroids(given, numbers)
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float32 and not found.requires_grad
        assert np.array_equal(found.numpy(), expected)
    assert isinstance(expected, np.ndarray)
    assert cluster_centroids(given.half(), labels).dtype == torch.float32
    assert np.array_equal(given.detach().numpy(), features)


def test_all_noise_gives_no_rows():
    features = crowd(seed=3)[:4]
    assert cluster_centroids(features, np.full(4, -1)).shape == (0, features.shape[1])


def test_opposite_rows_give_a_finite_centroid():
    features = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert np.array_equal(cluster_centroids(features, np.zeros(2, int)), np.zeros((1, 2), np.float32))


def test_labels_that_do_not_fit():
    features = crowd(seed=4)[:4]
    with pytest.raises(ValueError, match=r"labels must be \(N,\)"):
        cluster_centroids(features, np.zeros(3, int))
    with pytest.raises(ValueError, match="cluster 1 of 3 has no image"):
        cluster_centroids(features, np.array([0, 2, 2, -1]))
