"""Ranking against a loop from the definition, the host's ranking and placed examples; distances."""

import numpy as np
import pytest
import torch

from fastreid_sskd.evaluation import ranking
from fastreid_sskd.evaluation.ranking import distance_blocks, evaluate_blocks, evaluate_rank


def slow_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50):
    """CMC, AP and INP from their definitions, one image at a time; None if no query counts."""
    curves, precisions, penalties = [], [], []
    for i in range(len(q_pids)):
        order = sorted(range(len(g_pids)), key=lambda j: (distmat[i, j], j))
        hits = [g_pids[j] == q_pids[i] for j in order if g_pids[j] != q_pids[i] or g_camids[j] != q_camids[i]]
        if not any(hits):
            continue
        places = [place for place, hit in enumerate(hits, start=1) if hit]
        curves.append([float(places[0] <= r) for r in range(1, max_rank + 1)])
        precisions.append(sum((k + 1) / place for k, place in enumerate(places)) / len(places))
        penalties.append(len(places) / places[-1])
    return (np.mean(curves, axis=0), precisions, penalties) if curves else None


def problem(seed, num_query, num_gallery, ids, cameras, dtype=np.float32, levels=None):
    """Random distances (of a few levels, so with many ties, if asked) and labels."""
    rng = np.random.default_rng(seed)
    distances = rng.random((num_query, num_gallery))
    if levels:
        distances = np.floor(distances * levels) / levels
    draw = [rng.integers(0, high, size) for high in (ids, cameras) for size in (num_query, num_gallery)]
    return distances.astype(dtype), *draw


def assert_equal_results(ours, expected):
    for got, want in zip(ours, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("num_query", "num_gallery", "ids"), [(1, 1, 1), (5, 7, 3), (20, 60, 5), (9, 200, 40)]
)
@pytest.mark.parametrize("levels", [None, 1, 4])
def test_equals_the_definition(seed, num_query, num_gallery, ids, levels):
    case = problem(seed, num_query, num_gallery, ids, cameras=3, levels=levels)
    expected = slow_rank(*case)
    if expected is None:
        with pytest.raises(ValueError, match="has a match"):
            evaluate_rank(*case)
    else:
        assert_equal_results(evaluate_rank(*case), expected)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_host_without_ties(seed):
    from fastreid_sskd import compat

    compat.apply()
    from fastreid.evaluation.rank import evaluate_py

    case = problem(seed, 30, 400, ids=12, cameras=4)
    cmc, precisions, penalties = evaluate_py(*case, 50, False)
    ours = evaluate_rank(*case)
    np.testing.assert_allclose(ours[0], cmc, rtol=1e-6)  # the host's curve is float32
    np.testing.assert_allclose(ours[1], precisions, rtol=1e-12)
    np.testing.assert_allclose(ours[2], penalties, rtol=1e-12)


def test_placed_example():
    # Query (identity 7, camera 0) ranks junk, wrong, match, wrong, match: matches at 2 and 4 of the 4 kept.
    distances = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    cmc, precision, penalty = evaluate_rank(
        distances,
        np.array([7]),
        np.array([7, 1, 7, 2, 7]),
        np.array([0]),
        np.array([0, 0, 1, 0, 2]),
        max_rank=5,
    )
    assert cmc.tolist() == [0, 1, 1, 1, 1]
    assert precision == [pytest.approx((1 / 2 + 2 / 4) / 2)]
    assert penalty == [pytest.approx(2 / 4)]


def test_infinite_distances_are_ranked_last_and_junk_takes_no_place():
    arguments = [np.array([1]), np.array([1, 2, 1]), np.array([0]), np.array([0, 1, 1])]
    distances = np.array([[np.inf, 0.5, np.inf]])
    assert_equal_results(evaluate_rank(distances, *arguments), slow_rank(distances, *arguments))


@pytest.mark.parametrize("block", [1, 2**26])
def test_nan_names_the_query(block, monkeypatch):
    """Of whichever block, which has at least one row."""
    monkeypatch.setattr(ranking, "BLOCK_BYTES", block)
    case = problem(0, 9, 8, ids=2, cameras=2)
    case[0][6, 2] = np.nan
    with pytest.raises(ValueError, match="query 6 contain NaN"):
        evaluate_rank(*case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distmat": np.zeros(3)}, "distmat must be"),
        ({"distmat": np.zeros((0, 3))}, "distmat must be"),
        ({"distmat": np.zeros((2, 0))}, "distmat must be"),
        ({"g_pids": np.zeros(2)}, "g_pids must have shape"),
        ({"q_camids": np.zeros((2, 1))}, "q_camids must have shape"),
        ({"max_rank": 0}, "max_rank"),
        ({"use_metric_cuhk03": True}, "eval_cuhk03"),
    ],
)
def test_wrong_arguments(change, message):
    right = {
        "distmat": np.zeros((2, 3)),
        "q_pids": np.zeros(2),
        "g_pids": np.zeros(3),
        "q_camids": np.zeros(2),
        "g_camids": np.ones(3),
    }
    evaluate_rank(**right)
    with pytest.raises(ValueError, match=message):
        evaluate_rank(**{**right, **change})


def test_input_unchanged_and_blocks_do_not_matter(monkeypatch):
    case = problem(1, 33, 50, ids=5, cameras=3, levels=10)
    before = [array.copy() for array in case]
    whole = evaluate_rank(*case)
    for array, copy in zip(case, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    monkeypatch.setattr(ranking, "BLOCK_BYTES", 1)
    assert_equal_results(evaluate_rank(*case), whole)


def test_integer_distances_and_text_labels():
    names = np.array(["a", "b"])
    distances = np.array([[3, 1, 2]])
    arguments = [names[[0]], names[[1, 0, 0]], np.array([0]), np.array([1, 0, 1])]
    assert evaluate_rank(distances, *arguments)[1] == [1.0]


# ---- blocks and positions ------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_positions_of_matches_are_those_of_a_sorted_list(levels, dtype):
    """Of none to three matches with none to three junk images."""
    count = 400  # numpy's default sort is stable on short rows
    distances = problem(5, 20, count, 3, 3, dtype=dtype, levels=levels)[0]
    matches = [[3, 7, 228], [], [100]] * 6 + [[], [399]]
    junk = [[1, 205], [2], []] * 6 + [[], [0, 101, 302]]
    for row, own, away in zip(distances, matches, junk):
        same_identity, same_camera = (np.isin(np.arange(count), of) for of in (own + away, away))
        order = sorted((j for j in range(count) if j not in away), key=lambda j: (row[j], j))
        expected = sorted(order.index(j) + 1 for j in own)
        assert ranking._match_positions(row, same_identity, same_camera).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_any_layout_and_precision(dtype, layout):
    case = problem(2, 15, 40, ids=6, cameras=3, levels=16)
    expected = evaluate_rank(*case)
    distances = case[0].astype(dtype)
    if layout == "F":
        distances = np.asfortranarray(distances)
    if layout == "strided":
        distances = np.repeat(distances, 2, axis=1)[:, ::2]
    assert_equal_results(evaluate_rank(distances, *case[1:]), expected)


def test_threads_do_not_matter():
    case = problem(3, 60, 300, ids=9, cameras=3, levels=50)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(evaluate_rank(*case))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.zeros((3, 8))], "the distances of 3 of 5 queries"),
        ([], "the distances of 0 of 5 queries"),
        ([np.zeros((3, 8)), np.zeros((3, 8))], "do not fit 5 queries and 8 gallery images"),
        ([np.zeros((5, 7))], "do not fit 5 queries and 8 gallery images"),
    ],
)
def test_blocks_that_do_not_fit(blocks, message):
    labels = problem(0, 5, 8, ids=2, cameras=2)[1:]
    with pytest.raises(ValueError, match=message):
        evaluate_blocks(blocks, *labels)


def features(count, dim=16, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 2


def whole(*arguments):
    """All blocks one below the other; each is copied before the next overwrites it."""
    return np.concatenate([block.copy() for block in distance_blocks(*arguments)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_are_the_hosts_matrix(metric, rows, monkeypatch):
    from fastreid.utils.compute_dist import build_dist

    query, gallery = features(10), features(7, seed=1)
    before = query.clone(), gallery.clone()
    monkeypatch.setattr(ranking, "BLOCK_BYTES", rows * 7 * 4)
    blocks = [block.shape for block in distance_blocks(query, gallery, metric)]
    assert blocks == [(min(rows, 10 - at), 7) for at in range(0, 10, rows)]
    found = whole(query, gallery, metric)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, build_dist(query, gallery, metric), rtol=1e-5, atol=1e-5)
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


@pytest.mark.parametrize("num_query, num_gallery", [(0, 3), (2, 0), (0, 0)])
def test_empty_sides(num_query, num_gallery):
    for metric in ("cosine", "euclidean"):
        for block in distance_blocks(features(num_query), features(num_gallery), metric):
            assert block.shape == (num_query, num_gallery)


def test_another_metric():
    with pytest.raises(ValueError, match="one of cosine, euclidean, got 'jaccard'"):
        next(distance_blocks(features(2), features(2), "jaccard"))
