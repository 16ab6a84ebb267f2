"""Figures: the right numbers at the right places, and nothing but text in the texts."""

import importlib.util
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from fastreid_sskd.report import plots
from fastreid_sskd.report.images import Before
from fastreid_sskd.report.plots import bar_chart, line_chart, map_figures, project, scatter, ticks
from fastreid_sskd.report.run_files import RunFiles, read_run_files


def circles(figure):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', figure)]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]), (0.0, 0.0, [0.0]), (5, 5, [5]), (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.11, 0.29, [0.15, 0.2, 0.25]), (0, 450, [0, 100, 200, 300, 400]), (1e-4, 2e-4, [1e-4, 1.2e-4, 1.4e-4, 1.6e-4, 1.8e-4, 2e-4]),
    ],
)  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_line_goes_through_its_points():
    figure = line_chart("t", {"a": [(0, 1.0), (10, 3.0), (20, 2.0)]})
    (x0, y0), (x1, y1), (x2, y2) = circles(figure)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # even steps
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)  # upwards is more
    assert re.search(r'<polyline points="([^"]+)"', figure)[1] == f"{x0},{y0} {x1},{y1} {x2},{y2}"


def test_lines_share_their_axes_and_have_a_legend():
    figure = line_chart("t", {"a": [(0, 0.0)], "b": [(0, 0.0), (1, 1.0)]})
    points = circles(figure)
    assert points[0] == points[1] and figure.count("<polyline") == 2
    assert ">a</span>" in figure and ">b</span>" in figure
    assert "legend" not in line_chart("t", {"a": [(0, 0.0)]})


@pytest.mark.parametrize(
    "points", [[(3, 7.0)], [(0, 5.0), (1, 5.0)], [(0, 0.0), (1, 0.0)], [(0, 1e-9), (1, 1e9)]]
)
def test_one_point_equal_points_and_wide_ranges_stay_on_the_plane(points):
    for x, y in circles(line_chart("t", {"a": points})):
        assert 52 <= x <= 390 and 10 <= y <= 186


def test_values_that_are_not_finite_are_left_out():
    assert len(circles(line_chart("t", {"a": [(0, math.nan), (1, math.inf), (2, 1.0)]}))) == 1
    assert line_chart("t", {"a": [(0, math.nan)], "b": []}) == "" == line_chart("t", {})
    assert bar_chart("t", {"a": math.nan}) == "" == bar_chart("t", {})
    assert scatter("t", [(math.nan, 0.0)], [""], [""]) == "" == scatter("t", [], [], [])


def test_bars_are_proportional():
    widths = re.findall(r"width:([\d.]+)%", bar_chart("t", {"a": 4.0, "b": 1.0, "c": 0.0}, "s"))
    assert [float(width) for width in widths] == [100, 25, 0]
    assert [float(w) for w in re.findall(r"width:([\d.]+)%", bar_chart("t", {"a": 0.0}))] == [0]


def test_points_of_no_group_are_grey_and_below():
    figure = scatter("t", [(0, 0), (1, 1), (2, 0)], ["g", "", "g"], ["one", "two", "three"])
    fills = re.findall(r'fill="([^"]+)"', figure)
    assert fills[0] == "#bbbbbb" and fills[1] == fills[2] != "#bbbbbb"
    assert figure.index("two") < figure.index("one")


def test_names_are_escaped():
    bad = '<script>alert("x")</script>&'
    figures = [
        line_chart(bad, {bad: [(0, 1.0)], "b": [(0, 1.0)]}, bad), bar_chart(bad, {bad: 1.0}, bad),
        scatter(bad, [(0, 0)], [bad], [bad]),
    ]  # fmt: skip
    for figure in figures:
        assert "<script" not in figure and "&lt;script&gt;" in figure
        ET.fromstring(figure)  # well-formed


def run(scalars=None, labels=None, evaluations=()):
    config = {"DATASETS": {"TESTS": ["T"]}}
    return RunFiles(
        "run",
        config,
        "",
        scalars or {},
        list(evaluations),
        labels=None if labels is None else np.array(labels),
    )


def titles(figures):
    return [re.search("<figcaption>(.*?)</figcaption>", figure)[1] for figure in figures]


def test_a_figure_a_loss_with_a_line_a_peer():
    series = [(0, 1.0), (9, 0.5)]
    scalars = {
        name: series
        for name in ("total_loss", "loss_id_peer0", "loss_id_peer1", "loss_soft_triplet_peer0", "lr", "eps")
    }
    figures = plots.loss_figures(run(scalars))
    assert titles(figures) == ["total loss", "loss_id", "loss_soft_triplet", "learning rate"]
    assert figures[1].count("<polyline") == 2 and ">peer1</span>" in figures[1]


def test_losses_of_a_single_network():
    assert titles(plots.loss_figures(run({"loss_id": [(0, 1.0)], "loss_cls": [(0, 2.0)]}))) == [
        "loss_cls",
        "loss_id",
    ]


def test_evaluations_of_every_teacher_over_epochs():
    rows = {"peer0": {"mAP": 10.0, "Rank-1": 20.0}, "ensemble": {"mAP": 12.0, "Rank-1": 24.0}}
    figures = plots.evaluation_figures(
        run(evaluations=[{"epoch": e, "results": {"T": rows}} for e in (0, 1, 2)])
    )
    assert titles(figures) == ["mAP on T, %", "Rank-1 on T, %"]
    assert (
        figures[0].count("<polyline") == 2
        and figures[0].count("<circle") == 6
        and ">teacher 0</span>" in figures[0]
    )


def test_evaluations_of_a_host_model():
    figures = plots.evaluation_figures(run({"mAP": [(9, 10.0), (19, 20.0)], "Rank-1": [(9, 30.0)]}))
    assert titles(figures) == ["mAP on T, %", "Rank-1 on T, %"] and figures[0].count("<circle") == 2


def test_time_of_steps_and_stages():
    scalars = {
        "time": [(9, 2.0), (14, 4.0)],
        "data_time": [(14, 0.1)],
        "refresh/seconds_knn": [(0, 3.0), (10, 4.0)],
    }
    (figure,) = plots.time_figures(run(scalars))
    cells = re.findall(r'<th>(.*?)</th>.*?class="number">(.*?)</td>', figure)
    assert cells == [
        ("training steps", "40 s"),
        ("of which waiting for data", "1.5 s"),
        ("refresh: knn", "7 s"),
    ]


@pytest.mark.parametrize("labels", [None, [], [-1, -1]])
def test_no_clusters(labels):
    assert plots.cluster_size_figures(run(labels=labels)) == []


@pytest.mark.parametrize("sizes", [[3], [4, 4, 4], [1, 2, 3], list(range(4, 60)), [4, 1000]])
def test_every_cluster_is_counted_once(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist() + [-1, -1]
    (figure,) = plots.cluster_size_figures(run(labels=labels))
    assert f"{len(sizes)} clusters of {len(labels)} images, 2 images are noise" in figure
    counts = dict.fromkeys(range(min(sizes), max(sizes) + 1), 0)
    for low, high, number in re.findall(r"<th>(\d+)(?: to (\d+))? images</th>.*?>(\d+) clusters", figure):
        inside = [size for size in sizes if int(low) <= size <= int(high or low)]
        assert len(inside) == int(number)
        for size in range(int(low), int(high or low) + 1):
            counts[size] += 1
    assert set(counts.values()) == {1}  # the bins are apart and leave no size out


def test_a_run_that_trained_nothing():
    assert (
        plots.loss_figures(run()) == plots.evaluation_figures(run()) == plots.refresh_figures(run()) == []
    )
    assert plots.time_figures(run()) == []


def test_a_real_run_has_all_of_them(finished):
    files = read_run_files(str(finished))
    shown = titles(plots.refresh_figures(files))
    assert shown == [
        "clusters", "noise, share of images", "eps", "label change, share of images", "images in a cluster",
        "agreement with identities, unseen by training",
    ]  # fmt: skip
    assert {"total loss", "loss_id", "loss_ms", "loss_nn", "loss_soft", "learning rate"} <= set(
        titles(plots.loss_figures(files))
    )
    assert len(files.labels) == 48 and files.checkpoint.endswith("model_final.pth")


def test_maps_before_and_after_and_at_most_so_many_points():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    items = [(f"{i}.jpg", i % 12, 0) for i in range(50)]
    figures = map_figures(Before(features), features, items, most=20)
    assert [figure.count("<circle") for figure in figures] == [20, 20]
    assert "before, " in figures[0] and "after, " in figures[1]
    assert len(map_figures(Before(None), features, items)) == 1
    named = set(re.findall(r"</i>identity (\d+)</span>", figures[1]))
    assert 0 < len(named) <= 8 and "0" not in named  # identity 0 is a host's word for nobody


@pytest.fixture
def without_umap(monkeypatch):
    true = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "umap" else true(name))


def test_pca_finds_the_plane_of_the_points(without_umap):
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * [3.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    features = plane @ axes.T + 5.0
    before = features.copy()
    found, method = project(features)
    assert method == "PCA" and np.array_equal(features, before)
    # distances in the plane are kept, the first axis has the larger variance
    assert np.allclose(
        np.linalg.norm(found[:, None] - found, axis=2), np.linalg.norm(plane[:, None] - plane, axis=2)
    )
    assert found.var(0)[0] > found.var(0)[1] and abs(found.mean(0)).max() < 1e-9


@pytest.mark.parametrize(
    "features", [np.zeros((1, 4)), np.ones((3, 1)), np.zeros((5, 3)), np.array([[0.0, 1.0], [1.0, 0.0]])]
)
def test_few_points_and_few_dimensions(without_umap, features):
    found, _ = project(features)
    assert found.shape == (len(features), 2) and np.isfinite(found).all()


def test_umap_where_it_is_installed():
    pytest.importorskip("umap", reason="umap-learn is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, method = project(np.random.default_rng(0).random((30, 5)))
        assert torch.get_num_threads() == 1  # which the bits of a later training depend on
    finally:
        torch.set_num_threads(threads)
    assert method == "UMAP" and found.shape == (30, 2)
