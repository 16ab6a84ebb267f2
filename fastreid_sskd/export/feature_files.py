"""Features and the paths of their images in a file, and a picture of the images most similar to one."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..data.views import read_image
from ..engine.files import check_output, written_together
from ..refusals import optional

_ENDINGS = (".npy", ".npz", ".parquet")
_GAP, _LINE = 6, 14  # pixels of a picture between images, and under each for its number


def _files(path: str, ending: str) -> list[str]:
    """The files of one :func:`write_features`: an array alone has the paths beside it."""
    return [path, f"{path[: -len(ending)]}.txt"] if ending == ".npy" else [path]


def check_feature_file(path: str, paths: Sequence[str] = (), reads: Sequence[str] = ()) -> str:
    """Check that :func:`write_features` can write a file, before features are computed.

    Args:
        path, paths: as there.
        reads: files that must not be overwritten.

    Returns:
        The ending.

    Raises:
        ValueError: if the ending is of no known format, the format cannot hold a path, or the file, or the
            list of paths beside it, cannot or must not be written.
        ImportError: if the format needs a package that is not there.
    """
    ending = check_output(path, _ENDINGS, reads)
    for beside in _files(path, ending)[1:]:
        check_output(beside, reads=reads)
    if ending == ".parquet":
        optional("pyarrow.parquet", '.parquet needs pyarrow: pip install "fastreid-sskd[parquet]"')
    for name in paths:
        if ending == ".npy" and "\n" in name:
            raise ValueError(
                f"a list of paths has one a line, and {name!r} has several: write .npz or .parquet"
            )
        if ending == ".parquet" and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f".parquet holds names in UTF-8, and {name!r} is none: write .npz or .npy")
    return ending


def write_features(path: str, paths: Sequence[str], features: np.ndarray) -> list[str]:
    """Write N features and the paths of their images, all or nothing.

    Args:
        path: ``.npy`` (the array; the paths go into a ``.txt`` beside it, one a line), ``.npz`` (arrays
            ``paths`` and ``features``) or ``.parquet`` (columns ``path`` and ``feature``, a list of d
            floats). Its folder is made.
        paths: N names.
        features: (N, d).

    Returns:
        The files written.
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
    parquet.write_table(
        pyarrow.table({"path": pyarrow.array(list(paths), pyarrow.string()), "feature": values}), file
    )


def neighbors_picture(
    query: str,
    neighbours: Sequence[str],
    similarities: Sequence[float],
    *,
    size: tuple[int, int] = (256, 128),
    columns: int = 10,
) -> Image.Image:
    """Draw the query in a frame, and its neighbors with rank and similarity, in rows.

    Args:
        query, neighbours: image files; one that is not there is drawn grey.
        similarities: one a neighbour.
        size: (height, width) that every image is shrunk or grown into, its shape kept [pixels].
        columns: neighbours a row, >= 1.
    """
    if len(neighbours) != len(similarities):
        raise ValueError(f"{len(neighbours)} neighbours with {len(similarities)} similarities")
    height, width = size
    cell_height, cell_width = height + _LINE + _GAP, width + _GAP
    shown = max(1, min(columns, len(neighbours)))
    rows = max(1, -(-len(neighbours) // shown))
    picture = Image.new("RGB", (_GAP + (1 + shown) * cell_width, _GAP + rows * cell_height), "white")
    pen = ImageDraw.Draw(picture)

    def put(path: str, row: int, column: int, text: str) -> None:
        try:
            image = read_image(path)
        except FileNotFoundError:  # a gallery file may outlive its images
            image, text = Image.new("RGB", (width, height), "lightgrey"), f"{text}, no file"
        scale = min(width / image.width, height / image.height)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        left, top = _GAP + column * cell_width, _GAP + row * cell_height
        picture.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        pen.text((left, top + height + 1), text, fill="black")

    put(query, 0, 0, "query")
    pen.rectangle((1, 1, _GAP + width + 2, _GAP + height + 2), outline="red", width=3)
    for i, (path, similarity) in enumerate(zip(neighbours, similarities)):
        put(path, i // shown, 1 + i % shown, f"{i + 1}: {similarity:.3f}")
    return picture
