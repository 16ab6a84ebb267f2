import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_reference import crowd, to_dense

from fastreid_sskd.clustering import (
    CLUSTERING_METHODS,
    ClusterOptions,
    ClusterReport,
    PseudoLabelError,
    check_options,
    check_usable,
    cluster_centroids,
    dbscan,
    estimate_eps,
    jaccard_distance,
    labels_again,
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
        "SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, lower SSKD.CLUSTER.MIN_SAMPLES, or "
        "train the source longer"
    )


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


def report(*labels, eps=0.5):
    return ClusterReport.from_labels(np.array(labels), eps)


def test_what_counts_as_collapse():
    with pytest.raises(PseudoLabelError, match=r"0 clusters at eps=0.5 \(all 3 images are noise\)"):
        check_usable(report(-1, -1, -1))
    with pytest.raises(PseudoLabelError, match=r"1 cluster at eps=0.5 \(1 of 3 images are noise\)"):
        check_usable(report(0, 0, -1))
    check_usable(report(0, 1))
    with pytest.raises(PseudoLabelError, match="0 clusters .all 0 images"):
        check_usable(ClusterReport.from_labels(np.empty(0, dtype=np.int64)))


@pytest.mark.parametrize(
    "labels, passed",
    [
        ([0, 0, 1, 1, -1, -1, -1, -1, 2, 2], ["noise"]),  # 40 %
        ([0, 0, 0, 0, 1, 1, 2, 2, 3, 3], ["largest"]),  # 40 %
        ([0, 0, 0, 0, 1, 1, -1, -1, -1, -1], ["noise", "largest"]),
        ([0, 0, 0, 1, 1, -1, -1, -1, 2, 2], []),  # both on their limit
    ],
)
def test_shares_above_their_limits(labels, passed, caplog):
    limits = ClusterOptions(max_noise_share=0.3, max_largest_share=0.3)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        check_usable(report(*labels), limits)
    assert ["noise" if "NOISE" in r.getMessage() else "largest" for r in caplog.records] == passed
    for sentence in caplog.messages:
        assert "40.0%" in sentence and "of 10 images" in sentence and "at eps=0.5" in sentence
        assert "SHARE=0.3" in sentence
    collapse = limits.replace(on_limit="collapse")
    if not passed:
        check_usable(report(*labels), collapse)
        return
    with pytest.raises(PseudoLabelError) as error:
        check_usable(report(*labels), collapse)
    assert [name in str(error.value) for name in ("MAX_NOISE_SHARE", "MAX_LARGEST_SHARE")] == [
        "noise" in passed, "largest" in passed,
    ]  # fmt: skip


def test_no_limit():
    check_usable(
        report(*[0] * 98, 1, -1),
        ClusterOptions(max_noise_share=1.0, max_largest_share=1.0, on_limit="collapse"),
    )


@pytest.mark.parametrize(
    "pairs, bounds, used",
    [
        (1.5, (0.6, 0), 0.6),
        (1.5, (0.6, 0.7), 0.6),
        (8, (0, 0.1), 0.1),
        (8, (0.05, 0.1), 0.1),
        (8, (0.6, 0), 0.6),
    ],
)
def test_estimated_eps_is_moved_to_its_bound(pairs, bounds, used, caplog):
    features = crowd(seed=1, num_ids=20)
    free = pseudo_labels(features, pairs_per_image=pairs)
    assert (free.eps < bounds[0]) or (free.eps > bounds[1])
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        bounded = pseudo_labels(features, pairs_per_image=pairs, eps_min=bounds[0], eps_max=bounds[1])
    assert bounded.eps == bounded.report.eps == used
    assert f"the estimated eps {free.eps:.4f} lies outside" in caplog.text
    # above the estimate too: the pairs between it and the bound must have been kept
    distance = jaccard_distance(features)
    assert np.array_equal(bounded.labels, dbscan(distance, used))
    assert not np.array_equal(bounded.labels, free.labels)


def test_bounds_leave_an_eps_within_them_and_one_that_is_given(caplog):
    features = crowd(seed=1, num_ids=20)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        assert pseudo_labels(features, eps=0.5, eps_max=0.1).eps == 0.5
        within = pseudo_labels(features, pairs_per_image=3, eps_min=0.01, eps_max=0.99)
        assert within.eps == pseudo_labels(features, pairs_per_image=3).eps
    assert "lies outside" not in caplog.text


def test_labels_again_have_the_centroids_of_the_new_features():
    old, new = crowd(seed=3), crowd(seed=4, num_ids=14)
    count = min(len(old), len(new))
    old, new = old[:count], 3 * new[:count]
    good = pseudo_labels(old, eps=0.5)
    collapsed = pseudo_labels(new, eps=1e-6, min_samples=count)
    again = labels_again(new, good.labels, collapsed)
    assert np.array_equal(again.labels, good.labels)
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    np.testing.assert_allclose(again.centroids, cluster_centroids(unit, good.labels), rtol=0, atol=1e-6)
    assert not np.allclose(again.centroids, good.centroids, atol=0.1)
    assert again.report.num_clusters == good.report.num_clusters and again.report.changed_share == 0
    assert again.eps is None and again.seconds == collapsed.seconds


# ---- what cannot be clustered --------------------------------------------------------------------


def test_options_against_the_number_of_images():
    check_options(ClusterOptions(), 12_936)
    for options, count, message in (
        (ClusterOptions(), 1, "at least 2 images"),
        (ClusterOptions(method="kmeans", num_clusters=50), 49, "in 2..49 .images., got 50"),
        (ClusterOptions(rho=1e-4, k1=3), 48, "rounds to 0 pairs"),
        (ClusterOptions(pairs_per_image=24.0, k1=3), 48, "not a ratio in .0, 1."),
    ):
        with pytest.raises(ValueError, match=message):
            check_options(options, count)
