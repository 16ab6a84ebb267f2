import numpy as np
import pytest
from sklearn import metrics

from fastreid_sskd.clustering import ClusterReport, changed_share, cluster_agreement
from fastreid_sskd.clustering.diagnostics import adjusted_mutual_information, bcubed, noise_as_singletons


def slow_bcubed(labels, identities):
    """Image by image, from the definition."""
    count = len(labels)
    precision = recall = 0
    for i in range(count):
        cluster = [j for j in range(count) if labels[j] == labels[i]]
        identity = [j for j in range(count) if identities[j] == identities[i]]
        common = len(set(cluster) & set(identity))
        precision += common / len(cluster) / count
        recall += common / len(identity) / count
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(4))
def test_bcubed_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    labels, identities = rng.integers(0, 9, 70), rng.integers(-3, 200, 12)[rng.integers(0, 12, 70)]
    assert bcubed(labels, identities) == pytest.approx(slow_bcubed(labels, identities), abs=1e-12)


def test_bcubed_by_hand():
    # cluster 0 holds a, a, b; cluster 1 holds b: precision (2/3 + 2/3 + 1/3 + 1) / 4, recall (1 + 1 + 1/2 +
    # 1/2) / 4
    precision, recall, f = bcubed(np.array([0, 0, 0, 1]), np.array([7, 7, 9, 9]))
    assert (precision, recall) == (pytest.approx(2 / 3), pytest.approx(3 / 4))
    assert f == pytest.approx(2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4))


def test_noise_images_are_clusters_of_their_own():
    labels = np.array([-1, 2, -1, 0, 2])
    singles = noise_as_singletons(labels)
    assert singles[1] == singles[4]
    assert len(set(singles.tolist())) == 4
    assert labels.tolist() == [-1, 2, -1, 0, 2]


def test_agreement():
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(6), 10)
    labels = np.where(rng.random(60) < 0.3, rng.integers(-1, 6, 60), identities)
    singles = noise_as_singletons(labels)
    found = cluster_agreement(labels, identities)
    assert found == {
        "NMI": pytest.approx(metrics.normalized_mutual_info_score(identities, singles)),
        "AMI": pytest.approx(metrics.adjusted_mutual_info_score(identities, singles)),
        "ARI": pytest.approx(metrics.adjusted_rand_score(identities, singles)),
        **{
            f"BCubed {name}": pytest.approx(value)
            for name, value in zip(
                ("precision", "recall", "F"), slow_bcubed(singles, identities), strict=True
            )
        },
    }
    assert all(0 < value < 1 for value in found.values())


@pytest.mark.parametrize(
    "clusters, identities", [(1, 1), (1, 5), (5, 1), (7, 4), (40, 40), (300, 9), (300, 200)]
)
@pytest.mark.parametrize("count", [2, 50, 400])
def test_ami_equals_scikit_learn(count, clusters, identities):
    rng = np.random.default_rng(count + clusters)
    truth = rng.integers(0, identities, count)
    drawn = rng.integers(0, clusters, count)
    for labels in (drawn, truth, np.arange(count), np.where(truth == 0, 0, drawn + 1)):
        # scikit-learn 1.3 gives 0 for all singletons
        same = len({*zip(truth, labels)}) == len({*truth}) == len({*labels})
        expected = 1.0 if same else metrics.adjusted_mutual_info_score(truth, labels)
        assert adjusted_mutual_information(labels, truth) == pytest.approx(expected, abs=1e-9)


def test_perfect_and_all_noise():
    identities = np.repeat(np.arange(4), 5)
    assert all(value == pytest.approx(1) for value in cluster_agreement(3 - identities, identities).values())
    noise = cluster_agreement(np.full(20, -1), identities)
    assert noise["ARI"] == 0
    assert noise["BCubed F"] == pytest.approx(2 * 1 * 0.2 / 1.2)


def test_lengths():
    for labels, identities in (([0], [0, 1]), ([], [])):
        with pytest.raises(ValueError, match="labels and identities"):
            cluster_agreement(np.array(labels, int), np.array(identities, int))


def test_counts():
    report = ClusterReport.from_labels(np.array([0, 0, 0, 1, 1, -1, 2, 2, 2, -1]), eps=0.4)
    assert report == ClusterReport(
        num_images=10, num_clusters=3, eps=0.4, noise_share=0.2, largest=3, median=3.0, changed_share=None
    )
    assert report.largest_share == 0.3
    assert str(report) == "3 clusters of 10 images, eps 0.4000, noise 20.0%, largest 3, median 3"


def test_all_noise_and_empty():
    report = ClusterReport.from_labels(np.full(5, -1))
    assert (report.num_clusters, report.noise_share, report.largest, report.median) == (0, 1.0, 0, 0.0)
    assert report.largest_share == 0
    empty = ClusterReport.from_labels(np.empty(0, dtype=np.int64), previous=np.empty(0, dtype=np.int64))
    assert (empty.num_images, empty.noise_share, empty.largest_share, empty.changed_share) == (
        0,
        0.0,
        0.0,
        0.0,
    )


@pytest.mark.parametrize(
    "previous, labels, changed",
    [
        ([0, 0, 1, 1, -1], [0, 0, 1, 1, -1], 0),
        ([0, 0, 1, 1, -1], [1, 1, 0, 0, -1], 0),  # renumbered
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], 1 / 6),  # one image moved
        ([0, 0, 0, 0, 0], [0, 0, 0, 1, 1], 2 / 5),  # split: the larger part keeps its name
        ([0, 0, 0, 1, 1], [0, 0, 0, 0, 0], 2 / 5),  # merged
        ([0, 0, 0, -1], [0, 0, -1, 0], 2 / 4),  # to noise and from noise
        ([-1, -1, -1], [0, 0, 0], 1),
        ([0, 0, 0], [-1, -1, -1], 1),
        ([-1, -1], [-1, -1], 0),
    ],
)
def test_changed_share(previous, labels, changed):
    assert changed_share(np.array(labels), np.array(previous)) == pytest.approx(changed)
    report = ClusterReport.from_labels(np.array(labels), previous=np.array(previous))
    assert report.changed_share == pytest.approx(changed)


@pytest.mark.parametrize("seed", range(5))
def test_changed_share_ignores_how_clusters_are_numbered(seed):
    rng = np.random.default_rng(seed)
    previous, labels = rng.integers(-1, 8, 60), rng.integers(-1, 8, 60)  # many ties of overlap
    expected = changed_share(labels, previous)
    assert 0 < expected < 1
    for _ in range(5):
        new, old = np.append(rng.permutation(8), -1), np.append(rng.permutation(8), -1)
        assert changed_share(new[labels], old[previous]) == expected


def test_changed_share_of_other_images():
    with pytest.raises(ValueError, match="of the same images"):
        changed_share(np.zeros(3, int), np.zeros(4, int))
