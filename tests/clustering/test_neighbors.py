"""Lists of neighbors against a full sort; searches that err; shards; faiss on a GPU."""

import itertools
import logging

import numpy as np
import pytest
import torch
from dense_reference import cosines, crowd, lattice, rank_by_similarity

from fastreid_sskd.clustering import (
    KNN_BACKENDS,
    Shard,
    approximate,
    find_candidates,
    lists_from_candidates,
    merge_shards,
    nearest_neighbors,
    pseudo_labels,
    register_knn,
    search_neighbors,
)
from fastreid_sskd.clustering import neighbors as neighbors_module
from fastreid_sskd.clustering.features import UnitRows
from fastreid_sskd.clustering.neighbors import search_rows_exactly

CASES = {
    "crowd": crowd(seed=1, num_ids=40),
    "ties": lattice(seed=1),
    "equal": np.ones((50, 5), dtype=np.float32),
    "duplicates": np.repeat(crowd(seed=2, num_ids=3, isolated=1, duplicated=0)[:6], 20, axis=0),
    "narrow": (1 + 1e-4 * crowd(seed=3)).astype(np.float32),  # all similarities within 1e-8 of 1
    "opposite": np.array([[1, 0], [-1, 0], [1, 0], [-1, 0], [0, 1]], dtype=np.float32),
    "one column": np.array([[1], [2], [-1], [3], [-2]], dtype=np.float32),
    "two rows": np.array([[1, 0], [0, 1]], dtype=np.float32),
}


@pytest.fixture
def elsewhere(monkeypatch):
    """Exact similarities as on another device, on the CPU."""
    monkeypatch.setattr(neighbors_module, "pair_cosines", neighbors_module._cosines_on_device)


@pytest.mark.parametrize("tile", [7, 64, 4096])
@pytest.mark.parametrize("backend", ["auto", "device", "faiss"])
@pytest.mark.parametrize("case", CASES)
def test_lists_equal_a_full_sort(case, backend, tile, monkeypatch, request):
    if backend == "faiss":
        pytest.importorskip("faiss")
    if backend == "device":
        request.getfixturevalue("elsewhere")
    knn = "auto" if backend == "device" else backend
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (tile, 2 * tile))
    features = CASES[case]
    similarity = cosines(features)
    ranks = rank_by_similarity(similarity)
    for k in (1, 2, 6, 21):
        found = nearest_neighbors(features, k, knn=knn, need_smallest=True)
        k = min(k, len(features))
        assert found.indices.shape == found.similarities.shape == (len(features), k)
        assert np.array_equal(found.indices, ranks[:, :k])
        expected = np.take_along_axis(similarity, ranks[:, :k], 1)
        np.testing.assert_allclose(found.similarities[:, 1:], expected[:, 1:], rtol=0, atol=1.2e-7)
        assert (found.similarities[:, 0] == 1).all()
        np.testing.assert_allclose(found.smallest, similarity.min(1), rtol=0, atol=1.2e-7)


def test_rows_left_in_doubt_are_searched_again(monkeypatch):
    # 60 equal rows and a margin of 8: the candidates cannot prove which of them come first
    features = CASES["duplicates"]
    searched = []

    def spy(rows, which, *args, **kwargs):
        searched.extend(which)
        return search_rows_exactly(rows, which, *args, **kwargs)

    monkeypatch.setattr("fastreid_sskd.clustering.neighbors.search_rows_exactly", spy)
    features = np.concatenate([np.repeat(features[:1], 60, axis=0), CASES["crowd"][:, : features.shape[1]]])
    found = nearest_neighbors(features, 10)
    assert set(range(60)) <= set(searched)
    assert len(searched) < len(features)
    expected = rank_by_similarity(cosines(features))[:, :10]
    assert np.array_equal(found.indices, expected)


def test_lower_matmul_precision_does_not_change_the_lists():
    features = CASES["crowd"]
    expected = nearest_neighbors(features, 12)
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest_neighbors(features, 12)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.similarities, expected.similarities)


def test_error_bound_holds_for_every_pair():
    features = crowd(seed=5, dim=700)
    for scaled in (features, features * np.float32(3.7)):
        rows = UnitRows.from_features(scaled)
        product = rows.block(0, len(rows)) @ rows.block(0, len(rows)).T
        exact = torch.from_numpy(scaled).double()
        exact = exact / exact.norm(dim=1, keepdim=True)
        assert (product.double() - exact @ exact.T).abs().max() < neighbors_module.product_error(rows)


@pytest.mark.parametrize("precision, bits", [("high", 10), ("medium", 7)])
def test_error_bound_holds_for_factors_cut_to_fewer_bits(precision, bits):
    # what TF32 and bfloat16 units do to the factors, whether or not this machine has any
    features = np.abs(crowd(seed=6, dim=300))  # of one sign, so that the errors add up
    cut = (features.view(np.uint32) >> (23 - bits) << (23 - bits)).view(np.float32).astype(np.float64)
    exact = features.astype(np.float64) @ features.T.astype(np.float64)
    rows = UnitRows.from_features(features)
    error = np.abs(cut @ cut.T - exact).max()
    assert error > neighbors_module.product_error(rows)
    torch.set_float32_matmul_precision(precision)
    try:
        assert error < neighbors_module.product_error(rows)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_backend_that_misses_neighbours_is_refused_with_a_warning(monkeypatch, caplog):
    def blind(rows, search):
        found = KNN_BACKENDS["torch"](UnitRows.from_features(rows.tensor[::2].clone()), search)
        repeated = (np.repeat(part, 2, axis=0) for part in (2 * found.indices, found.approximate))
        return neighbors_module.Candidates(*repeated, found.error, None)

    monkeypatch.setitem(KNN_BACKENDS, "blind", blind)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(CASES["crowd"], 8, knn="blind")
    assert "'blind' on cpu disagrees with an exact search" in caplog.text
    assert np.array_equal(found.indices, nearest_neighbors(CASES["crowd"], 8).indices)


def test_a_backend_that_misses_the_least_similar_row_is_refused(monkeypatch, caplog):
    def short_sighted(rows, search):
        found = KNN_BACKENDS["torch"](rows, search)
        if search.need_farthest:
            found.farthest = (found.farthest + 1) % len(rows)
        return found

    monkeypatch.setitem(KNN_BACKENDS, "short-sighted", short_sighted)
    expected = nearest_neighbors(CASES["crowd"], 8, need_smallest=True)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        found = nearest_neighbors(CASES["crowd"], 8, knn="short-sighted", need_smallest=True)
        assert "'short-sighted' on cpu disagrees" in caplog.text
        assert np.array_equal(found.smallest, expected.smallest)
        caplog.clear()
        nearest_neighbors(CASES["crowd"], 8, knn="short-sighted")
        assert not caplog.records  # who does not ask for it cannot be misled


def test_a_backend_that_mixes_rows_up_is_mended_row_by_row(monkeypatch, caplog):
    def mixed(rows, search):
        found = KNN_BACKENDS["torch"](rows, search)
        found.indices = found.indices[::-1].copy()
        return found

    monkeypatch.setitem(KNN_BACKENDS, "mixed", mixed)
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(CASES["crowd"], 8, knn="mixed")
    assert "were searched twice" in caplog.text
    assert np.array_equal(found.indices, nearest_neighbors(CASES["crowd"], 8).indices)


def test_a_backend_that_agrees_is_kept(caplog):
    pytest.importorskip("faiss")
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        nearest_neighbors(CASES["crowd"], 8, knn="faiss")
    assert not caplog.records


def test_backends_register_once():
    with pytest.raises(ValueError, match="registered twice"):
        register_knn("torch")(lambda rows, search: None)


def test_k_below_one():
    with pytest.raises(ValueError, match="k must be at least 1"):
        nearest_neighbors(CASES["crowd"], 0)


def test_progress_is_told_up_to_the_end(monkeypatch):
    told = []
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (50, 120))
    monkeypatch.setattr(
        neighbors_module, "LogProgress", lambda stage: lambda done, total: told.append((done, total))
    )
    nearest_neighbors(CASES["crowd"], 8)
    assert told[-1][0] == told[-1][1] > 0
    assert len(told) == -(-len(CASES["crowd"]) // 50)
    assert all(0 < before[0] < after[0] for before, after in itertools.pairwise(told))


def test_error_of_a_product_whose_precision_torch_will_not_say(monkeypatch):
    """torch >= 2.9 raises where both kinds of its switches were used: then the lowest is reckoned with."""
    rows = UnitRows.from_features(np.eye(4, dtype=np.float32))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    expected = neighbors_module.product_error(rows)
    torch.set_float32_matmul_precision(before)

    def mixed():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    assert neighbors_module.product_error(rows) == expected > 2.0**-7


@pytest.fixture(params=["torch", "faiss"])
def backend(request, monkeypatch):
    """Name of a search, in small pieces."""
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (16, 64))
    if request.param == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(approximate, "ROWS_PER_CALL", 32)
    return request.param


@pytest.mark.parametrize("of", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("case", CASES)
def test_merged_shares_give_the_lists_of_one_search(case, of, backend):
    features = CASES[case]
    for k in (1, 6, 21):
        parts = [
            find_candidates(features, k, shard=Shard(number, of), knn=backend, need_smallest=True)
            for number in reversed(range(of))
        ]
        merged = merge_shards(parts)
        found = lists_from_candidates(features, k, merged)
        expected = nearest_neighbors(features, k, knn="torch", need_smallest=True)
        assert np.array_equal(found.indices, expected.indices)
        assert np.array_equal(found.similarities, expected.similarities)
        assert np.array_equal(found.smallest, expected.smallest)


@pytest.mark.parametrize("of", [2, 4])
def test_shares_do_different_parts_of_the_work(of, backend):
    features = CASES["crowd"]
    count = len(features)
    parts = [find_candidates(features, 9, shard=Shard(number, of), knn=backend) for number in range(of)]
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
    merged = merge_shards([find_candidates(features, 9, shard=Shard(number, 4)) for number in range(4)])

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
    merged = merge_shards([search_neighbors(features, Shard(number, of), **search) for number in range(of)])
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
            parts.append(find_candidates(features, 9, shard=Shard(number, of), need_smallest=True))
    finally:
        torch.set_num_threads(threads)
    found = lists_from_candidates(features, 9, merge_shards(parts))
    expected = nearest_neighbors(features, 9, need_smallest=True)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)


def test_candidates_of_other_features_are_noticed(caplog):
    features = CASES["crowd"]
    other = find_candidates(np.roll(features, 1, axis=0), 9)
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = lists_from_candidates(features, 9, other)
    assert "were searched twice" in caplog.text
    assert np.array_equal(found.indices, nearest_neighbors(features, 9).indices)


# ---- who does what -------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 1000])
def test_ranges_cover_all_rows_once(count, of):
    ranges = [Shard(number, of).rows(count) for number in range(of)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in ranges) - min(stop - start for start, stop in ranges) <= 1


@pytest.mark.parametrize("of", [1, 2, 4])
def test_strips_are_dealt_once_and_evenly(of):
    dealt = [Shard(number, of).strips(13) for number in range(of)]
    assert sorted(strip for own in dealt for strip in own) == list(range(13))
    loads = [sum(13 - strip for strip in own) for own in dealt]
    assert max(loads) - min(loads) <= 13 / 2 + 1
    assert all(own == sorted(own) for own in dealt)


@pytest.mark.parametrize("number, of", [(2, 2), (-1, 2), (0, 0)])
def test_shares_out_of_range(number, of):
    with pytest.raises(ValueError, match="shard must be"):
        Shard(number, of)


def test_shares_of_different_searches():
    features = CASES["crowd"]
    with pytest.raises(ValueError, match="at least one shard"):
        merge_shards([])
    with pytest.raises(ValueError, match="of different searches"):
        merge_shards([find_candidates(features, 9), find_candidates(features, 8)])
    with pytest.raises(ValueError, match="of different searches"):
        merge_shards([find_candidates(features, 9), find_candidates(features[1:], 9)])


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
    faiss = pytest.importorskip("faiss")

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
        found = nearest_neighbors(CASES["crowd"], 8, knn="faiss", need_smallest=True)
    expected = nearest_neighbors(CASES["crowd"], 8, need_smallest=True)
    assert [device for device, _ in moved] == [0]  # one, although there are two
    assert moved[0][1].asked == 2 * len(CASES["crowd"])
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.smallest, expected.smallest)
    assert not caplog.records


@pytest.mark.parametrize("error", ["wrong", "mixed"])
def test_wrong_distances_do_not_reach_the_lists(error, card):
    card(error)
    found = nearest_neighbors(CASES["crowd"], 8, knn="faiss")
    assert np.array_equal(found.indices, nearest_neighbors(CASES["crowd"], 8).indices)
