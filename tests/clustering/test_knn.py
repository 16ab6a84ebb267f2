import itertools
import logging
import sys

import numpy as np
import pytest
import torch
from dense_reference import cosines, crowd, lattice, rank_by_similarity

from fastreid_sskd.clustering import KNN_BACKENDS, nearest_neighbors, register_knn
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


def search(backend, features, k, monkeypatch, **kwargs):
    if backend == "device":  # the path of the other devices, run on the CPU
        monkeypatch.setitem(
            KNN_BACKENDS,
            "torch",
            lambda rows, search: neighbors_module.device_topk(
                rows, search.size, need_farthest=search.need_farthest, tile=16, progress=search.progress
            ),
        )
        backend = "torch"
    return nearest_neighbors(features, k, backend=backend, **kwargs)


@pytest.mark.parametrize("tile", [7, 64, 4096])
@pytest.mark.parametrize("backend", ["auto", "device", "faiss"])
@pytest.mark.parametrize("case", CASES)
def test_lists_equal_a_full_sort(case, backend, tile, monkeypatch):
    if backend == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (tile, 2 * tile))
    features = CASES[case]
    similarity = cosines(features)
    ranks = rank_by_similarity(similarity)
    for k in (1, 2, 6, 21):
        found = search(backend, features, k, monkeypatch, need_smallest=True)
        k = min(k, len(features))
        assert found.indices.shape == found.similarities.shape == (len(features), k)
        assert np.array_equal(found.indices, ranks[:, :k])
        expected = np.take_along_axis(similarity, ranks[:, :k], 1)
        np.testing.assert_allclose(found.similarities[:, 1:], expected[:, 1:], rtol=0, atol=1.2e-7)
        assert (found.similarities[:, 0] == 1).all()
        np.testing.assert_allclose(found.smallest, similarity.min(1), rtol=0, atol=1.2e-7)


def test_rows_left_in_doubt_are_searched_again(monkeypatch):
    # 40 equal rows and a margin of 16: the candidates cannot prove which of them come first
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
        found = nearest_neighbors(CASES["crowd"], 8, backend="blind")
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
        found = nearest_neighbors(CASES["crowd"], 8, backend="short-sighted", need_smallest=True)
        assert "'short-sighted' on cpu disagrees" in caplog.text
        assert np.array_equal(found.smallest, expected.smallest)
        caplog.clear()
        nearest_neighbors(CASES["crowd"], 8, backend="short-sighted")
        assert not caplog.records  # who does not ask for it cannot be misled


def test_a_backend_that_mixes_rows_up_is_mended_row_by_row(monkeypatch, caplog):
    def mixed(rows, search):
        found = KNN_BACKENDS["torch"](rows, search)
        found.indices = found.indices[::-1].copy()
        return found

    monkeypatch.setitem(KNN_BACKENDS, "mixed", mixed)
    with caplog.at_level(logging.INFO, logger="fastreid"):
        found = nearest_neighbors(CASES["crowd"], 8, backend="mixed")
    assert "were searched twice" in caplog.text
    assert np.array_equal(found.indices, nearest_neighbors(CASES["crowd"], 8).indices)


def test_a_backend_that_agrees_is_kept(caplog):
    pytest.importorskip("faiss")
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        nearest_neighbors(CASES["crowd"], 8, backend="faiss")
    assert not caplog.records


def test_missing_faiss_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        nearest_neighbors(CASES["crowd"], 8, backend="faiss")


def test_backends_register_once():
    with pytest.raises(ValueError, match="registered twice"):
        register_knn("torch")(lambda rows, search: None)


def test_k_below_one():
    with pytest.raises(ValueError, match="k must be at least 1"):
        nearest_neighbors(CASES["crowd"], 0)


def test_progress_is_told_up_to_the_end(monkeypatch):
    monkeypatch.setattr(neighbors_module, "CPU_TILE", (50, 120))
    told = []
    nearest_neighbors(CASES["crowd"], 8, progress=lambda done, total: told.append((done, total)))
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
