"""The figures that need the files of a run only."""

import re

import numpy as np
import pytest

from fastreid_sskd.report import curves
from fastreid_sskd.report.run_files import RunFiles, read_run_files


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
    figures = curves.loss_figures(run(scalars))
    assert titles(figures) == ["total loss", "loss_id", "loss_soft_triplet", "learning rate"]
    assert figures[1].count("<polyline") == 2 and ">peer1</span>" in figures[1]


def test_losses_of_a_single_network():
    assert titles(curves.loss_figures(run({"loss_id": [(0, 1.0)], "loss_cls": [(0, 2.0)]}))) == [
        "loss_cls",
        "loss_id",
    ]


def test_evaluations_of_every_teacher_over_epochs():
    rows = {"peer0": {"mAP": 10.0, "Rank-1": 20.0}, "ensemble": {"mAP": 12.0, "Rank-1": 24.0}}
    figures = curves.evaluation_figures(
        run(evaluations=[{"epoch": e, "results": {"T": rows}} for e in (0, 1, 2)])
    )
    assert titles(figures) == ["mAP on T, %", "Rank-1 on T, %"]
    assert (
        figures[0].count("<polyline") == 2
        and figures[0].count("<circle") == 6
        and ">teacher 0</span>" in figures[0]
    )


def test_evaluations_of_a_host_model():
    figures = curves.evaluation_figures(run({"mAP": [(9, 10.0), (19, 20.0)], "Rank-1": [(9, 30.0)]}))
    assert titles(figures) == ["mAP on T, %", "Rank-1 on T, %"] and figures[0].count("<circle") == 2


def test_time_of_steps_and_stages():
    scalars = {
        "time": [(9, 2.0), (14, 4.0)],
        "data_time": [(14, 0.1)],
        "refresh/seconds_knn": [(0, 3.0), (10, 4.0)],
    }
    (figure,) = curves.time_figures(run(scalars))
    cells = re.findall(r'<th>(.*?)</th>.*?class="number">(.*?)</td>', figure)
    assert cells == [
        ("training steps", "40 s"),
        ("of which waiting for data", "1.5 s"),
        ("refresh: knn", "7 s"),
    ]


@pytest.mark.parametrize("labels", [None, [], [-1, -1]])
def test_no_clusters(labels):
    assert curves.cluster_size_figures(run(labels=labels)) == []


@pytest.mark.parametrize("sizes", [[3], [4, 4, 4], [1, 2, 3], list(range(4, 60)), [4, 1000]])
def test_every_cluster_is_counted_once(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist() + [-1, -1]
    (figure,) = curves.cluster_size_figures(run(labels=labels))
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
        curves.loss_figures(run()) == curves.evaluation_figures(run()) == curves.refresh_figures(run()) == []
    )
    assert curves.time_figures(run()) == []


def test_a_real_run_has_all_of_them(finished):
    files = read_run_files(str(finished))
    shown = titles(curves.refresh_figures(files))
    assert shown == [
        "clusters", "noise, share of images", "eps", "label change, share of images", "images in a cluster",
        "agreement with identities, unseen by training",
    ]  # fmt: skip
    assert {"total loss", "loss_id", "loss_ms", "loss_nn", "loss_soft", "learning rate"} <= set(
        titles(curves.loss_figures(files))
    )
    assert len(files.labels) == 48 and files.checkpoint.endswith("model_final.pth")
