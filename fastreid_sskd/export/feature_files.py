"""Features and the paths of their images in a file, in the format that its ending names."""
from collections.abc import Sequence

import numpy as np

from ..engine.atomic import check_output, written_together

__all__ = ["check_feature_file", "write_features"]

_ENDINGS = (".npy", ".npz", ".parquet")


def _files(path: str, ending: str) -> list[str]:
    """The files of one :func:`write_features`: an array alone has the paths beside it."""
    return [path, f"{path[: -len(ending)]}.txt"] if ending == ".npy" else [path]


def check_feature_file(path: str, paths: Sequence[str] = (), reads: Sequence[str] = ()) -> str:
    """Whether :func:`write_features` can write a file; to be asked before features are computed.

    Args:
        path, paths: as there.
        reads: files that must not be overwritten.

    Returns:
        The ending.

    Raises:
        ValueError: if the ending is of no known format, the format cannot hold a path, or the file, or the list of paths beside
            it, cannot or must not be written.
        ImportError: if the format needs a package that is not there.
    """
    ending = check_output(path, _ENDINGS, reads)
    for beside in _files(path, ending)[1:]:
        check_output(beside, reads=reads)
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError(f'.parquet needs pyarrow: pip install "fastreid-sskd[parquet]" ({error})') from error
    for name in paths:
        if ending == ".npy" and "\n" in name:
            raise ValueError(f"a list of paths has one a line, and {name!r} has several: write .npz or .parquet")
        if ending == ".parquet" and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f".parquet holds names in UTF-8, and {name!r} is none: write .npz or .npy")
    return ending


def write_features(path: str, paths: Sequence[str], features: np.ndarray) -> list[str]:
    """Write N features and the paths of their images, all or nothing.

    Args:
        path: ``.npy`` (the array; the paths go into a ``.txt`` beside it, one a line), ``.npz`` (arrays ``paths`` and
            ``features``) or ``.parquet`` (columns ``path`` and ``feature``, a list of d floats). Its folder is made.
        paths: N names.
        features: (N, d).

    Returns:
        The files written.

    Raises:
        ValueError, ImportError: see :func:`check_feature_file`; ValueError also if the numbers of paths and features differ.
    """
    ending = check_feature_file(path, paths)
    if features.ndim != 2 or len(paths) != len(features):
        raise ValueError(f"{len(paths)} paths need features of shape ({len(paths)}, d), got {features.shape}")
    files = _files(path, ending)
    with written_together(*files) as (draft, *beside), open(draft, "wb") as file:
        if ending == ".npy":
            np.save(file, features)
        elif ending == ".npz":
            np.savez(file, paths=np.array(paths), features=features)
        else:
            _write_parquet(file, paths, np.ascontiguousarray(features))
        for name in beside:
            with open(name, "w", encoding="utf-8", errors="surrogateescape") as lines:
                lines.writelines(f"{path}\n" for path in paths)
    return files


def _write_parquet(file, paths: Sequence[str], features: np.ndarray) -> None:
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    parquet.write_table(pyarrow.table({"path": pyarrow.array(list(paths), pyarrow.string()), "feature": values}), file)
