"""Figures: the right numbers at the right places, and nothing but text in the texts."""

import math
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from fastreid_sskd.report import plots
from fastreid_sskd.report.plots import COLOURS, bar_chart, line_chart, map_figures, project, scatter
from fastreid_sskd.report.run_files import RunFiles, read_run_files


def points(figure):
    """(x, y, tip) of every point, in pixels of the figure."""
    found = re.findall(r'<use [^>]*x="([-\d.]+)" y="([-\d.]+)"[^>]*><title>(.*?)</title>', figure)
    return [(float(x), float(y), tip) for x, y, tip in found]


def texts(figure):
    return re.findall(r"<text [^>]*>([^<]+)</text>", figure)


def title(figure):
    return re.search("<figcaption>(.*?)</figcaption>", figure)[1]


def test_line_goes_through_its_points():
    figure = line_chart("t", {"a": [(0, 1.0), (10, 3.0), (20, 2.0)]})
    (x0, y0, first), (x1, y1, _), (x2, y2, last) = points(figure)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.03)  # even steps
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.03)  # upwards is more
    assert f'd="M {x0:.2f} {y0:.2f} L {x1:.2f} {y1:.2f} L {x2:.2f} {y2:.2f}"' in figure
    assert (first, last) == ("a, 0: 1", "a, 20: 2") and "iteration" in texts(figure)


def test_lines_share_their_axes_and_have_a_legend():
    figure = line_chart("t", {"a": [(0, 0.0)], "b": [(0, 0.0), (1, 1.0)]})
    found = points(figure)
    assert found[0][:2] == found[1][:2] and len(found) == 3
    assert {"a", "b"} <= set(texts(figure)) and "a" not in texts(line_chart("t", {"a": [(0, 0.0)]}))


@pytest.mark.parametrize(
    "line", [[(3, 7.0)], [(0, 5.0), (1, 5.0)], [(0, 0.0), (1, 0.0)], [(0, 1e-9), (1, 1e9)]]
)
def test_one_point_equal_points_and_wide_ranges_stay_on_the_figure(line):
    figure = line_chart("t", {"a": line})
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', figure).groups())
    found = points(figure)
    assert len(found) == len(line) and all(0 < x < width and 0 < y < height for x, y, _ in found)


def test_values_that_are_not_finite_are_left_out():
    assert len(points(line_chart("t", {"a": [(0, math.nan), (1, math.inf), (2, 1.0)]}))) == 1
    assert line_chart("t", {"a": [(0, math.nan)], "b": []}) == "" == line_chart("t", {})
    assert bar_chart("t", {"a": math.nan}) == "" == bar_chart("t", {})
    assert scatter("t", [(math.nan, 0.0)], [""], [""]) == "" == scatter("t", [], [], [])


@pytest.mark.parametrize(
    "bars, expected", [({"a": 4.0, "b": 1.0, "c": 0.0}, [1, 0.25, 0]), ({"a": 0.0}, [0])]
)
def test_bars_are_proportional(bars, expected):
    figure = bar_chart("t", bars, "s")
    ends = re.findall(rf'd="M ([\d.]+) \S+ L ([\d.]+) [^"]*"[^>]*style="fill: {COLOURS[0]}"', figure)
    lengths = [float(end) - float(start) for start, end in ends]
    assert [length / (lengths[0] or 1) for length in lengths] == pytest.approx(expected, abs=1e-3)
    assert [text for text in texts(figure) if text.endswith(" s")] == [
        f"{value:g} s" for value in bars.values()
    ]


def test_points_of_no_group_are_grey_and_below():
    figure = scatter("t", [(0, 0), (1, 1), (2, 0)], ["g", "", "g"], ["one", "two", "three"])
    assert [tip for _, _, tip in points(figure)] == ["two", "one", "three"]
    fills = re.findall(r'style="fill: (#\w+)"><title>', figure)
    assert fills == ["#999999", COLOURS[0], COLOURS[0]] and "g" in texts(figure)


def test_names_are_escaped():
    bad = '<script>"&$\\frac$[1'
    charts = [
        line_chart(bad, {bad: [(0, 1.0)], "b": [(0, 1.0)]}, bad), bar_chart(bad, {bad: 1.0}, bad),
        scatter(bad, [(0, 0)], [bad], [bad]),
    ]  # fmt: skip
    for figure in charts:
        assert "<script" not in figure and "&lt;script&gt;" in figure and "$\\frac$[1" in figure
        ET.fromstring(figure)  # well-formed


def test_a_figure_is_the_same_each_time_whatever_the_users_style_is():
    def draw():
        return line_chart("t", {"a": [(0, 1.0)], "b": [(1, 2.0)]})

    before = draw()
    matplotlib = plots.import_matplotlib()
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "axes.grid": False, "font.size": 30, "text.color": "red"}
    ):
        assert draw() == before
    ids = [re.findall(' id="([^"]+)"', figure) for figure in (before, line_chart("u", {"a": [(0, 1.0)]}))]
    assert all(ids) and not set(ids[0]) & set(ids[1])  # on one page, each names its own parts


def test_without_matplotlib_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r'the report needs matplotlib: pip install "fastreid-sskd\[report\]"'
    ):
        bar_chart("t", {"a": 1.0})


# ---- the figures of a run ------------------------------------------------------------------------


def run(scalars=None, labels=None, evaluations=()):
    labels = None if labels is None else np.array(labels)
    return RunFiles(
        "run", {"DATASETS": {"TESTS": ["T"]}}, "", scalars or {}, list(evaluations), labels=labels
    )


def test_a_figure_a_loss_with_a_line_a_peer():
    names = ("total_loss", "loss_id_peer0", "loss_id_peer1", "loss_soft_triplet_peer0", "lr", "eps")
    figures = plots.loss_figures(run({name: [(0, 1.0), (9, 0.5)] for name in names}))
    assert [title(figure) for figure in figures] == [
        "total loss",
        "loss_id",
        "loss_soft_triplet",
        "learning rate",
    ]
    assert len(points(figures[1])) == 4 and {"peer0", "peer1"} <= set(texts(figures[1]))
    one_network = plots.loss_figures(run({"loss_id": [(0, 1.0)], "loss_cls": [(0, 2.0)]}))
    assert [title(figure) for figure in one_network] == ["loss_cls", "loss_id"]


def test_evaluations_of_every_teacher_over_epochs():
    rows = {"teacher0": {"mAP": 10.0, "Rank-1": 20.0}, "ensemble": {"mAP": 12.0, "Rank-1": 24.0}}
    figures = plots.evaluation_figures(
        run(evaluations=[{"epoch": e, "results": {"T": rows}} for e in (0, 1, 2)])
    )
    assert [title(figure) for figure in figures] == ["mAP on T, %", "Rank-1 on T, %"]
    assert [tip for _, _, tip in points(figures[0])][::3] == ["teacher 0, 0: 10", "ensemble, 0: 12"]
    assert len(points(figures[0])) == 6 and "epoch" in texts(figures[0])


def test_evaluations_of_a_host_model():
    figures = plots.evaluation_figures(run({"mAP": [(9, 10.0), (19, 20.0)], "Rank-1": [(9, 30.0)]}))
    assert [title(figure) for figure in figures] == ["mAP on T, %", "Rank-1 on T, %"]
    assert len(points(figures[0])) == 2 and "iteration" in texts(figures[0])


def test_time_of_steps_and_stages():
    scalars = {
        "time": [(9, 2.0), (14, 4.0)],
        "data_time": [(14, 0.1)],
        "refresh/seconds_knn": [(0, 3.0), (10, 4.0)],
    }
    (figure,) = plots.time_figures(run(scalars))
    expected = {"training steps": "40 s", "of which waiting for data": "1.5 s", "refresh: knn": "7 s"}
    assert texts(figure) == [*expected, *expected.values()]


@pytest.mark.parametrize("labels", [None, [], [-1, -1]])
def test_no_clusters(labels):
    assert plots.cluster_size_figures(run(labels=labels)) == []


@pytest.mark.parametrize("sizes", [[3], [4, 4, 4], [1, 2, 3], list(range(4, 60)), [4, 1000]])
def test_every_cluster_is_counted_once(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist() + [-1, -1]
    (figure,) = plots.cluster_size_figures(run(labels=labels))
    assert f"{len(sizes)} clusters of {len(labels)} images, 2 images are noise" in title(figure)
    shown = texts(figure)
    counts = dict.fromkeys(range(min(sizes), max(sizes) + 1), 0)
    for bounds, number in zip(shown[: len(shown) // 2], shown[len(shown) // 2 :], strict=True):
        low, high = re.fullmatch(r"(\d+)(?: to (\d+))? images", bounds).groups()
        inside = range(int(low), int(high or low) + 1)
        assert f"{sum(size in inside for size in sizes)} clusters" == number
        for size in inside:
            counts[size] += 1
    assert set(counts.values()) == {1}  # the bins are apart and leave no size out


def test_a_run_that_trained_nothing():
    assert plots.loss_figures(run()) == plots.evaluation_figures(run()) == plots.refresh_figures(run()) == []
    assert plots.time_figures(run()) == []


def test_a_real_run_has_all_of_them(finished):
    files = read_run_files(str(finished))
    assert [title(figure) for figure in plots.refresh_figures(files)] == [
        "clusters", "noise ratio", "eps", "label change ratio", "images in a cluster",
        "agreement with identities, unseen by training",
    ]  # fmt: skip
    losses = {title(figure) for figure in plots.loss_figures(files)}
    assert {"total loss", "loss_id", "loss_ms", "loss_nn", "loss_soft", "learning rate"} <= losses
    assert len(files.labels) == 48 and files.checkpoint.endswith("model_final.pth")


# ---- the map -------------------------------------------------------------------------------------


def test_maps_before_and_after_and_at_most_so_many_points():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    items = [(f"{i}.jpg", i % 12, 0) for i in range(50)]
    figures = map_figures({"before": features, "after": features}, items, most=20)
    assert [title(figure) for figure in figures] == [
        f"{model}, PCA of 20 test images" for model in ("before", "after")
    ]
    assert [len(points(figure)) for figure in figures] == [20, 20]
    named = {text for text in texts(figures[1]) if text.startswith("identity ")}
    # identity 0 is a host's word for nobody
    assert 0 < len(named) <= len(COLOURS) and "identity 0" not in named


def test_pca_finds_the_plane_of_the_points():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * [3.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    features = plane @ axes.T + 5.0
    before = features.copy()
    found, method = project(features)
    assert method == "PCA" and np.array_equal(features, before)
    # distances in the plane are kept, the first axis has the larger variance
    distances = [np.linalg.norm(at[:, None] - at, axis=2) for at in (found, plane)]
    assert np.allclose(*distances)
    assert found.var(0)[0] > found.var(0)[1] and abs(found.mean(0)).max() < 1e-9


@pytest.mark.parametrize(
    "features", [np.zeros((1, 4)), np.ones((3, 1)), np.zeros((5, 3)), np.array([[0.0, 1.0], [1.0, 0.0]])]
)
def test_few_points_and_few_dimensions(features):
    found, _ = project(features)
    assert found.shape == (len(features), 2) and np.isfinite(found).all()


def test_umap_where_it_is_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "umap")  # see conftest.py
    pytest.importorskip("umap", reason="umap-learn is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, method = project(np.random.default_rng(0).random((30, 5)))
        assert torch.get_num_threads() == 1  # which the bits of a later training depend on
    finally:
        torch.set_num_threads(threads)
    assert method == "UMAP" and found.shape == (30, 2)
