"""Ranked lists, the sample of queries, example clusters and thumbnails."""

import re

import numpy as np
import pytest
from markupsafe import Markup

from fastreid_sskd.report.images import average_precisions, cluster_rows, ranked_list, sample_queries, tile

QUERY = ("q", 1, 0)
GALLERY = [("a", 1, 0), ("b", 1, 1), ("c", 2, 0), ("d", 2, 1), ("e", 1, 2)]


def test_junk_is_left_out_and_matches_are_right():
    distances = np.array([0.0, 0.3, 0.2, 0.4, 0.1])
    assert ranked_list(distances, QUERY, GALLERY, 10) == [(4, True), (2, False), (1, True), (3, False)]
    assert ranked_list(distances, QUERY, GALLERY, 2) == [(4, True), (2, False)]


def test_ties_keep_the_gallerys_order():
    assert [i for i, _ in ranked_list(np.zeros(5), QUERY, GALLERY, 10)] == [1, 2, 3, 4]


def test_a_gallery_of_junk_only():
    assert ranked_list(np.zeros(1), QUERY, GALLERY[:1], 5) == []


def test_average_precision_of_each_query_against_a_slow_loop():
    rng = np.random.default_rng(0)
    queries = [(f"q{i}", int(rng.integers(5)), int(rng.integers(3))) for i in range(20)] + [("nobody", 99, 0)]
    gallery = [(f"g{i}", int(rng.integers(5)), int(rng.integers(3))) for i in range(30)]
    distances = rng.random((21, 30))
    before = distances.copy()
    found = average_precisions(distances, queries, gallery)
    assert np.array_equal(distances, before)
    for q, query in enumerate(queries):
        right = [match for _, match in ranked_list(distances[q], query, gallery, 30)]
        precisions = [sum(right[: n + 1]) / (n + 1) for n, match in enumerate(right) if match]
        expected = np.mean(precisions) if precisions else np.nan
        assert found[q] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found[-1])


def test_no_query_has_a_match():
    assert np.isnan(average_precisions(np.zeros((1, 1)), [QUERY], GALLERY[:1])).all()


def test_sample_holds_random_ones_gains_and_losses():
    rng = np.random.default_rng(0)
    before, after = rng.random(100), rng.random(100)
    after[7] = np.nan
    sample = sample_queries(before, after, 8)
    assert len(sample) == 8 and 7 not in sample
    chosen = {why: {q for q, other in sample.items() if other == why} for why in sample.values()}
    drawn = chosen["at random"]
    gain = {q: after[q] - before[q] for q in range(100) if q not in drawn and q != 7}
    top = sorted(gain, key=gain.get)
    assert len(drawn) == 4
    assert chosen["among the largest gains"] == set(top[-2:]) and chosen["among the largest losses"] == set(
        top[:2]
    )


def test_sample_does_not_call_a_loss_a_gain():
    same = np.full(5, 0.5)
    assert set(sample_queries(same, same, 4).values()) == {"at random"}
    assert not any("gains" in why for why in sample_queries(same, same - 0.1, 4).values())


def test_small_samples():
    assert sample_queries(None, np.array([np.nan]), 8) == {}
    assert sample_queries(None, np.array([np.nan, 0.3]), 8) == {1: "at random"}
    assert len(sample_queries(np.zeros(3), np.ones(3), 8)) == 3
    assert sample_queries(np.zeros(3), np.ones(3), 0) == {}


def test_sample_depends_on_the_seed_only():
    after = np.linspace(0, 1, 50)
    assert sample_queries(None, after, 5, seed=1) == sample_queries(None, after, 5, seed=1)
    assert sample_queries(None, after, 5, seed=1) != sample_queries(None, after, 5, seed=2)


def rows(labels, identities, **options):
    items = [(f"{i}.jpg", identity, i % 2) for i, identity in enumerate(identities)]
    return cluster_rows(
        np.array(labels), items, **{"count": 8, "length": 3, "seed": 0, "images": False, **options}
    )


def test_largest_median_smallest_then_random_then_noise():
    labels = [0] * 9 + [1] * 4 + [2] * 6 + [3] * 5 + [-1] * 2
    found = rows(labels, [0] * 26)  # without identities nothing is said of them
    assert [row.title for row in found] == [
        "the largest cluster, 9 images", "the median cluster, 5 images", "the smallest cluster, 4 images",
        "a cluster at random, 6 images", "noise, 2 images",
    ]  # fmt: skip
    assert [len(row.tiles) for row in found] == [3, 3, 3, 3, 2]


def test_tiles_are_members_of_their_cluster():
    labels = np.random.default_rng(0).permutation([0] * 9 + [1] * 4 + [-1] * 5)
    for row in rows(labels, labels + 5):
        identities = {int(n) for tile in row.tiles for n in re.findall(r"identity (\d+)", tile)}
        assert len(identities) == 1


def test_ratio_of_the_commonest_identity():
    (row,) = rows([0, 0, 0, 0], [7, 7, 7, 8])
    assert row.title == "the largest cluster, 4 images; of 2 identities, 75 % of one (unseen by training)"


@pytest.mark.parametrize(
    "labels, titles", [([], []), ([-1, -1], ["noise, 2 images"]), ([0], ["the largest cluster, 1 images"])]
)
def test_no_cluster_and_one(labels, titles):
    assert [row.title for row in rows(labels, [1] * len(labels))] == titles


def test_fewer_clusters_asked_for_than_there_are():
    assert [row.title.split(",")[0] for row in rows([0, 1, 2, 3], [1] * 4, count=2)] == [
        "the largest cluster",
        "the median cluster",
    ]
    assert rows([0, 1], [1, 1], count=0) == []


def test_an_image_that_is_gone(tmp_path):
    found = tile((str(tmp_path / "<gone>.jpg"), 1, 2), "right")
    assert isinstance(found, Markup) and "no image: FileNotFoundError" in found and "gone" not in found
