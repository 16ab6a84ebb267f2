"""Clusters as folders: every image once, the likeliest first, all or nothing."""

import csv

import numpy as np
import pytest

from fastreid_sskd.answers import write_clusters

FEATURES = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.8, -0.6], [0.6, 0.8], [0, -1]], np.float32)
LABELS = np.array([0, 0, 1, 0, 1, -1])


@pytest.fixture
def paths(tmp_path):
    found = []
    for i in range(6):
        path = tmp_path / f"camera{i % 2}" / "same.png"  # one name for all of a camera
        path = path.parent / str(i) / path.name
        path.parent.mkdir(parents=True)
        path.write_text(f"image {i}")
        found.append(str(path))
    return found


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_a_cluster(paths, tmp_path, copy):
    out = tmp_path / "new" / "clusters"
    write_clusters(str(out), paths, FEATURES, LABELS, copy=copy)
    assert sorted(at.name for at in out.iterdir()) == ["0000", "0001", "clusters.csv", "noise"]
    first = [file.read_text() for file in sorted((out / "0000").iterdir())]
    assert first == ["image 0", "image 1", "image 3"]  # 0 is the mean's direction, the others tie
    assert all(file.is_symlink() is not copy for file in out.glob("*/*"))
    with open(out / "clusters.csv", newline="", encoding="utf-8") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(paths) and [rows[path]["cluster"] for path in paths] == [
        "0",
        "0",
        "1",
        "0",
        "1",
        "",
    ]
    assert all(
        (out / row["file"]).read_text() == f"image {paths.index(row['image'])}" for row in rows.values()
    )
    assert float(rows[paths[0]]["similarity"]) == 1 and rows[paths[5]]["similarity"] == ""


def test_all_noise_into_a_link_to_an_empty_folder(paths, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    write_clusters(str(tmp_path / "out"), paths, FEATURES, np.full(6, -1))
    assert len(list((tmp_path / "disk" / "noise").iterdir())) == 6 and (tmp_path / "out").is_symlink()


def test_what_is_there_stays(paths, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "annotated.txt").write_text("hours of work")
    for name in ("out", "out/annotated.txt"):
        with pytest.raises(ValueError, match="is there and not an empty folder"):
            write_clusters(str(tmp_path / name), paths, FEATURES, LABELS)
    with pytest.raises(ValueError, match="takes no new folder"):
        write_clusters(str(tmp_path / "out" / "annotated.txt" / "below"), paths, FEATURES, LABELS)


@pytest.mark.parametrize("copy", [False, True])
def test_images_that_are_gone_leave_nothing_half_written(paths, tmp_path, copy):
    (tmp_path / "empty").mkdir()
    gone = [*paths[:5], str(tmp_path / "gone.png")]
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images are not there any more \(first: .*gone.png"):
        write_clusters(str(tmp_path / "empty"), gone, FEATURES, LABELS, copy=copy)
    assert not list((tmp_path / "empty").iterdir()) and not list(tmp_path.glob("*.tmp"))
