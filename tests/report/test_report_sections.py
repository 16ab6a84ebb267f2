"""Example clusters and maps."""

import re

import numpy as np
import pytest
import torch
from markupsafe import Markup

from fastreid_sskd.report.sections import Before, cluster_rows, map_figures
from fastreid_sskd.report.thumbnails import Thumbnails

WORDS = Thumbnails(images=False)


def rows(labels, identities, **options):
    items = [(f"{i}.jpg", identity, i % 2) for i, identity in enumerate(identities)]
    return cluster_rows(np.array(labels), items, WORDS, **{"count": 8, "length": 3, "seed": 0, **options})


def test_largest_median_smallest_then_random_then_noise():
    labels = [0] * 9 + [1] * 4 + [2] * 6 + [3] * 5 + [-1] * 2
    found = rows(labels, [0] * 26)  # without identities nothing is said of them
    assert [row.title for row in found] == [
        "the largest cluster, 9 images", "the median cluster, 5 images", "the smallest cluster, 4 images",
        "a cluster at random, 6 images", "noise, 2 images",
    ]  # fmt: skip
    assert [len(row.tiles) for row in found] == [3, 3, 3, 3, 2]


def test_tiles_are_members_of_their_cluster():
    labels = np.random.default_rng(0).permutation([0] * 9 + [1] * 4 + [-1] * 5)
    for row in rows(labels, labels + 5):
        identities = {int(n) for tile in row.tiles for n in re.findall(r"identity (\d+)", tile)}
        assert len(identities) == 1


def test_share_of_the_commonest_identity():
    (row,) = rows([0, 0, 0, 0], [7, 7, 7, 8])
    assert row.title == "the largest cluster, 4 images; of 2 identities, 75 % of one (unseen by training)"


@pytest.mark.parametrize(
    "labels, titles", [([], []), ([-1, -1], ["noise, 2 images"]), ([0], ["the largest cluster, 1 images"])]
)
def test_no_cluster_and_one(labels, titles):
    assert [row.title for row in rows(labels, [1] * len(labels))] == titles


def test_fewer_clusters_asked_for_than_there_are():
    assert [row.title.split(",")[0] for row in rows([0, 1, 2, 3], [1] * 4, count=2)] == [
        "the largest cluster",
        "the median cluster",
    ]
    assert rows([0, 1], [1, 1], count=0) == []


def test_maps_before_and_after_and_at_most_so_many_points():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    items = [(f"{i}.jpg", i % 12, 0) for i in range(50)]
    figures = map_figures(Before(features), features, items, most=20)
    assert [figure.count("<circle") for figure in figures] == [20, 20]
    assert "before, " in figures[0] and "after, " in figures[1]
    assert len(map_figures(Before(None), features, items)) == 1
    named = set(re.findall(r"</i>identity (\d+)</span>", figures[1]))
    assert 0 < len(named) <= 8 and "0" not in named  # identity 0 is a host's word for nobody


def test_an_image_that_is_gone(tmp_path):
    tile = Thumbnails().tile((str(tmp_path / "<gone>.jpg"), 1, 2), "right")
    assert isinstance(tile, Markup) and "no image: FileNotFoundError" in tile and "gone" not in tile
