"""The refresh's search shared by real processes.

The labels of one, whatever the search, and one's error in all.
"""

import importlib.util
import itertools
import os

import numpy as np
import pytest
import torch
from fastreid.utils import comm
from own_processes import together

from fastreid_sskd.clustering import ClusterOptions, Shard, approximate, pseudo_labels
from fastreid_sskd.clustering import neighbors as neighbors_module
from fastreid_sskd.engine import hooks, refresh, run
from fastreid_sskd.engine.refresh import shared_candidates

SEARCHES = ["torch", "reduced"] + (["faiss", "ivf"] if importlib.util.find_spec("faiss") else [])


def crowd(count=600, dim=24, seed=3):
    """Unit rows of 60 people, four of them equal."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(60, dim))[rng.integers(0, 60, count)] + 0.5 * rng.normal(size=(count, dim))
    rows[5:8] = rows[4]
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def options(**others):
    given = {
        "k1": 12,
        "k2": 4,
        "min_samples": 3,
        "pairs_per_image": 3.0,
        "reduced_dim": 16,
        "ivf_lists": 6,
        "ivf_probes": 3,
    }
    return ClusterOptions(**{**given, **others})


def labels_of_all_searches():
    """Each process searches its own shard, and the labels that the main one makes of them are those of one
    process.
    """
    neighbors_module.CPU_TILE, approximate.FAISS_QUERIES = (16, 64), 32
    refresh._ROWS = 250  # sent in more than one piece
    rank, world = comm.get_rank(), comm.get_world_size()
    features, shards, search = crowd(), [], refresh.search_neighbors
    refresh.search_neighbors = lambda rows, shard, *rest, **at: (
        shards.append(shard) or search(rows, shard, *rest, **at)
    )
    cases = [(*case, None) for case in itertools.product(SEARCHES, ("sskd", "faiss"))] + [
        ("torch", "sskd", [0, 1, 2] * 200)
    ]
    for knn, variant, cameras in cases:
        given, at = options(knn=knn, variant=variant), {"device": "cpu", "cameras": cameras}
        candidates = shared_candidates(features, given, **at)
        assert (candidates is None) == (rank != 0)
        if rank == 0:
            found = pseudo_labels(features, given, candidates=candidates, **at)
            expected = pseudo_labels(features, given, **at)
            assert expected.report.num_clusters > 20 and expected.report.noise_share < 0.5
            assert np.array_equal(found.labels, expected.labels), (knn, variant)
            assert (found.eps, found.recall) == (expected.eps, expected.recall)
            assert torch.equal(found.centroids, expected.centroids)
    assert shards == [Shard(rank, world)] * len(cases)


@pytest.mark.parametrize("world", [2, 4])
def test_labels_are_those_of_one_process(world):
    assert together(labels_of_all_searches, world=world) == [0] * world


def more_processes_than_work():
    """Seven rows are one tile: the others' shards are empty."""
    features = crowd(7)
    given = options(k1=3, k2=1, min_samples=2)
    candidates = shared_candidates(features, given)
    if comm.get_rank() == 0:
        expected = pseudo_labels(features, given)
        assert np.array_equal(pseudo_labels(features, given, candidates=candidates).labels, expected.labels)


def test_more_processes_than_work():
    assert together(more_processes_than_work, world=3) == [0] * 3


def test_nothing_to_share(monkeypatch):
    """Alone, and for a method that searches no neighbours, which needs no other process either."""
    assert shared_candidates(crowd(), options()) is None
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert shared_candidates(crowd(), options(method="kmeans")) is None


# ---- in a run ------------------------------------------------------------------------------------


def fails(cfg, where, rank):
    """In one process the extraction or the search fails: the exit status says who was told what."""
    module, name = {"features": (hooks, "extract_features"), "search": (refresh, "search_neighbors")}[where]
    real = getattr(module, name)

    def spoilt(*args, **kwargs):
        if comm.get_rank() == rank:
            raise FloatingPointError(f"{where} of {rank}")
        return real(*args, **kwargs)

    setattr(module, name, spoilt)
    try:
        run(cfg)
    except FloatingPointError as error:
        os._exit(7 if str(error) == f"{where} of {rank}" else 8)


@pytest.mark.parametrize("where", ["features", "search"])
@pytest.mark.parametrize("rank", [0, 1])
def test_error_of_one_is_raised_in_all(adaptation, tmp_path, where, rank):
    cfg = adaptation("TEST.EVAL_PERIOD 0", output=tmp_path / "failed")
    assert together(fails, cfg, where, rank) == [7, 7]
