"""Clusters of tracklets: mean features, min_samples in images, nobody twice at a time."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
from dense_reference import crowd

from fastreid_sskd.clustering import (
    NOISE,
    Shard,
    cluster_centroids,
    dbscan,
    merge_shards,
    pseudo_labels,
    register_clustering,
    search_neighbors,
)
from fastreid_sskd.clustering.methods import CLUSTERING_METHODS
from fastreid_sskd.data import Tracklets
from fastreid_sskd.data.datasets import Track

OPTIONS = {"k1": 8, "k2": 3, "min_samples": 3, "pairs_per_image": 3.0}


def people(seed, count=120):
    """Features (count, 24) of a few people."""
    return crowd(seed, 20)[:count]


def tracklets(tracks, frames=None, cameras=None):
    """Of images: a track each, and a frame and a camera if given."""
    frames = [None] * len(tracks) if frames is None else frames
    cameras = ["c"] * len(tracks) if cameras is None else cameras
    return Tracklets.from_items(
        [
            (str(i), None, camera, Track(str(track), "", frame))
            for i, (track, frame, camera) in enumerate(zip(tracks, frames, cameras))
        ]
    )


@pytest.mark.parametrize("method", ["dbscan", "hdbscan"])
def test_tracklets_of_one_image_without_frames_change_nothing(method):
    features = people(0)
    plain = pseudo_labels(features, method=method, **OPTIONS)
    result = pseudo_labels(features, method=method, tracklets=tracklets(range(120)), **OPTIONS)
    assert np.array_equal(result.labels, plain.labels) and result.eps == plain.eps
    np.testing.assert_allclose(result.centroids, plain.centroids, atol=1e-6)
    assert plain.tracklets is None and result.tracklets.tracklets == 120 and result.tracklets.split == 0


def test_images_have_the_label_of_their_tracklets_mean():
    features = people(1)
    groups = tracklets(np.arange(120) // 2)
    result = pseudo_labels(features, tracklets=groups, eps=0.5, k1=8, k2=3, min_samples=4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = pseudo_labels(unit[::2] + unit[1::2], eps=0.5, k1=8, k2=3, min_samples=2)
    assert np.array_equal(result.labels, means.labels.repeat(2)) and means.report.num_clusters > 1
    np.testing.assert_allclose(result.centroids, cluster_centroids(unit, result.labels), atol=1e-6)
    assert result.report.num_images == 120
    sizes = np.bincount(means.labels[means.labels >= 0])
    assert dataclasses.astuple(result.tracklets) == (60, sizes[sizes > 1].sum(), 0)


def test_min_samples_counts_the_images_of_tracklets():
    """As if every image lay where its tracklet does."""
    rng = np.random.default_rng(0)
    points, sizes = rng.uniform(0, 1, 40), rng.integers(1, 5, 40)
    distance = np.abs(points[:, None] - points)
    every = np.repeat(np.arange(40), sizes)
    for min_samples in (1, 3, 6):
        expected = dbscan(distance[np.ix_(every, every)], 0.02, min_samples)
        found = dbscan(distance, 0.02, min_samples, sizes)
        assert np.array_equal(found[every], expected) and len(set(found)) > 2
        sparse = scipy.sparse.csr_matrix(np.where(distance <= 0.02, distance, 0))
        assert np.array_equal(dbscan(sparse, 0.02, min_samples, sizes), found)


def test_a_ratio_of_pairs_is_the_same_of_images_and_of_tracklets():
    features = people(2, 100).repeat(2, axis=0)
    groups = tracklets(np.arange(200) // 2)
    result = pseudo_labels(features, tracklets=groups, **OPTIONS)
    assert (
        result.eps
        == pseudo_labels(people(2, 100), **{**OPTIONS, "rho": 2 * 3 / 199, "pairs_per_image": 0}).eps
    )


# ---- kept apart ----------------------------------------------------------------------------------


def overlapping_pairs(labels, groups):
    """Pairs of tracklets of one cluster that overlap in time, by a loop."""
    of_tracklet = dict(zip(groups.of_image.tolist(), labels.tolist()))
    return [
        (i, j)
        for i in range(len(groups))
        for j in range(i)
        if of_tracklet[i] == of_tracklet[j] != NOISE
        and groups.scene[i] == groups.scene[j]
        and max(groups.first[i], groups.first[j]) <= min(groups.last[i], groups.last[j])
    ]


@pytest.mark.parametrize("method", ["dbscan", "hdbscan", "kmeans"])
@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_twice_in_a_cluster_at_a_time(method, seed):
    rng = np.random.default_rng(seed)
    features, frames = people(seed), rng.integers(0, 60, 120)
    cameras = rng.integers(0, 2, 120)
    options = {**OPTIONS, "method": method, "num_clusters": 10}
    groups = tracklets(rng.integers(0, 90, 120), frames, cameras)
    free = dataclasses.replace(groups, first=groups.first * 0 + 1, last=groups.last * 0)
    assert overlapping_pairs(pseudo_labels(features, tracklets=free, **options).labels, groups)
    result = pseudo_labels(features, tracklets=groups, **options)
    assert not overlapping_pairs(result.labels, groups)
    assert sorted(set(result.labels) - {NOISE}) == list(range(result.report.num_clusters))
    assert method != "kmeans" or result.tracklets.split > 0


@pytest.fixture
def one_cluster():
    """A method whose only cluster is everybody."""
    register_clustering("everybody", uses="features")(lambda problem: np.zeros(len(problem.rows), np.int64))
    yield "everybody"
    del CLUSTERING_METHODS["everybody"]


def split(one_cluster, angles, frames, min_samples=1):
    """Labels of tracklets at these angles [degrees]; each frame stands for two images of one tracklet."""
    angles = np.deg2rad(np.repeat(angles, 2))
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    groups = tracklets(np.arange(len(angles)) // 2, np.repeat(frames, 2))
    found = pseudo_labels(features, tracklets=groups, method=one_cluster, min_samples=min_samples)
    return found.labels[::2].tolist(), found.tracklets


def test_a_cluster_with_two_at_a_time_is_split_between_them(one_cluster):
    labels, report = split(one_cluster, [0, 5, 80, 90, 10], [1, 2, 3, 1, 4])
    assert labels == [0, 0, 1, 1, 0] and dataclasses.astuple(report) == (5, 5, 2)


def test_three_at_a_time_and_a_cluster_without_overlap(one_cluster):
    assert split(one_cluster, [0, 40, 80], [1, 1, 1]) == (
        [0, 1, 2],
        split(one_cluster, [0, 40, 80], [1] * 3)[1],
    )
    labels, report = split(one_cluster, [0, 40, 80], [1, 2, 3])
    assert labels == [0, 0, 0] and report.split == 0


def test_parts_of_too_few_images_are_noise(one_cluster):
    labels, report = split(one_cluster, [0, 5, 80], [1, 2, 1], min_samples=3)
    assert labels == [0, 0, NOISE] and report.split == 1
    labels, report = split(one_cluster, [0, 40, 80], [1, 1, 1], min_samples=3)
    assert labels == [NOISE] * 3 and report.split == 2


def test_shards_of_a_search_give_the_same_labels():
    features, groups = people(3), tracklets(np.arange(120) // 2, np.arange(120) % 17)
    shards = [search_neighbors(features, Shard(i, 2), tracklets=groups, **OPTIONS) for i in range(2)]
    result = pseudo_labels(features, tracklets=groups, candidates=merge_shards(shards), **OPTIONS)
    assert np.array_equal(result.labels, pseudo_labels(features, tracklets=groups, **OPTIONS).labels)
