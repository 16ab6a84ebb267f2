"""A tracker's results and frames become crops, and the crops adapt peers by tracklets."""

import logging

import numpy as np
import pytest
from PIL import Image
from tiny_reid import HEIGHT, WIDTH, draw, load_checkpoint, tiny_adaptation

from fastreid_sskd.data import TargetLoader, Tracklets, training_items
from fastreid_sskd.data.mot import cut_crops, read_boxes
from fastreid_sskd.engine import run
from fastreid_sskd.report.plots import refresh_figures
from fastreid_sskd.report.run_files import read_run_files

CAMERA, TRACK = r"([^/_]+)_t\d+_f\d+", r"^(?:(?P<clip>.*)/)?[^/]*_t(\d+)_f(?P<frame>\d+)"
PEOPLE, SEEN, TIMES = 3, 8, 3  # at a time, frames in a row, tracks of each


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Two cameras before which two groups of people take turns; every turn is a track anew."""
    root = tmp_path_factory.mktemp("station")
    for camera in range(2):
        folder, rows = root / f"frames{camera}", []
        folder.mkdir()
        for frame in range(2 * TIMES * SEEN):
            turn, picture = frame // SEEN, Image.new("RGB", (PEOPLE * WIDTH, HEIGHT))
            for place in range(PEOPLE):
                who = place + PEOPLE * (turn % 2)
                picture.paste(draw(who + 1, camera, frame, seed=1), (place * WIDTH, 0))
                rows.append(
                    f"{frame + 1},{turn * PEOPLE + place},{place * WIDTH},0,{WIDTH},{HEIGHT},1,-1,-1,-1"
                )
            picture.save(folder / f"{frame + 1:06d}.png")
        (root / f"mot{camera}.txt").write_text("\n".join(rows))
        boxes = read_boxes(str(root / f"mot{camera}.txt"))
        done = cut_crops(boxes, str(folder), f"c{camera}", str(root / "crops" / f"c{camera}"), every=2)
        assert done == {"crops": 6 * TIMES * SEEN // 2, "tracklets": 6 * TIMES, "outside": 0}
    return root / "crops"


def config(crops, output, *opts):
    return tiny_adaptation(
        output, "DATASETS.NAMES", "('CropFolder',)", "DATASETS.TESTS", "()", "SSKD.SOURCE.SKIP", "True",
        "SSKD.FOLDERS.CropFolder.TRAIN", str(crops), "SSKD.FOLDERS.CropFolder.CAMERA", CAMERA,
        "SSKD.FOLDERS.CropFolder.TRACK", TRACK, "SSKD.CLUSTER.PAIRS_PER_IMAGE", "10.0",
        "SSKD.SELECT_BY", "silhouette", *opts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(crops, tmp_path_factory):
    """A run of two epochs: its config."""
    cfg = config(crops, tmp_path_factory.mktemp("runs") / "whole")
    run(cfg)
    return cfg


def test_from_a_trackers_results_to_adapted_peers(whole):
    refresh = load_checkpoint(f"{whole.OUTPUT_DIR}/model_final.pth")["refresh"]
    labels = refresh["labels"].numpy()
    tracklets = Tracklets.from_items(training_items(whole.DATASETS.NAMES, whole.SSKD.FOLDERS))
    assert len(tracklets) == 36 and len(labels) == 144 and labels.max() >= 1
    for tracklet in range(36):
        assert len(set(labels[tracklets.of_image == tracklet])) == 1
    of_tracklet = labels[[list(tracklets.of_image).index(tracklet) for tracklet in range(36)]]
    for turn in np.arange(36).reshape(12, PEOPLE):  # three who are seen together
        seen = [label for label in of_tracklet[turn] if label >= 0]
        assert tracklets.overlap(turn[0], turn[1:]).all() and len(set(seen)) == len(seen)
    record = load_checkpoint(f"{whole.OUTPUT_DIR}/model_final.pth")["record"]
    assert 0 < record["selected"]["score"] < 1  # the clusters of tracklets, by the distances of images
    assert [entry["tracklets"] for entry in refresh["history"]] == [36, 36]
    assert any(">tracklets<" in figure for figure in refresh_figures(read_run_files(whole.OUTPUT_DIR)))


def test_a_resumed_run_ends_as_one_that_was_not_stopped(crops, whole, tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastreid.sskd.hooks")
    run(config(crops, tmp_path, "SOLVER.MAX_EPOCH", "1"))
    run(config(crops, tmp_path), resume=True)
    expected, final = (
        load_checkpoint(f"{folder}/model_final.pth") for folder in (whole.OUTPUT_DIR, tmp_path)
    )
    assert all(bool((final["model"][name] == value).all()) for name, value in expected["model"].items())
    counts = "36 tracklets: {tracklets_joined} joined with others, {tracklets_split} split off"
    assert counts.format(**final["refresh"]["history"][-1]) in caplog.text


def test_batches_of_tracklets(crops, tmp_path):
    cfg = config(crops, tmp_path / "out")
    items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    loader = TargetLoader(cfg, items)
    assert np.array_equal(loader.tracklets, Tracklets.from_items(items).of_image)
    labels = loader.tracklets % PEOPLE  # each of twelve tracklets
    for batch in loader.epoch(labels, seed=0).batches:
        for at in range(0, 8, 4):
            assert len({loader.tracklets[draw.index] for draw in batch[at : at + 4]}) == 4
