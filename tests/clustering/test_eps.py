from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from dense_reference import crowd, dense_jaccard, to_dense

from fastreid_sskd.clustering import estimate_eps, jaccard_distance, pseudo_labels

GOLDEN = sorted((Path(__file__).resolve().parent.parent / "golden").glob("cluster_*.npz"))


def slow_eps(dense, rho):
    """Written from the rule: sort the non-zero entries above the diagonal, average the first share."""
    entries = sorted(
        dense[i, j] for i in range(len(dense)) for j in range(i + 1, len(dense)) if dense[i, j] != 0
    )
    share = int(np.around(rho * len(entries)))
    return sum(map(float, entries[:share])) / share


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_eps(path):
    golden = np.load(path)
    rho, eps = float(golden["rho"]), float(golden["eps"])
    assert estimate_eps(golden["jaccard"], rho) == pytest.approx(eps, abs=1e-6)
    # from the features only to about 1e-2: whether a pair at distance 0 counts was rounding's choice
    distance = jaccard_distance(golden["features"], int(golden["k1"]), int(golden["k2"]))
    assert estimate_eps(distance, rho) == pytest.approx(eps, abs=1e-2)


@pytest.mark.parametrize("rho", [1e-3, 0.01, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_sparse_dense_and_the_rule_agree(seed, rho):
    distance = jaccard_distance(crowd(seed=seed), 8, 3)
    dense = to_dense(distance)
    upper = dense[np.triu_indices(len(dense), 1)]
    assert (upper == 0).any() and (upper == 1).any()
    expected = slow_eps(dense, rho)
    assert estimate_eps(distance, rho) == pytest.approx(expected, abs=1e-12)
    assert estimate_eps(dense, rho) == pytest.approx(expected, abs=1e-12)


def test_share_beyond_the_stored_entries_counts_ones():
    distance = np.ones((4, 4))
    distance[0, 1] = distance[1, 0] = 0.2
    distance[2, 3] = distance[3, 2] = 0
    sparse = scipy.sparse.csr_matrix(([0.2, 0.2, 0, 0], ([0, 1, 2, 3], [1, 0, 3, 2])), shape=(4, 4))
    for given in (distance, sparse):
        assert estimate_eps(given, 0.2) == pytest.approx(0.2)
        assert estimate_eps(given, 0.6) == pytest.approx((0.2 + 1 + 1) / 3)


def test_share_is_rounded_to_the_nearest_count():
    distance = np.zeros((5, 5))
    distance[np.triu_indices(5, 1)] = np.arange(1, 11)
    distance += distance.T
    assert estimate_eps(distance, 0.149) == 1
    assert estimate_eps(distance, 0.151) == 1.5
    assert estimate_eps(distance, 0.25) == 1.5  # 2.5 pairs: half to even


def test_pairs_per_image():
    distance = jaccard_distance(crowd(seed=5), 8, 3)
    count = distance.shape[0]
    assert estimate_eps(distance, pairs_per_image=3) == estimate_eps(distance, 2 * 3 / (count - 1))
    dense = to_dense(distance)
    dense[dense == 0] = 1e-9  # without zeros the share is 3 pairs per image exactly
    np.fill_diagonal(dense, 0)
    upper = np.sort(dense[np.triu_indices(count, 1)].astype(np.float64))
    assert estimate_eps(dense, pairs_per_image=3) == pytest.approx(upper[: 3 * count].mean(), abs=1e-9)


@pytest.mark.parametrize("copies", [2, 7, 10, 30])
@pytest.mark.parametrize("variant", ["sskd", "faiss"])
def test_exact_copies_do_not_count_as_close_pairs(copies, variant):
    features = crowd(seed=8, duplicated=0)
    stored_again = np.repeat(features[::20], copies - 1, axis=0)
    features = np.random.default_rng(copies).permutation(np.concatenate([features, stored_again]))
    dense = dense_jaccard(features, 8, 3, variant)
    dense[dense < 1e-6] = 0
    for rho in (0.01, 0.05):
        expected = slow_eps(dense, rho)
        labels = pseudo_labels(features, k1=8, k2=3, variant=variant, rho=rho)
        assert labels.eps == pytest.approx(expected, abs=2e-6)
        assert estimate_eps(jaccard_distance(features, 8, 3, variant=variant), rho) == labels.eps


def test_input_is_unchanged():
    distance = jaccard_distance(crowd(seed=6), 8, 3)
    dense = to_dense(distance)
    before, before_dense = distance.data.copy(), dense.copy()
    estimate_eps(distance, 0.05)
    estimate_eps(dense, 0.05)
    assert np.array_equal(before, distance.data) and np.array_equal(before_dense, dense)


def test_share_of_no_pair_is_an_error():
    distance = jaccard_distance(crowd(seed=7)[:25], 8, 3)
    with pytest.raises(ValueError, match="of 25 images rounds to 0 pairs: raise SSKD.CLUSTER.RHO"):
        estimate_eps(distance, 1e-4)
    with pytest.raises(ValueError, match="of 0 non-zero distances of 3 images rounds to 0 pairs"):
        estimate_eps(np.zeros((3, 3)), 0.5)


@pytest.mark.parametrize("rho", [0, -0.1, 1.1, np.nan])
def test_rho_out_of_range(rho):
    with pytest.raises(ValueError, match="not a share.*SSKD.CLUSTER.RHO"):
        estimate_eps(np.ones((3, 3)), rho)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 1)])
def test_shapes(shape):
    with pytest.raises(ValueError, match=r"\(N, N\) with N >= 2"):
        estimate_eps(np.ones(shape))
