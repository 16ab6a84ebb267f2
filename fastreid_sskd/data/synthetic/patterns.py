"""The patterns of cloth."""

import numpy as np
from PIL import Image

from .wardrobe import Garment

#: Patterns that cover a whole garment; "logo" is drawn on the chest by the figure instead.
PATTERNS = ("plain", "bands", "pinstripes", "checks", "dots", "block", "seam", "logo")


def cloth(garment: Garment, *, size: tuple[int, int], centre: float, top: float, unit: float) -> Image.Image:
    """A canvas full of a garment's cloth, to be pasted through the mask of the garment.

    Args:
        garment: colours, pattern and period.
        size: (width, height) of the canvas in pixels.
        centre: x of the axis in pixels; patterns are symmetric about it, so they move with the figure.
        top: y of the figure's crown in pixels.
        unit: pixels per figure height.

    Raises:
        ValueError: when the pattern has no drawing.
    """
    if garment.pattern not in PATTERNS:
        raise ValueError(
            f"pattern {garment.pattern!r} is not one of {PATTERNS}: choose one of them or draw it here"
        )
    canvas = Image.new("RGB", size, garment.colour)
    mask = _second_colour(garment, size, centre, top, unit)
    if mask is not None:
        canvas.paste(garment.second, mask=Image.fromarray(mask.astype(np.uint8) * 255))
    return canvas


def _second_colour(
    garment: Garment, size: tuple[int, int], centre: float, top: float, unit: float
) -> np.ndarray | None:
    """Where the second colour shows: bool (height, width), or None where it never does."""
    x = np.abs(np.arange(size[0]) + 0.5 - centre)[None, :] / unit
    y = (np.arange(size[1]) + 0.5 - top)[:, None] / unit
    period = garment.period
    if garment.pattern == "bands":
        rows = (y / period) % 1 < 0.45
        return np.broadcast_to(rows, size[::-1])
    if garment.pattern == "pinstripes":
        columns = (x / (0.6 * period)) % 1 < 0.35
        return np.broadcast_to(columns, size[::-1])
    if garment.pattern == "checks":
        return ((x / period) % 1 < 0.5) ^ ((y / period) % 1 < 0.5)
    if garment.pattern == "dots":
        return ((x / period) % 1 - 0.5) ** 2 + ((y / period) % 1 - 0.5) ** 2 < 0.09
    if garment.pattern == "block":
        return np.broadcast_to(y > 0.2 + 2 * period, size[::-1])
    if garment.pattern == "seam":
        return np.broadcast_to(x > 0.075, size[::-1])
    return None
