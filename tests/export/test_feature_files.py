"""Features in a file: what was written is read back, with the paths in the same order."""

import sys

import numpy as np
import pytest

from fastreid_sskd.export.feature_files import check_feature_file, write_features

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
