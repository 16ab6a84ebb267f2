"""The radius: the method's rule, the rules that choose among several, the silhouette."""

import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from dense_reference import crowd, dense_dbscan, dense_jaccard, to_dense
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from fastreid_sskd.clustering import dbscan, estimate_eps, jaccard_distance, pseudo_labels, sweep_table
from fastreid_sskd.clustering.diagnostics import noise_as_singletons
from fastreid_sskd.clustering.eps import RULES, Radius, choose_radius, sparse_silhouette

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


def test_what_has_no_radius():
    for rho in (0, -0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="not a ratio.*SSKD.CLUSTER.RHO"):
            estimate_eps(np.ones((3, 3)), rho)
    for shape in ((2, 3), (4,), (1, 1)):
        with pytest.raises(ValueError, match=r"\(N, N\) with N >= 2"):
            estimate_eps(np.ones(shape))


RADII = (0.2, 0.35, 0.5, 0.65, 0.8)


def sweep(rule="plateau", radii=RADII, largest_share=1.0):
    return {"eps_rule": rule, "eps_radii": radii, "eps_largest_share": largest_share}


@pytest.mark.parametrize("seed", [1, 2])
def test_every_radius_against_dense_clusters(seed):
    features = crowd(seed=seed, num_ids=20, spread=0.9)
    result = pseudo_labels(features, k1=12, k2=4, min_samples=3, **sweep())
    distance = to_dense(jaccard_distance(features, 12, 4))
    labels = [dense_dbscan(distance, np.float32(eps), 3) for eps in RADII]
    alone = [noise_as_singletons(found) for found in labels]
    assert [radius.eps for radius in result.sweep] == list(RADII)
    assert len({radius.clusters for radius in result.sweep}) > 2
    for i, (radius, found) in enumerate(zip(result.sweep, labels, strict=True)):
        sizes = [int((found == c).sum()) for c in range(found.max() + 1)]
        assert (radius.clusters, radius.largest_share) == (
            len(sizes),
            pytest.approx(max(sizes, default=0) / len(found)),
        )
        assert radius.noise_share == pytest.approx((found == -1).mean())
        neighbours = [adjusted_rand_score(alone[i], alone[j]) for j in (i - 1, i + 1) if 0 <= j < len(RADII)]
        assert radius.agreement == pytest.approx(np.mean(neighbours))
        kept = found >= 0
        if len(sizes) > 1:
            of_kept = silhouette_samples(distance[np.ix_(kept, kept)], found[kept], metric="precomputed")
            assert radius.silhouette == pytest.approx(of_kept.sum() / len(found), abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_those_of_the_radius_that_is_chosen(rule):
    features = crowd(seed=3, num_ids=20)
    result = pseudo_labels(features, k1=12, k2=4, **sweep(rule))
    assert result.eps == choose_radius(result.sweep, rule, 1.0) in RADII
    assert np.array_equal(result.labels, dbscan(jaccard_distance(features, 12, 4), result.eps))
    assert "eps" in result.seconds and pseudo_labels(features, k1=12, k2=4, eps=0.5).sweep == ()


def test_bounds_hold_for_a_chosen_radius_too():
    features = crowd(seed=3, num_ids=20)
    found = pseudo_labels(features, k1=12, k2=4, **sweep("largest"), eps_max=0.42)
    assert found.eps == 0.42
    assert np.array_equal(found.labels, pseudo_labels(features, k1=12, k2=4, eps=0.42).labels)


def made(*rows):
    """Radii of (clusters, largest share, silhouette, agreement) at .1, .2, ..."""
    return [
        Radius((i + 1) / 10, clusters, 0.1, largest, silhouette, agreement)
        for i, (clusters, largest, silhouette, agreement) in enumerate(rows)
    ]


ROWS = [
    (1, 0.01, 0.9, 0.99),
    (9, 0.01, 0.40, 0.8),
    (8, 0.01, 0.42, 0.9),
    (8, 0.02, 0.40, 0.7),
    (7, 0.02, 0.39, 0.9),
    (6, 0.2, 0.6, 1.0),
    (5, 0.01, 0.7, 1.0),
]


def test_rules():
    """One cluster is none to choose, a giant one ends the radii, even where it is gone again."""
    chosen = {rule: choose_radius(made(*ROWS), rule, 0.03) for rule in RULES}
    assert chosen == pytest.approx({"plateau": 0.4, "silhouette": 0.3, "agreement": 0.3, "largest": 0.5})
    chosen = {rule: choose_radius(made(*ROWS), rule, 0.2) for rule in RULES}
    assert chosen == pytest.approx({"plateau": 0.7, "silhouette": 0.7, "agreement": 0.6, "largest": 0.7})
    negative = made((3, 0.01, -0.2, 0.5), (3, 0.01, -0.1, 0.5))
    assert all(0.1 <= choose_radius(negative, rule, 0.03) <= 0.2 for rule in RULES)


@pytest.mark.parametrize(
    "rows, instead", [(ROWS[:1] * 3, 0.3), ([ROWS[5], ROWS[5]], 0.1), ([ROWS[0], ROWS[5], ROWS[1]], 0.2)]
)
def test_nothing_to_choose_from_is_said(rows, instead, caplog):
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        assert choose_radius(made(*rows), "plateau", 0.03) == pytest.approx(instead)
    assert "EPS_LARGEST_SHARE=0.03" in caplog.text and f"{instead:g} is used" in caplog.text


def test_unknown_rule():
    with pytest.raises(ValueError, match="EPS_RULE must be one of pairs, silhouette, plateau"):
        pseudo_labels(crowd(seed=1), eps_rule="best")


def test_the_first_that_is_given_sets_the_radius():
    features = crowd(seed=1, num_ids=20)
    assert pseudo_labels(features, eps=0.5, pairs_per_image=3, rho=0.1, **sweep()).eps == 0.5
    swept = pseudo_labels(features, pairs_per_image=3, rho=0.1, **sweep())
    assert swept.sweep and swept.eps == pseudo_labels(features, **sweep()).eps
    by_pairs = pseudo_labels(features, pairs_per_image=3, rho=0.1)
    assert (
        by_pairs.eps == pseudo_labels(features, pairs_per_image=3).eps != pseudo_labels(features, rho=0.1).eps
    )


def test_table():
    lines = sweep_table(made(*ROWS)).splitlines()
    assert len(lines) == 8 and len(set(map(len, lines))) == 1
    assert lines[3].split() == ["0.300", "8", "10.0%", "1.0%", "0.420", "0.900"]


def people(seed=0, identities=8, images=9, spread=0.6):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, 16)).repeat(images, axis=0)
    return (centres + spread * rng.normal(size=centres.shape)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_against_the_dense_distances(seed):
    features = people(seed)
    distances = jaccard_distance(features, 10, 3)
    labels = np.random.default_rng(seed).integers(0, 6, len(features))
    np.testing.assert_allclose(
        sparse_silhouette(distances, labels),
        silhouette_samples(to_dense(distances), labels, metric="precomputed"),
        atol=1e-6,
    )


def test_noise_is_left_out_and_counts_zero():
    features = people()
    distances = jaccard_distance(features, 10, 3)
    labels = pseudo_labels(features, k1=10, k2=3, eps=0.5).labels
    labels[::7] = -1
    kept = labels != -1
    found = sparse_silhouette(distances, labels)
    numbers = np.unique(labels[kept], return_inverse=True)[1]
    expected = silhouette_samples(to_dense(distances)[np.ix_(kept, kept)], numbers, metric="precomputed")
    np.testing.assert_allclose(found[kept], expected, atol=1e-6)
    assert (found[~kept] == 0).all()


def test_true_people_score_higher_than_mixed_ones():
    distances = jaccard_distance(people(), 10, 3)
    true = np.repeat(np.arange(8), 9)
    mixed = np.random.default_rng(0).permutation(true)
    halves = true // 2  # two people a cluster
    scores = [sparse_silhouette(distances, labels).mean() for labels in (true, halves, mixed)]
    assert scores[0] > scores[1] > scores[2] and scores[0] > 0.3


def test_alone_all_noise_one_cluster_and_nothing():
    distances = jaccard_distance(people(identities=2, images=5), 3, 1)
    for labels in (np.full(10, -1), np.zeros(10, int)):
        assert (sparse_silhouette(distances, labels) == 0).all()
    labels = np.array([0] * 5 + [1] * 4 + [2])
    assert sparse_silhouette(distances, labels)[-1] == 0
    empty = scipy.sparse.csr_matrix((0, 0), dtype=np.float32)
    assert sparse_silhouette(empty, np.zeros(0, int)).shape == (0,)


def test_identical_images_and_input_unchanged():
    """Distances that are all 0 inside and all 1 outside; explicit zeros, which are pairs at distance 0."""
    block = scipy.sparse.csr_matrix(
        (np.zeros(8, np.float32), np.array([0, 1, 0, 1, 2, 3, 2, 3]), np.array([0, 2, 4, 6, 8])), shape=(4, 4)
    )
    before = block.copy()
    assert sparse_silhouette(block, np.array([0, 0, 1, 1])).tolist() == [1.0] * 4
    assert sparse_silhouette(block, np.array([0, 1, 0, 1])).tolist() == [-0.5] * 4
    assert (block.data == before.data).all() and block.nnz == 8


def test_cluster_numbers_with_gaps():
    distances = jaccard_distance(people(), 10, 3)
    labels = np.repeat(np.arange(8), 9)
    np.testing.assert_array_equal(
        sparse_silhouette(distances, labels), sparse_silhouette(distances, labels * 3)
    )


def test_sizes_that_differ():
    with pytest.raises(ValueError, match=r"\(10, 10\) and \(9,\)"):
        sparse_silhouette(scipy.sparse.csr_matrix((10, 10)), np.zeros(9, int))
