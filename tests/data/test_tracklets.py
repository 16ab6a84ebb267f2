"""Tracks of a folder's images: what TRACK reads, what is refused, which tracklets overlap in time."""

import numpy as np
import pytest

from fastreid_sskd.data import Tracklets, training_items
from fastreid_sskd.data.datasets import Track, folder_class

RULE = r"^(?:(?P<clip>.*)/)?[^/]*_t(\d+)_f(?P<frame>\d+)"


def train(tmp_path, names, **settings):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return folder_class("site", {"TRAIN": str(tmp_path), **settings})(root="").train


@pytest.mark.parametrize(
    "rule, track",
    [
        (RULE, Track("12", "monday", 451)),
        (r"_t(\d+)", Track("12")),
        (r"t\d+", Track("t12")),
        (r"_t(?P<of_track>\d+)_f(?P<frame>\d+)", Track("12", "", 451)),
        (r"_t(\d+)(?:_at(?P<frame>\d+))?", Track("12")),
    ],
)
def test_track_clip_and_frame(tmp_path, rule, track):
    (item,) = train(tmp_path, ["monday/gate_t12_f0451.jpg"], TRACK=rule, CAMERA=r"([^/]+)_t")
    assert item[1:] == (None, "site_gate", track)


def test_items_without_the_expression_are_as_before(tmp_path):
    items = train(tmp_path, ["gate_t1_f1.jpg"])
    assert len(items[0]) == 3 and Tracklets.from_items(items) is None


@pytest.mark.parametrize(
    "rule, said",
    [
        (r"_x(\d+)", r"SSKD.FOLDERS.site.TRACK '_x.*finds nothing in 2 of 2 paths \(first: 'c_t1_f1.jpg'\)"),
        (r"_f(?P<frame>\d+)", r"TRACK .*finds nothing in 2 of 2"),
        (r"_t(\d+)_f(?P<frame>1)?", "TRACK .*finds no number for the frame of 'c_t1_f2.jpg'"),
        (r"_t(\d+)_(?P<frame>\w+)", "TRACK .*finds no number for the frame of 'c_t1_f1.jpg'"),
        ("(", r"TRACK '\(' is no regular expression"),
    ],
)
def test_an_expression_that_does_not_fit(tmp_path, rule, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, ["c_t1_f1.jpg", "c_t1_f2.jpg"], TRACK=rule)


def test_tracks_of_one_image_and_unknown_times_are_said_once(tmp_path, caplog):
    caplog.set_level("INFO", "fastreid.sskd.data")
    names = ["c_t1_f1.jpg", "c_t1_f2.jpg", "c_t2_f1.jpg"]
    train(tmp_path, names, TRACK=RULE)
    train(tmp_path, names, TRACK=r"_t(\d+)")
    said = [record.getMessage() for record in caplog.records if "tracklets" in record.getMessage()]
    assert said[0] == "site: 2 tracklets, 1 of them of one image"
    assert "which of them overlap in time" in said[1] and len(said) == 2


@pytest.mark.parametrize(
    "camera, rule, said",
    [("", RULE, 3), (r"([^/]+)_t", r"_t(\d+)_f(?P<frame>\d+)", 2), (r"([^/]+)_t", RULE, 0)],
)
def test_a_track_twice_in_a_frame_is_warned_of(tmp_path, caplog, camera, rule, said):
    caplog.set_level("WARNING", "fastreid.sskd.data")
    names = [
        "mon/gate_t1_f1.jpg",
        "mon/gate_t1_f2.jpg",
        "mon/door_t1_f1.jpg",
        "tue/gate_t1_f1.jpg",
        "mon/hall_t1_f1.jpg",
    ]
    train(tmp_path, names, TRACK=rule, CAMERA=camera)
    assert len(caplog.records) == bool(said)
    assert not said or f"{said} images show their tracklet more than once in a frame" in caplog.text


def test_tracks_are_within_a_clip_of_a_camera(tmp_path):
    names = ["a/c_t1_f1.jpg", "a/c_t1_f9.jpg", "a/c_t2_f3.jpg", "a/d_t1_f3.jpg", "b/c_t1_f3.jpg"]
    tracklets = Tracklets.from_items(train(tmp_path, names, TRACK=RULE, CAMERA="([^/]+)_t"))
    assert tracklets.of_image.tolist() == [0, 0, 1, 2, 3] and len(tracklets) == 4
    every = np.arange(4)
    pairs = np.argwhere(tracklets.overlap(every[:, None], every))
    assert pairs.tolist() == [[0, 1], [1, 0]]  # not those of another camera or clip at the same time


@pytest.mark.parametrize(
    "spans, overlap",
    [(((1, 5), (5, 9)), True), (((1, 5), (6, 9)), False), (((1, 9), (3, 4)), True), (((2,), (2,)), True),
     (((None,), (None,)), False)],
)  # fmt: skip
def test_overlap_in_time(spans, overlap):
    items = [("x", None, "c", Track(str(k), "", frame)) for k, span in enumerate(spans) for frame in span]
    tracklets = Tracklets.from_items(items)
    assert tracklets.overlap(0, 1) == tracklets.overlap(1, 0) == overlap and not tracklets.overlap(0, 0)


def test_several_data_sets_one_without_tracks(tmp_path):
    for name in ("one/c_t1_f1.jpg", "one/c_t1_f2.jpg", "two/c_t1_f1.jpg", "two/c_t1_f2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folders = {"A": {"TRAIN": str(tmp_path / "one"), "TRACK": RULE}, "B": {"TRAIN": str(tmp_path / "two")}}
    tracklets = Tracklets.from_items(training_items(["A", "B"], folders))
    assert tracklets.of_image.tolist() == [0, 0, 1, 2]
    folders["B"]["TRACK"] = RULE
    assert Tracklets.from_items(training_items(["A", "B"], folders)).of_image.tolist() == [0, 0, 1, 1]
