import logging

import numpy as np
import pytest
from dense_reference import crowd

from fastreid_sskd.clustering import (
    ClusterReport,
    Limits,
    PseudoLabelError,
    check_bounds,
    check_usable,
    cluster_centroids,
    dbscan,
    jaccard_distance,
    labels_again,
    pseudo_labels,
)


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
    limits = Limits(0.3, 0.3)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        check_usable(report(*labels), limits)
    assert ["noise" if "NOISE" in r.getMessage() else "largest" for r in caplog.records] == passed
    for sentence in caplog.messages:
        assert "40.0%" in sentence and "of 10 images" in sentence and "at eps=0.5" in sentence
        assert "SHARE=0.3" in sentence
    collapse = Limits(0.3, 0.3, collapse=True)
    if not passed:
        check_usable(report(*labels), collapse)
        return
    with pytest.raises(PseudoLabelError) as error:
        check_usable(report(*labels), collapse)
    assert [name in str(error.value) for name in ("MAX_NOISE_SHARE", "MAX_LARGEST_SHARE")] == [
        "noise" in passed, "largest" in passed,
    ]  # fmt: skip


def test_no_limit():
    check_usable(report(*[0] * 98, 1, -1), Limits(1.0, 1.0, collapse=True))


@pytest.mark.parametrize("shares", [(-0.1, 0.5), (0.5, 1.1)])
def test_limits_are_shares(shares):
    with pytest.raises(ValueError, match="shares in .0, 1.*SSKD.CLUSTER.MAX_NOISE_SHARE"):
        Limits(*shares)


@pytest.mark.parametrize("bounds", [(0.5, 0.4), (-0.1, 0), (0, -0.1)])
def test_bounds_that_exclude_everything(bounds):
    with pytest.raises(ValueError, match="EPS_MIN <= EPS_MAX"):
        check_bounds(*bounds)
    with pytest.raises(ValueError, match="EPS_MIN <= EPS_MAX"):
        pseudo_labels(crowd(seed=1), rho=0.04, eps_min=bounds[0], eps_max=bounds[1])


@pytest.mark.parametrize(
    "pairs, bounds, used",
    [(1.5, (0.6, 0), 0.6), (1.5, (0.6, 0.7), 0.6), (8, (0, 0.1), 0.1), (8, (0.05, 0.1), 0.1), (8, (0.6, 0), 0.6)],
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
