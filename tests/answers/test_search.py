"""Ranked lists, and re-ranking against the host's own."""

import numpy as np
import pytest
from fastreid.evaluation.rerank import re_ranking

from fastreid_sskd.answers import reranked_distance, search

UNIT = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]], dtype=np.float32)
NAMES = ["a.png", "b.png", "c.png", "d.png"]


def test_the_nearest_first_and_who_is_the_same_person():
    (first, second) = search(["q.png", "c.png"], UNIT[[0, 2]], NAMES, UNIT, 3, threshold=0.7)
    assert [match.image for match in first] == ["a.png", "d.png", "b.png"]
    assert [match.similarity for match in first] == pytest.approx([1, 0.8, 0.6])
    assert [match.same_person for match in first] == [True, True, False]
    assert [match.image for match in second] == ["b.png", "d.png", "a.png"]  # without itself


def test_ties_go_by_index_and_fewer_images_than_asked_for():
    (found,) = search(["q.png"], UNIT[:1], NAMES[:3], np.ones((3, 2), np.float32), 9)
    assert [match.image for match in found] == NAMES[:3] and {match.same_person for match in found} == {None}


def test_a_given_distance_ranks_and_leaves_the_similarity():
    (found,) = search(["q.png"], UNIT[:1], NAMES, UNIT, 2, distance=np.array([[3, 0, 2, 1]]))
    assert [(match.image, round(match.similarity, 1)) for match in found] == [("b.png", 0.6), ("d.png", 0.8)]


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no image to compare with but the query 'a.png'"):
        search(["a.png"], UNIT[:1], ["a.png"], UNIT[:1], 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        search(["q.png"], UNIT[:1], NAMES, UNIT, 0)


@pytest.mark.parametrize("k1, k2, weight", [(20, 6, 0.3), (5, 1, 0.0), (8, 3, 1.0)])
def test_reranking_is_the_hosts(k1, k2, weight):
    random = np.random.default_rng(0)
    features = random.normal(size=(15, 16)).repeat(6, axis=0) + 0.7 * random.normal(size=(90, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    queries, gallery = features[::9], np.delete(features, np.s_[::9], axis=0)

    def euclidean(a, b):
        return np.sqrt(np.maximum(2 - 2 * a @ b.T, 0))

    expected = re_ranking(
        euclidean(queries, gallery), euclidean(queries, queries), euclidean(gallery, gallery), k1, k2, weight
    )
    found = reranked_distance(queries, gallery, k1, k2, weight)
    assert found.shape == (10, 80) and np.allclose(found, expected, atol=1e-4)
