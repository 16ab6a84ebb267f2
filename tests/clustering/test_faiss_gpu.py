"""What is done where faiss sees a GPU, with a stand-in for the card: the index is moved, and checked as any other."""

import logging

import numpy as np
import pytest
from dense_reference import crowd

from fastreid_sskd.clustering import nearest_neighbors

faiss = pytest.importorskip("faiss")

FEATURES = crowd(seed=1, num_ids=40)


class Card:
    """An index on a GPU that computes `error` off for a half of the rows, as multi-GPU faiss is known to."""

    def __init__(self, index, error):
        self.index, self.error, self.asked = index, error, 0

    def add(self, rows):
        self.index.add(rows)

    def search(self, queries, k):
        self.asked += len(queries)
        if self.error:
            queries = np.roll(queries, 1, axis=1) if self.error == "wrong" else queries[::-1].copy()
        return self.index.search(queries, k)


@pytest.fixture
def card(monkeypatch):
    """Makes faiss believe in a GPU; returns the indexes moved there."""

    def arrange(error=None):
        moved = []

        def to_gpu(resources, device, index):
            moved.append((device, Card(index, error)))
            return moved[-1][1]

        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
        return moved

    return arrange


def test_one_card_is_used(card, caplog):
    moved = card()
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 8, backend="faiss", need_smallest=True)
    expected = nearest_neighbors(FEATURES, 8, need_smallest=True)
    assert [device for device, _ in moved] == [0]  # one, although there are two
    assert moved[0][1].asked == 2 * len(FEATURES)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)
    assert not caplog.records


def test_a_card_that_errs_is_refused_with_a_warning(card, caplog, monkeypatch):
    moved = card("wrong")
    # as if the rows were not searched again one by one
    monkeypatch.setattr(
        "fastreid_sskd.clustering.neighbors.rescore",
        lambda rows, candidates, k, real=nearest_neighbors.__globals__["rescore"]: (
            real(rows, candidates, k)
            if candidates.backend == "torch"
            else (np.tile(np.arange(k, dtype=np.int32), (len(rows), 1)), np.ones((len(rows), k), np.float32), 0)
        ),
    )
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(FEATURES, 8, backend="faiss")
    assert moved and "'faiss' on cpu disagrees with an exact search" in caplog.text
    assert np.array_equal(found.indices, nearest_neighbors(FEATURES, 8).indices)


@pytest.mark.parametrize("error", ["wrong", "mixed"])
def test_wrong_distances_do_not_reach_the_lists(error, card):
    card(error)
    found = nearest_neighbors(FEATURES, 8, backend="faiss")
    assert np.array_equal(found.indices, nearest_neighbors(FEATURES, 8).indices)
