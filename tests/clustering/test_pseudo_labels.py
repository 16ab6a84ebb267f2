import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_reference import crowd, to_dense

from fastreid_sskd.clustering import (
    CLUSTERING_METHODS,
    PseudoLabelError,
    check_usable,
    cluster_centroids,
    dbscan,
    estimate_eps,
    jaccard_distance,
    pseudo_labels,
    register_clustering,
)

GOLDEN = sorted((Path(__file__).resolve().parent.parent / "golden").glob("cluster_*.npz"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_refresh(path):
    golden = np.load(path)
    options = {"k1": int(golden["k1"]), "k2": int(golden["k2"]), "min_samples": int(golden["min_samples"])}
    result = pseudo_labels(golden["features"], eps=float(golden["eps"]), **options)
    assert np.array_equal(result.labels, golden["labels"])
    np.testing.assert_allclose(result.centroids, golden["centroids"], rtol=0, atol=1e-5)
    assert result.eps == float(golden["eps"])
    estimated = pseudo_labels(golden["features"], rho=float(golden["rho"]), **options)
    assert estimated.eps == pytest.approx(float(golden["eps"]), abs=1e-2)


@pytest.mark.parametrize("variant", ["sskd", "faiss"])
@pytest.mark.parametrize("radius", [{"eps": 0.45}, {"rho": 0.04}, {"pairs_per_image": 3}], ids=str)
def test_equals_its_parts(variant, radius):
    features = crowd(seed=1, num_ids=20)
    result = pseudo_labels(features, k1=12, k2=4, variant=variant, min_samples=3, **radius)
    distance = jaccard_distance(features, 12, 4, variant=variant)
    eps = radius["eps"] if "eps" in radius else estimate_eps(distance, **radius)
    assert result.eps == pytest.approx(eps, abs=1e-12)
    assert np.array_equal(result.labels, dbscan(distance, result.eps, 3))
    assert np.array_equal(result.labels, dbscan(to_dense(distance), result.eps, 3))
    np.testing.assert_allclose(
        result.centroids, cluster_centroids(features, result.labels), rtol=0, atol=1e-6
    )
    assert result.report.num_clusters == result.labels.max() + 1 > 3
    assert list(result.seconds) == ["knn", "jaccard", "eps", "dbscan", "centroids"]
    assert all(value >= 0 for value in result.seconds.values())


def test_centroids_are_of_normalised_rows():
    features = crowd(seed=2)
    scale = np.random.default_rng(0).uniform(0.5, 4, (len(features), 1)).astype(np.float32)
    plain, scaled = pseudo_labels(features, eps=0.5), pseudo_labels(features * scale, eps=0.5)
    assert np.array_equal(plain.labels, scaled.labels)
    np.testing.assert_allclose(plain.centroids, scaled.centroids, rtol=0, atol=1e-6)


def test_torch_in_torch_out():
    features = crowd(seed=3)
    plain, tensor = pseudo_labels(features, eps=0.5), pseudo_labels(torch.from_numpy(features), eps=0.5)
    assert isinstance(tensor.centroids, torch.Tensor) and isinstance(plain.centroids, np.ndarray)
    assert np.array_equal(tensor.centroids.numpy(), plain.centroids)
    assert np.array_equal(tensor.labels, plain.labels)
    assert tensor.labels.dtype == np.int64


def test_changes_since_the_last_refresh_are_reported():
    features = crowd(seed=4)
    first = pseudo_labels(features, eps=0.5)
    assert first.report.changed_share is None
    assert pseudo_labels(features, eps=0.5, previous=first.labels).report.changed_share == 0
    assert 0 < pseudo_labels(features, eps=0.3, previous=first.labels).report.changed_share < 1


@pytest.mark.parametrize("given", [{}, {"eps": 0.5, "rho": 0.1}, {"rho": 0.1, "pairs_per_image": 3}], ids=str)
def test_exactly_one_way_to_set_eps(given):
    with pytest.raises(ValueError, match="exactly one of eps, rho, pairs_per_image and sweep"):
        pseudo_labels(crowd(seed=5), **given)


def test_unknown_method():
    with pytest.raises(ValueError, match="SSKD.CLUSTER.METHOD is one of dbscan"):
        pseudo_labels(crowd(seed=5), eps=0.5, method="spectral")


def test_a_registered_method_is_used():
    try:

        @register_clustering("halves")
        def halves(problem):
            return np.arange(len(problem.rows)) % 2

        result = pseudo_labels(crowd(seed=6), eps=0.5, method="halves")
    finally:
        CLUSTERING_METHODS.pop("halves", None)
    assert result.report.num_clusters == 2
    assert "halves" in result.seconds
    with pytest.raises(ValueError, match="registered twice"):
        register_clustering("dbscan")(halves)


def test_all_noise_is_returned_and_refused():
    features = crowd(seed=7)
    result = pseudo_labels(features, eps=1e-6, min_samples=len(features))
    assert (result.labels == -1).all()
    assert result.centroids.shape == (0, features.shape[1])
    with pytest.raises(PseudoLabelError) as error:
        check_usable(result.report)
    assert isinstance(error.value, ValueError)
    assert str(error.value) == (
        f"0 clusters at eps=1e-06 (all {len(features)} images are noise): raise SSKD.CLUSTER.RHO, "
        "SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, lower SSKD.CLUSTER.MIN_SAMPLES, or train the source longer"
    )


def test_a_single_cluster_is_refused():
    result = pseudo_labels(np.ones((30, 4), dtype=np.float32), k1=29, eps=0.2)
    with pytest.raises(
        PseudoLabelError, match=r"1 cluster at eps=0.2 \(0 of 30 images are noise\).*lower SSKD"
    ):
        check_usable(result.report)


def test_two_clusters_are_usable():
    features = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    result = pseudo_labels(features, k1=9, eps=0.2)
    assert result.labels.tolist() == [0] * 10 + [1] * 10
    check_usable(result.report)


def test_rho_far_from_its_range_of_sizes_is_remarked_on(caplog):
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        pseudo_labels(crowd(seed=8), rho=0.04)
        assert "SSKD.CLUSTER.PAIRS_PER_IMAGE" in caplog.text
        caplog.clear()
        pseudo_labels(crowd(seed=8), pairs_per_image=3)
        assert "PAIRS_PER_IMAGE" not in caplog.text


def test_input_is_unchanged():
    features = crowd(seed=9) * 3
    before = features.copy()
    pseudo_labels(features, rho=0.04)
    assert np.array_equal(before, features)
