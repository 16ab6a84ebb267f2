"""The places that cameras look at: one wide still image a camera, from which crops take their background."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from .dice import Dice
from .wardrobe import Colour


def paint_scene(kind: str, *, width: int, height: int, dice: Dice) -> Image.Image:
    """Paint a scene of this kind.

    Args:
        kind: one of :data:`SCENES`.
        width: pixels; several crops wide.
        height: pixels; one crop high, the floor beginning somewhere below the middle.
        dice: decides where things stand.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in SCENES:
        raise ValueError(
            f"scene {kind!r} is not one of {sorted(SCENES)}: choose one of them or add its painter"
        )
    image = Image.new("RGB", (width, height))
    SCENES[kind](image, ImageDraw.Draw(image), dice)
    pixels = np.asarray(image, dtype=np.float32)
    grain = _soft_noise(width, height, cell=height // 10, dice=dice) * 9 + dice.noise(height, width) * 4
    return Image.fromarray(np.clip(pixels + grain[:, :, None], 0, 255).round().astype(np.uint8))


def _soft_noise(width: int, height: int, *, cell: int, dice: Dice) -> np.ndarray:
    """Smooth noise of standard deviation near 1 with features of about ``cell`` pixels."""
    rows, columns = height // cell + 2, width // cell + 2
    coarse = np.clip(dice.noise(rows, columns) * 40 + 128, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(smooth, dtype=np.float32) - 128) / 40


def _shift(colour: Colour, by: float) -> Colour:
    return tuple(int(min(255, max(0, value + by))) for value in colour)


def _ground(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], *, wall: Colour, floor: Colour, horizon: float
) -> int:
    """Fill wall and floor, the floor brighter towards the camera; returns the horizon's row."""
    width, height = size
    row = int(horizon * height)
    draw.rectangle((0, 0, width, row), fill=wall)
    steps = 12
    for step in range(steps):
        y0, y1 = row + (height - row) * step // steps, row + (height - row) * (step + 1) // steps
        draw.rectangle((0, y0, width, y1), fill=_shift(floor, -14 + 28 * step / steps))
    return row


def _plaza(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(178, 188, 196), floor=(168, 162, 152), horizon=0.42)
    for x in range(0, width, height // 3):
        draw.rectangle(
            (x, 0, x + height // 5, row - height // 12), fill=_shift((150, 160, 172), dice.uniform(-30, 20))
        )
    for y in range(row, height, height // 11):
        draw.line((0, y, width, y), fill=(146, 140, 132), width=2)
    for _ in range(6):
        x = dice.uniform(0, width)
        draw.rectangle((x, row - height * 0.05, x + height * 0.2, row + height * 0.04), fill=(120, 96, 70))


def _park(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(118, 152, 104), floor=(124, 158, 92), horizon=0.48)
    draw.rectangle((0, 0, width, height * 0.12), fill=(172, 200, 222))
    for _ in range(60):
        x, y, r = dice.uniform(0, width), dice.uniform(0.02, 0.4) * height, dice.uniform(0.05, 0.13) * height
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_shift((84, 126, 70), dice.uniform(-25, 30)))
    for _ in range(9):
        x, w = dice.uniform(0, width), dice.uniform(0.015, 0.035) * height
        draw.rectangle((x - w, 0, x + w, row + height * 0.03), fill=(92, 74, 58))
    draw.rectangle((0, height * 0.82, width, height), fill=(186, 176, 150))


def _street(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(154, 138, 122), floor=(112, 112, 116), horizon=0.45)
    for _ in range(10):
        x, w = dice.uniform(0, width), dice.uniform(0.1, 0.2) * height
        draw.rectangle(
            (x, height * 0.05, x + w, height * 0.25), fill=_shift((96, 112, 130), dice.uniform(-20, 30))
        )
    paints = [(150, 40, 40), (60, 76, 120), (200, 200, 200), (48, 50, 52), (190, 170, 60)]
    for _ in range(5):
        x, w, colour = (
            dice.uniform(0, width),
            dice.uniform(0.5, 0.7) * height,
            paints[dice.below(len(paints))],
        )
        draw.rectangle((x, row - height * 0.1, x + w, row + height * 0.08), fill=colour)
        draw.rectangle((x + w * 0.2, row - height * 0.18, x + w * 0.8, row - height * 0.1), fill=(60, 70, 80))
        for wheel in (0.2, 0.8):
            cx, cy, r = x + w * wheel, row + height * 0.08, height * 0.045
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(24, 24, 26))
    draw.rectangle((0, height * 0.86, width, height * 0.885), fill=(222, 222, 214))


def _campus(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(208, 200, 182), floor=(190, 184, 174), horizon=0.5)
    for x in range(0, width, height // 4):
        draw.rectangle(
            (x, height * 0.08, x + height // 8, height * 0.36),
            fill=_shift((128, 152, 172), dice.uniform(-20, 20)),
        )
    draw.rectangle((0, row - height * 0.06, width, row + height * 0.02), fill=(86, 128, 70))
    for x in range(-width, width * 2, height // 6):
        draw.line((width / 2 + (x - width / 2) * 0.5, row, x, height), fill=(168, 162, 152), width=2)


def _corridor(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(196, 200, 188), floor=(126, 134, 128), horizon=0.62)
    draw.rectangle((0, row - height * 0.05, width, row), fill=(92, 100, 96))
    for _ in range(8):
        x, w = dice.uniform(0, width), 0.26 * height
        draw.rectangle((x, height * 0.06, x + w, row), fill=_shift((128, 104, 78), dice.uniform(-20, 20)))
        draw.rectangle((x + w * 0.8, height * 0.34, x + w * 0.86, height * 0.38), fill=(210, 206, 180))
    for x in range(-width, width * 2, height // 5):
        draw.line((width / 2 + (x - width / 2) * 0.6, row, x, height), fill=(108, 116, 110), width=2)


def _shop(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(88, 84, 92), floor=(142, 124, 108), horizon=0.55)
    for x in range(0, width, height // 9):
        for level in range(5):
            shade = (dice.uniform(80, 190), dice.uniform(70, 170), dice.uniform(70, 170))
            y = height * (0.04 + 0.1 * level)
            draw.rectangle((x + 2, y, x + height // 9 - 3, y + height * 0.075), fill=_shift(shade, 0))
    draw.rectangle((0, row - height * 0.02, width, row), fill=(40, 38, 44))


def _brick(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(92, 58, 48), floor=(84, 82, 84), horizon=0.58)
    step = height // 24
    for number, y in enumerate(range(0, row, step)):
        for x in range(-(number % 2) * step, width, 2 * step):
            draw.rectangle(
                (x, y, x + 2 * step - 2, y + step - 2), fill=_shift((138, 78, 62), dice.uniform(-24, 24))
            )
    for _ in range(4):
        x = dice.uniform(0, width)
        draw.rectangle((x, height * 0.1, x + height * 0.22, row), fill=(52, 60, 72))


def _garage(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    row = _ground(draw, image.size, wall=(98, 98, 92), floor=(74, 74, 72), horizon=0.4)
    for x in range(0, width, height // 2):
        draw.rectangle((x, 0, x + height * 0.12, height * 0.7), fill=(146, 142, 130))
        draw.rectangle((x, height * 0.5, x + height * 0.12, height * 0.6), fill=(206, 176, 40))
    for _ in range(5):
        x = dice.uniform(0, width)
        draw.ellipse((x, height * 0.03, x + height * 0.3, height * 0.07), fill=(232, 232, 214))
    draw.line((0, row, width, row), fill=(58, 58, 56), width=4)


def _platform(image: Image.Image, draw: ImageDraw.ImageDraw, dice: Dice) -> None:
    width, height = image.size
    _ground(draw, image.size, wall=(66, 86, 110), floor=(132, 130, 136), horizon=0.5)
    for x in range(0, width, int(height * 0.45)):
        draw.rectangle(
            (x, height * 0.12, x + height * 0.26, height * 0.3),
            fill=_shift((30, 38, 50), dice.uniform(0, 60)),
        )
    draw.rectangle((0, height * 0.36, width, height * 0.4), fill=(210, 210, 214))
    draw.rectangle((0, height * 0.8, width, height * 0.83), fill=(222, 196, 60))


#: The painter of every kind of scene.
SCENES: dict[str, Callable[[Image.Image, ImageDraw.ImageDraw, Dice], None]] = {
    "plaza": _plaza, "park": _park, "street": _street, "campus": _campus,
    "corridor": _corridor, "shop": _shop, "brick": _brick, "garage": _garage, "platform": _platform,
}  # fmt: skip
