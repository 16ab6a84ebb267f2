"""Features and the paths of their images in a file, in the format that its ending names."""
import os
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["check_feature_file", "write_features"]


def _npy(path: str, paths: Sequence[str], features: np.ndarray) -> list[str]:
    names = f"{path.removesuffix('.npy')}.txt"
    odd = next((name for name in paths if "\n" in name), None)
    if odd is not None:
        raise ValueError(f"a list of paths has one a line, and {odd!r} has several: write .npz or .parquet")
    np.save(path, features)
    with open(names, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{name}\n" for name in paths)
    return [path, names]


def _npz(path: str, paths: Sequence[str], features: np.ndarray) -> list[str]:
    np.savez(path, paths=np.array(paths), features=features)
    return [path]


def _parquet(path: str, paths: Sequence[str], features: np.ndarray) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    parquet.write_table(pyarrow.table({"path": pyarrow.array(paths, pyarrow.string()), "feature": values}), path)
    return [path]


_WRITERS: dict[str, Callable] = {".npy": _npy, ".npz": _npz, ".parquet": _parquet}


def check_feature_file(path: str) -> str:
    """The ending of a file that :func:`write_features` can write; to be asked before features are computed.

    Raises:
        ValueError: if the ending is of no known format.
        ImportError: if the format needs a package that is not there.
    """
    ending = os.path.splitext(path)[1]
    if ending not in _WRITERS:
        raise ValueError(f"features are written to {', '.join(_WRITERS)}; got {path!r}")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError(f'.parquet needs pyarrow: pip install "fastreid-sskd[parquet]" ({error})') from error
    return ending


def write_features(path: str, paths: Sequence[str], features: np.ndarray) -> list[str]:
    """Write N features and the paths of their images.

    Args:
        path: ``.npy`` (the array; the paths go into a ``.txt`` beside it, one a line), ``.npz`` (arrays ``paths`` and
            ``features``) or ``.parquet`` (columns ``path`` and ``feature``, a list of d floats).
        paths: N names.
        features: (N, d).

    Returns:
        The files written.

    Raises:
        ValueError, ImportError: see :func:`check_feature_file`; ValueError also if the numbers of paths and features differ.
    """
    ending = check_feature_file(path)
    if features.ndim != 2 or len(paths) != len(features):
        raise ValueError(f"{len(paths)} paths need features of shape ({len(paths)}, d), got {features.shape}")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return _WRITERS[ending](path, list(paths), np.ascontiguousarray(features))
