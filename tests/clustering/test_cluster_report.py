import numpy as np
import pytest

from fastreid_sskd.clustering import ClusterReport, changed_share


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
