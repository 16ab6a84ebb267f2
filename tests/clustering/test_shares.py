import logging

import numpy as np
import pytest
import torch
from dense_reference import crowd, lattice

from fastreid_sskd.clustering import (
    KNN_BACKENDS,
    Share,
    knn_share,
    lists_from_candidates,
    merge_shares,
    nearest_neighbors,
    pseudo_labels,
    search_neighbors,
)
from fastreid_sskd.clustering import (
    neighbors as neighbors_module,
)

CASES = {
    "crowd": crowd(seed=1, num_ids=40),
    "ties": lattice(seed=1),
    "equal": np.ones((50, 5), dtype=np.float32),
    "opposite": np.array([[1, 0], [-1, 0], [1, 0], [-1, 0], [0, 1]], dtype=np.float32),
    "two rows": np.array([[1, 0], [0, 1]], dtype=np.float32),
}


@pytest.fixture(params=["torch", "device", "faiss"])
def backend(request, monkeypatch):
    """Name of a search; "device": that of the other devices, run on the CPU."""
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (16, 64))
    monkeypatch.setattr(neighbors_module, "FAISS_QUERIES", 32)
    if request.param == "faiss":
        pytest.importorskip("faiss")
    if request.param == "device":

        def device(rows, search):
            return neighbors_module.device_topk(
                rows, search.size, need_farthest=search.need_farthest, tile=16, progress=search.progress,
                span=search.share.rows(len(rows)),
            )  # fmt: skip

        monkeypatch.setitem(KNN_BACKENDS, "device", device)
    return request.param


@pytest.mark.parametrize("of", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("case", CASES)
def test_merged_shares_give_the_lists_of_one_search(case, of, backend):
    features = CASES[case]
    for k in (1, 6, 21):
        parts = [
            knn_share(features, k, share=Share(number, of), backend=backend, need_smallest=True)
            for number in reversed(range(of))
        ]
        merged = merge_shares(parts)
        found = lists_from_candidates(features, k, merged, need_smallest=True)
        expected = nearest_neighbors(features, k, backend="torch", need_smallest=True)
        assert np.array_equal(found.indices, expected.indices)
        assert np.array_equal(found.similarities, expected.similarities)
        assert np.array_equal(found.smallest, expected.smallest)


@pytest.mark.parametrize("of", [2, 4])
def test_shares_do_different_parts_of_the_work(of, backend):
    features = CASES["crowd"]
    count = len(features)
    parts = [knn_share(features, 9, share=Share(number, of), backend=backend) for number in range(of)]
    assert all((part.indices >= 0).any() for part in parts)
    if backend != "torch":  # ranges of rows: each row is one share's
        assert sum((part.indices >= 0).any(1) for part in parts).tolist() == [1] * count
    else:  # tiles: of each pair of rows, one share
        pairs = [set() for _ in range(of)]
        for part, own in zip(parts, pairs, strict=True):
            row, place = np.nonzero(part.indices >= 0)
            own.update((min(a, b), max(a, b)) for a, b in zip(row, part.indices[row, place], strict=True))
        assert all(not a & b for i, a in enumerate(pairs) for b in pairs[:i])


def test_merged_lists_need_no_second_search(monkeypatch):
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (16, 64))
    features = CASES["crowd"][:300]
    merged = merge_shares([knn_share(features, 9, share=Share(number, 4)) for number in range(4)])

    def never(*args, **kwargs):
        raise AssertionError("searched again")

    duplicates = len(features) - len(np.unique(features, axis=0))
    assert duplicates < 9
    monkeypatch.setattr("fastreid_sskd.clustering.neighbors.search_rows_exactly", never)
    lists_from_candidates(features, 9, merged)


@pytest.mark.parametrize("variant", ["sskd", "faiss"])
@pytest.mark.parametrize("of", [1, 2, 4])
def test_labels_are_those_of_one_process(of, variant, monkeypatch):
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (16, 64))
    features = CASES["crowd"]
    search = {"k1": 12, "k2": 4, "variant": variant}
    rest = {"pairs_per_image": 3.0, "min_samples": 3}
    expected = pseudo_labels(features, **search, **rest)
    merged = merge_shares([search_neighbors(features, Share(number, of), **search) for number in range(of)])
    found = pseudo_labels(features, candidates=merged, **search, **rest)
    assert np.array_equal(found.labels, expected.labels) and found.eps == expected.eps
    assert found.report.num_clusters > 3
    assert np.array_equal(found.centroids, expected.centroids)


def test_threads_of_a_share_do_not_matter():
    features = CASES["crowd"]
    threads = torch.get_num_threads()
    try:
        parts = []
        for number, of in ((0, 2), (1, 2)):
            torch.set_num_threads(1 + number)
            parts.append(knn_share(features, 9, share=Share(number, of), need_smallest=True))
    finally:
        torch.set_num_threads(threads)
    found = lists_from_candidates(features, 9, merge_shares(parts), need_smallest=True)
    expected = nearest_neighbors(features, 9, need_smallest=True)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)


def test_candidates_of_other_features_are_noticed(caplog):
    features = CASES["crowd"]
    other = knn_share(np.roll(features, 1, axis=0), 9)
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = lists_from_candidates(features, 9, other)
    assert "were searched twice" in caplog.text
    assert np.array_equal(found.indices, nearest_neighbors(features, 9).indices)


# ---- who does what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 1000])
def test_ranges_cover_all_rows_once(count, of):
    ranges = [Share(number, of).rows(count) for number in range(of)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in ranges) - min(stop - start for start, stop in ranges) <= 1


@pytest.mark.parametrize("of", [1, 2, 4])
def test_pieces_are_dealt_once_and_evenly(of):
    work = [100 * (13 - i) for i in range(13)]
    dealt = [Share(number, of).deal(work) for number in range(of)]
    assert sorted(piece for own in dealt for piece in own) == list(range(13))
    loads = [sum(work[piece] for piece in own) for own in dealt]
    assert max(loads) <= 1.1 * min(loads)
    assert all(own == sorted(own) for own in dealt)


@pytest.mark.parametrize("number, of", [(2, 2), (-1, 2), (0, 0)])
def test_shares_out_of_range(number, of):
    with pytest.raises(ValueError, match="share must be"):
        Share(number, of)


def test_shares_of_different_searches():
    features = CASES["crowd"]
    with pytest.raises(ValueError, match="at least one share"):
        merge_shares([])
    with pytest.raises(ValueError, match="of different searches"):
        merge_shares([knn_share(features, 9), knn_share(features, 8)])
    with pytest.raises(ValueError, match="of different searches"):
        merge_shares([knn_share(features, 9), knn_share(features[1:], 9)])
