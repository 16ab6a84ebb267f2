"""A tracker's results become a folder of crops, whole or not at all."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from fastreid_sskd.data.mot import Box, cut_crops, read_boxes


def results(tmp_path, *rows):
    path = tmp_path / "results.txt"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def frames(tmp_path):
    """Five frames of 20 x 10 pixels, each of one colour: 10 times its number."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 6):
        Image.new("RGB", (20, 10), (10 * number,) * 3).save(folder / f"shot-{number:03d}.png")
    return folder


def cut(tmp_path, frames, *rows, camera="c1", every=1):
    boxes = read_boxes(results(tmp_path, *rows))
    return cut_crops(boxes, str(frames), camera, str(tmp_path / "out" / "c1"), every)


def test_rows_of_any_length_and_blank_ones(tmp_path):
    boxes = read_boxes(
        results(tmp_path, "\ufeff1,2,3.5,4,5,6,1,-1,-1,-1", "", "2, 2, -3, 4, 5, 6", "3\t7 1 1 2 2")
    )
    assert boxes == [Box(1, 1, 2, 3.5, 4, 5, 6), Box(3, 2, 2, -3, 4, 5, 6), Box(4, 3, 7, 1, 1, 2, 2)]


@pytest.mark.parametrize(
    "row",
    ["frame,id,x,y,w,h", "1,1,0,0,5", "1,1,0,0,0,5", "1,1,0,0,5,-5", "1.5,1,0,0,5,5", "-1,1,0,0,5,5",
     "1,-1,0,0,5,5", "1,,7,0,0,5,5", "1,1,nan,0,5,5", "1,1,0,0,inf,5", "nan,1,0,0,5,5", "inf,1,0,0,5,5"],
)  # fmt: skip
def test_a_bad_row_is_named_by_its_number(tmp_path, row):
    with pytest.raises(ValueError, match=r"results.txt', row 2: '.*is not frame,id,left"):
        read_boxes(results(tmp_path, "1,1,0,0,5,5", row))


def test_two_boxes_of_a_track_in_a_frame_and_no_row(tmp_path):
    with pytest.raises(ValueError, match="row 3: track 1 has a box in frame 2 already, in row 1"):
        read_boxes(results(tmp_path, "2,1,0,0,5,5", "2,3,0,0,5,5", "2,1,1,1,5,5"))
    with pytest.raises(ValueError, match="has no row"):
        read_boxes(results(tmp_path, "", " "))


def test_crops_are_named_and_cut_at_the_edges(tmp_path, frames):
    done = cut(
        tmp_path, frames, "1,7,2,1,4,8", "3,7,-2,-3,6,8", "3,8,15,5,1e308,1e308", "2,9,1e308,0,1e308,5"
    )
    assert done == {"crops": 3, "tracklets": 2, "outside": 1}
    crops = {name: Image.open(tmp_path / "out" / "c1" / name) for name in os.listdir(tmp_path / "out" / "c1")}
    assert {name: crop.size for name, crop in crops.items()} == {
        "c1_t000007_f000001.jpg": (4, 8), "c1_t000007_f000003.jpg": (4, 5), "c1_t000008_f000003.jpg": (5, 5),
    }  # fmt: skip
    for name, crop in crops.items():
        assert np.asarray(crop).mean() == pytest.approx(10 * int(name[-5]), abs=1)


def test_every_counts_from_a_tracks_last_crop(tmp_path, frames):
    rows = [f"{frame},{track},0,0,5,5" for track, seen in ((1, (2, 3, 4, 5)), (2, (1, 5))) for frame in seen]
    assert cut(tmp_path, frames, *rows, every=2)["crops"] == 4
    kept = sorted(name[8:-4] for name in os.listdir(tmp_path / "out" / "c1"))
    assert kept == ["01_f000002", "01_f000004", "02_f000001", "02_f000005"]


@pytest.mark.parametrize(
    "rows, options, error, said",
    [
        (["1,1,0,0,5,5", "9,2,0,0,5,5"], {}, FileNotFoundError, "frame 9, of row 2, is not in .*1 to 5"),
        (["1,1,0,0,5,5"], {"camera": "c_1"}, ValueError, "a camera's name is of letters.*got 'c_1'"),
        (["1,1,0,0,5,5"], {"every": 0}, ValueError, "one crop every 0 frames"),
        (["1,1,50,0,5,5", "2,1,0.1,0,0.2,5"], {}, ValueError, "all 2 boxes are outside"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, frames, rows, options, error, said):
    with pytest.raises(error, match=said):
        cut(tmp_path, frames, *rows, **options)
    assert not (tmp_path / "out" / "c1").exists() and not list(tmp_path.glob("out/*"))


def test_a_frame_that_cannot_be_read_leaves_nothing(tmp_path, frames):
    (frames / "shot-002.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot read .*shot-002.png'"):
        cut(tmp_path, frames, "1,1,0,0,5,5", "2,1,0,0,5,5")
    assert not list(tmp_path.glob("out/*"))


def test_a_frame_is_read_as_any_image(tmp_path, frames):
    """Upright, as trackers see it, and of 16 bits."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.new("RGB", (10, 20), (90,) * 3).save(frames / "shot-001.png", exif=exif)
    Image.fromarray(np.full((10, 20), 50 * 257, np.uint16)).save(frames / "shot-002.png")
    assert cut(tmp_path, frames, "1,1,15,0,5,5", "2,1,15,0,5,5")["crops"] == 2
    crops = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out" / "c1").iterdir())]
    assert [crop.mean() for crop in crops] == pytest.approx([90, 50], abs=1)


def test_two_frames_of_one_number_and_an_output_that_is_there(tmp_path, frames):
    Image.new("RGB", (20, 10)).save(frames / "other-3.png")
    with pytest.raises(ValueError, match=r"other-3.png' and .*shot-003.png' are both frame 3"):
        cut(tmp_path, frames, "1,1,0,0,5,5")
    (tmp_path / "out" / "c1").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is there already"):
        cut(tmp_path, frames, "1,1,0,0,5,5")


# ---- videos --------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path):
    """Five frames of 64 x 32 pixels, each of one grey: 40 times its number."""
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 32))
    for number in range(1, 6):
        writer.write(np.full((32, 64, 3), 40 * number, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video_count_from_1(tmp_path, video):
    assert cut(tmp_path, video, "2,1,0,0,16,16", "5,1,0,0,16,16")["crops"] == 2
    for number in (2, 5):
        crop = Image.open(tmp_path / "out" / "c1" / f"c1_t000001_f00000{number}.jpg")
        assert np.asarray(crop).mean() == pytest.approx(40 * number, abs=3)


@pytest.mark.parametrize("frame, there", [(6, "1 to 5"), (0, "frames from 1 on")])
def test_a_video_without_the_frame(tmp_path, video, frame, there):
    with pytest.raises(FileNotFoundError, match=f"frame {frame}, of row 1, is not in .*has {there}"):
        cut(tmp_path, video, f"{frame},1,0,0,16,16")
    assert not list(tmp_path.glob("out/*"))


def test_no_video_and_one_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder of frames nor a video"):
        cut(tmp_path, tmp_path / "none.mp4", "1,1,0,0,5,5")
    pytest.importorskip("cv2")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="bad.mp4' cannot be read as a video"):
        cut(tmp_path, tmp_path / "bad.mp4", "1,1,0,0,5,5")


def test_opencv_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "fastreid-sskd\[video\]"'):
        cut(tmp_path, tmp_path / "clip.mp4", "1,1,0,0,5,5")
    assert not list(tmp_path.glob("out/*"))
