"""A radius that is chosen without identities: each radius against dense clusters, each rule on values made by hand."""

import logging

import numpy as np
import pytest
from dense_reference import crowd, dense_dbscan, to_dense
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from fastreid_sskd.clustering import RadiusSweep, dbscan, jaccard_distance, pseudo_labels, sweep_table
from fastreid_sskd.clustering.diagnostics import noise_as_singletons
from fastreid_sskd.clustering.eps import RULES, Radius

RADII = (0.2, 0.35, 0.5, 0.65, 0.8)


def sweep(rule="plateau", radii=RADII, largest_share=1.0):
    return RadiusSweep(rule, radii, largest_share)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_radius_against_dense_clusters(seed):
    features = crowd(seed=seed, num_ids=20, spread=0.9)
    result = pseudo_labels(features, k1=12, k2=4, min_samples=3, sweep=sweep())
    distance = to_dense(jaccard_distance(features, 12, 4))
    labels = [dense_dbscan(distance, np.float32(eps), 3) for eps in RADII]
    alone = [noise_as_singletons(found) for found in labels]
    assert [radius.eps for radius in result.sweep] == list(RADII)
    assert len({radius.clusters for radius in result.sweep}) > 2
    for i, (radius, found) in enumerate(zip(result.sweep, labels, strict=True)):
        sizes = [int((found == c).sum()) for c in range(found.max() + 1)]
        assert (radius.clusters, radius.largest_share) == (len(sizes), pytest.approx(max(sizes, default=0) / len(found)))
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
    result = pseudo_labels(features, k1=12, k2=4, sweep=sweep(rule))
    assert result.eps == sweep(rule).choose(result.sweep) in RADII
    assert np.array_equal(result.labels, dbscan(jaccard_distance(features, 12, 4), result.eps))
    assert "eps" in result.seconds and pseudo_labels(features, k1=12, k2=4, eps=0.5).sweep == ()


def test_bounds_hold_for_a_chosen_radius_too():
    features = crowd(seed=3, num_ids=20)
    found = pseudo_labels(features, k1=12, k2=4, sweep=sweep("largest"), eps_max=0.42)
    assert found.eps == 0.42
    assert np.array_equal(found.labels, pseudo_labels(features, k1=12, k2=4, eps=0.42).labels)


def made(*rows):
    """Radii of (clusters, largest share, silhouette, agreement) at .1, .2, ..."""
    return [
        Radius((i + 1) / 10, clusters, 0.1, largest, silhouette, agreement)
        for i, (clusters, largest, silhouette, agreement) in enumerate(rows)
    ]


ROWS = [(1, 0.01, 0.9, 0.99), (9, 0.01, 0.40, 0.8), (8, 0.01, 0.42, 0.9), (8, 0.02, 0.40, 0.7), (7, 0.02, 0.39, 0.9),
        (6, 0.2, 0.6, 1.0), (5, 0.01, 0.7, 1.0)]  # fmt: skip


def test_rules():
    """One cluster is none to choose, a giant one ends the radii, even where it is gone again."""
    chosen = {rule: RadiusSweep(rule, RADII, 0.03).choose(made(*ROWS)) for rule in RULES}
    assert chosen == pytest.approx({"plateau": 0.4, "silhouette": 0.3, "agreement": 0.3, "largest": 0.5})
    chosen = {rule: RadiusSweep(rule, RADII, 0.2).choose(made(*ROWS)) for rule in RULES}
    assert chosen == pytest.approx({"plateau": 0.7, "silhouette": 0.7, "agreement": 0.6, "largest": 0.7})
    negative = made((3, 0.01, -0.2, 0.5), (3, 0.01, -0.1, 0.5))
    assert all(0.1 <= RadiusSweep(rule, RADII, 0.03).choose(negative) <= 0.2 for rule in RULES)


@pytest.mark.parametrize("rows, instead", [(ROWS[:1] * 3, 0.3), ([ROWS[5], ROWS[5]], 0.1), ([ROWS[0], ROWS[5], ROWS[1]], 0.2)])
def test_nothing_to_choose_from_is_said(rows, instead, caplog):
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        assert RadiusSweep("plateau", RADII, 0.03).choose(made(*rows)) == pytest.approx(instead)
    assert "EPS_LARGEST_SHARE=0.03" in caplog.text and f"{instead:g} is used" in caplog.text


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("best", RADII, 0.1), "EPS_RULE is one of pairs, plateau"), (("largest", (0.5,), 0.1), "EPS_RADII"),
        (("largest", (0.5, 0.5), 0.1), "EPS_RADII"), (("largest", (0.0, 0.5), 0.1), "EPS_RADII"),
        (("largest", (0.5, float("nan")), 0.1), "EPS_RADII"), (("largest", RADII, 0.0), "EPS_LARGEST_SHARE"),
        (("largest", RADII, 1.1), "EPS_LARGEST_SHARE"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept(arguments, named):
    with pytest.raises(ValueError, match=named):
        RadiusSweep(*arguments)


def test_one_way_to_a_radius():
    with pytest.raises(ValueError, match="exactly one of eps, rho, pairs_per_image and sweep"):
        pseudo_labels(crowd(seed=1), eps=0.5, sweep=sweep())
    with pytest.raises(ValueError, match="give none"):
        pseudo_labels(crowd(seed=1), method="hdbscan", sweep=sweep())


def test_table():
    lines = sweep_table(made(*ROWS)).splitlines()
    assert len(lines) == 8 and len(set(map(len, lines))) == 1
    assert lines[3].split() == ["0.300", "8", "10.0%", "1.0%", "0.420", "0.900"]
