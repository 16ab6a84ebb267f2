"""Features in a file, read back with the paths in the same order, and a picture of the nearest images."""

import sys

import numpy as np
import pytest
from PIL import Image

from fastreid_sskd.export.feature_files import check_feature_file, neighbors_picture, write_features

PATHS = ["b/ü.jpg", "a.jpg", "c d.png"]
FEATURES = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def test_npy_with_its_paths_beside_it(tmp_path):
    path = tmp_path / "new" / "f.npy"
    assert write_features(str(path), PATHS, FEATURES) == [str(path), str(tmp_path / "new" / "f.txt")]
    assert np.array_equal(np.load(path), FEATURES)
    assert (tmp_path / "new" / "f.txt").read_text(encoding="utf-8").splitlines() == PATHS


def test_npz(tmp_path):
    assert write_features(str(tmp_path / "f.npz"), PATHS, FEATURES) == [str(tmp_path / "f.npz")]
    read = np.load(tmp_path / "f.npz")
    assert np.array_equal(read["features"], FEATURES) and read["paths"].tolist() == PATHS


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason='needs the extra parquet: pip install "fastreid-sskd[parquet]"')
    from pyarrow import parquet

    write_features(str(tmp_path / "f.parquet"), PATHS, FEATURES.T.copy().T)  # not contiguous
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["path"].to_pylist() == PATHS
    assert str(table.schema.field("feature").type) == "fixed_size_list<element: float>[4]"
    assert np.array_equal(np.array(table["feature"].to_pylist(), dtype=np.float32), FEATURES)


def test_unknown_ending(tmp_path):
    with pytest.raises(ValueError, match=".npy, .npz, .parquet; got 'f.csv'"):
        write_features("f.csv", PATHS, FEATURES)


def test_missing_pyarrow(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"fastreid-sskd\[parquet\]"):
        check_feature_file("f.parquet")


def test_paths_and_features_of_different_number(tmp_path):
    with pytest.raises(ValueError, match="2 paths need features of shape"):
        write_features(str(tmp_path / "f.npy"), PATHS[:2], FEATURES)
    with pytest.raises(ValueError, match="3 paths need features"):
        write_features(str(tmp_path / "f.npy"), PATHS, FEATURES[0])
    assert not list(tmp_path.iterdir())


def test_a_path_of_two_lines(tmp_path):
    with pytest.raises(ValueError, match="one a line"):
        write_features(str(tmp_path / "f.npy"), ["a\nb.jpg", "c", "d"], FEATURES)
    write_features(str(tmp_path / "f.npz"), ["a\nb.jpg", "c", "d"], FEATURES)


COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


@pytest.fixture
def images(tmp_path):
    sizes = {"red": (20, 40), "green": (40, 20), "blue": (7, 3), "grey": (64, 128)}
    for name, colour in COLOURS.items():
        Image.new("RGB", sizes[name], colour).save(tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in COLOURS}


def places(picture, colour):
    """(left, top, right, bottom) of the pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_every_image_is_there_in_its_place(images):
    picture = neighbors_picture(images["grey"], [images["green"], images["blue"]], [0.9, 0.5], size=(64, 32))
    grey, green, blue = (places(picture, COLOURS[name]) for name in ("grey", "green", "blue"))
    assert grey[2] < green[0] and green[2] < blue[0]  # from left to right
    assert (grey[2] - grey[0] + 1, grey[3] - grey[1] + 1) == (32, 64)  # its shape fits the cell
    assert (green[2] - green[0] + 1, green[3] - green[1] + 1) == (32, 16)  # wider than the cell
    assert places(picture, (255, 0, 0))[0] < grey[0]  # the frame


def test_an_image_that_is_gone_is_grey(images):
    picture = neighbors_picture(images["red"], [images["green"], "gone.png"], [0.9, 0.5], size=(64, 32))
    assert places(picture, COLOURS["green"])[2] < places(picture, (211,) * 3)[0]


def test_rows(images):
    one_row = neighbors_picture(images["grey"], [images["red"]] * 4, [0.1] * 4, size=(64, 32), columns=4)
    two_rows = neighbors_picture(images["grey"], [images["red"]] * 3, [0.1] * 3, size=(64, 32), columns=2)
    assert one_row.width > two_rows.width and two_rows.height > 1.8 * one_row.height
    assert neighbors_picture(images["grey"], [], [], size=(64, 32)).width > 32


def test_numbers_that_do_not_fit(images):
    with pytest.raises(ValueError, match="1 neighbours with 2"):
        neighbors_picture(images["grey"], [images["red"]], [0.1, 0.2])


def test_damaged_image_is_named(images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match="bad.jpg"):
        neighbors_picture(images["grey"], [str(tmp_path / "bad.jpg")], [0.1])
