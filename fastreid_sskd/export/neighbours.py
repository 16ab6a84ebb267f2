"""The images most similar to one, as numbers and as one picture."""
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..data.views import read_image

__all__ = ["nearest", "neighbours_picture"]

_GAP, _LINE = 6, 14  # pixels between images, and under each for its number


def nearest(features: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` images of largest cosine similarity to the query, the most similar first, ties by index.

    Args:
        features: (N, d), N >= 1, any length > 0.
        query: (d,).
        count: at least 1; all N where there are fewer.

    Returns:
        Indices and cosines, (min(count, N),) each.

    Raises:
        ValueError: if the shapes do not fit or ``count`` is below 1.
    """
    if features.ndim != 2 or not len(features) or query.shape != features.shape[1:] or count < 1:
        raise ValueError(
            f"nearest takes features (N >= 1, d), a query (d,) and a count >= 1, got {features.shape}, {query.shape}, {count}"
        )
    cosines = features @ query / (np.linalg.norm(features, axis=1) * np.linalg.norm(query))
    order = np.argsort(-cosines, kind="stable")[:count]
    return order, cosines[order]


def neighbours_picture(
    query: str, neighbours: Sequence[str], similarities: Sequence[float], *, size: tuple[int, int] = (256, 128), columns: int = 10
) -> Image.Image:
    """The query in a frame, and its neighbours with rank and similarity, in rows.

    Args:
        query, neighbours: image files.
        similarities: one a neighbour.
        size: (height, width) that every image is shrunk or grown into, its shape kept [pixels].
        columns: neighbours a row, >= 1.

    Raises:
        ValueError: if there is not one similarity a neighbour.
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
        image = read_image(path)
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
