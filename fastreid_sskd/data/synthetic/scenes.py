"""The places that cameras look at, and what a camera does to the light."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .dice import Dice
from .people import Colour


def paint_scene(kind: str, *, width: int, height: int, dice: Dice) -> Image.Image:
    """Paint a scene of one of :data:`SCENES`, several crops wide and one high, in pixels."""
    if kind not in SCENES:
        raise ValueError(
            f"scene {kind!r} is not one of {sorted(SCENES)}: choose one of them or add its painter"
        )
    image = Image.new("RGB", (width, height))
    wall, floor, horizon, paint = SCENES[kind]
    draw, row = ImageDraw.Draw(image), int(horizon * height)
    draw.rectangle((0, 0, width, row), fill=wall)
    for step in range(12):  # brighter towards the camera
        y0, y1 = row + (height - row) * step // 12, row + (height - row) * (step + 1) // 12
        draw.rectangle((0, y0, width, y1), fill=_shift(floor, -14 + 28 * step / 12))
    paint(draw, width, height, row, dice)
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


def _plaza(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    for x in range(0, width, height // 3):
        draw.rectangle(
            (x, 0, x + height // 5, row - height // 12), fill=_shift((150, 160, 172), dice.uniform(-30, 20))
        )
    for y in range(row, height, height // 11):
        draw.line((0, y, width, y), fill=(146, 140, 132), width=2)
    for _ in range(6):
        x = dice.uniform(0, width)
        draw.rectangle((x, row - height * 0.05, x + height * 0.2, row + height * 0.04), fill=(120, 96, 70))


def _park(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    draw.rectangle((0, 0, width, height * 0.12), fill=(172, 200, 222))
    for _ in range(60):
        x, y, r = dice.uniform(0, width), dice.uniform(0.02, 0.4) * height, dice.uniform(0.05, 0.13) * height
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_shift((84, 126, 70), dice.uniform(-25, 30)))
    for _ in range(9):
        x, w = dice.uniform(0, width), dice.uniform(0.015, 0.035) * height
        draw.rectangle((x - w, 0, x + w, row + height * 0.03), fill=(92, 74, 58))
    draw.rectangle((0, height * 0.82, width, height), fill=(186, 176, 150))


def _street(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
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


def _campus(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    for x in range(0, width, height // 4):
        draw.rectangle(
            (x, height * 0.08, x + height // 8, height * 0.36),
            fill=_shift((128, 152, 172), dice.uniform(-20, 20)),
        )
    draw.rectangle((0, row - height * 0.06, width, row + height * 0.02), fill=(86, 128, 70))
    for x in range(-width, width * 2, height // 6):
        draw.line((width / 2 + (x - width / 2) * 0.5, row, x, height), fill=(168, 162, 152), width=2)


def _corridor(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    draw.rectangle((0, row - height * 0.05, width, row), fill=(92, 100, 96))
    for _ in range(8):
        x, w = dice.uniform(0, width), 0.26 * height
        draw.rectangle((x, height * 0.06, x + w, row), fill=_shift((128, 104, 78), dice.uniform(-20, 20)))
        draw.rectangle((x + w * 0.8, height * 0.34, x + w * 0.86, height * 0.38), fill=(210, 206, 180))
    for x in range(-width, width * 2, height // 5):
        draw.line((width / 2 + (x - width / 2) * 0.6, row, x, height), fill=(108, 116, 110), width=2)


def _shop(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    for x in range(0, width, height // 9):
        for level in range(5):
            shade = (dice.uniform(80, 190), dice.uniform(70, 170), dice.uniform(70, 170))
            y = height * (0.04 + 0.1 * level)
            draw.rectangle((x + 2, y, x + height // 9 - 3, y + height * 0.075), fill=_shift(shade, 0))
    draw.rectangle((0, row - height * 0.02, width, row), fill=(40, 38, 44))


def _brick(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    step = height // 24
    for number, y in enumerate(range(0, row, step)):
        for x in range(-(number % 2) * step, width, 2 * step):
            draw.rectangle(
                (x, y, x + 2 * step - 2, y + step - 2), fill=_shift((138, 78, 62), dice.uniform(-24, 24))
            )
    for _ in range(4):
        x = dice.uniform(0, width)
        draw.rectangle((x, height * 0.1, x + height * 0.22, row), fill=(52, 60, 72))


def _garage(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    for x in range(0, width, height // 2):
        draw.rectangle((x, 0, x + height * 0.12, height * 0.7), fill=(146, 142, 130))
        draw.rectangle((x, height * 0.5, x + height * 0.12, height * 0.6), fill=(206, 176, 40))
    for _ in range(5):
        x = dice.uniform(0, width)
        draw.ellipse((x, height * 0.03, x + height * 0.3, height * 0.07), fill=(232, 232, 214))
    draw.line((0, row, width, row), fill=(58, 58, 56), width=4)


def _platform(draw: ImageDraw.ImageDraw, width: int, height: int, row: int, dice: Dice) -> None:
    for x in range(0, width, int(height * 0.45)):
        draw.rectangle(
            (x, height * 0.12, x + height * 0.26, height * 0.3),
            fill=_shift((30, 38, 50), dice.uniform(0, 60)),
        )
    draw.rectangle((0, height * 0.36, width, height * 0.4), fill=(210, 210, 214))
    draw.rectangle((0, height * 0.8, width, height * 0.83), fill=(222, 196, 60))


#: by kind: colours of wall and floor, where they meet as a share of the height, and the painter of the rest
SCENES: dict[str, tuple[Colour, Colour, float, Callable[..., None]]] = {
    "plaza": ((178, 188, 196), (168, 162, 152), 0.42, _plaza),
    "park": ((118, 152, 104), (124, 158, 92), 0.48, _park),
    "street": ((154, 138, 122), (112, 112, 116), 0.45, _street),
    "campus": ((208, 200, 182), (190, 184, 174), 0.5, _campus),
    "corridor": ((196, 200, 188), (126, 134, 128), 0.62, _corridor),
    "shop": ((88, 84, 92), (142, 124, 108), 0.55, _shop),
    "brick": ((92, 58, 48), (84, 82, 84), 0.58, _brick),
    "garage": ((98, 98, 92), (74, 74, 72), 0.4, _garage),
    "platform": ((66, 86, 110), (132, 130, 136), 0.5, _platform),
}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Camera:
    """One camera: where it looks, how people pass it, and what its lens, sensor and coder do.

    Attributes:
        scene: kind of background.
        gain: factors of red, green and blue: brightness and colour temperature.
        gamma: exponent of the tone curve; above 1 darkens the middle tones.
        contrast: slope about middle grey.
        saturation: 0 is grey, 1 leaves colours alone.
        haze: share of white mixed in.
        exposure: largest relative change of the brightness between images.
        shadow: probability of a hard shadow over part of the crop.
        blur: range of the Gaussian blur, in pixels of a crop 128 high.
        detail: range of the sensor's resolution relative to the crop's.
        noise: standard deviation of the sensor noise, in grey levels.
        block: step of the 8x8 block coder, in grey levels; 0 is none.
        zoom: range of the share of the crop's height that a person fills.
        shift: largest offset of the person, as a share of the crop's width.
        occlusion: probability that something stands in front of the person.
        facings: weights of "front", "right", "back" and "left": where people walk.
    """

    scene: str
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    haze: float = 0.0
    exposure: float = 0.08
    shadow: float = 0.1
    blur: tuple[float, float] = (0.0, 0.4)
    detail: tuple[float, float] = (0.8, 1.0)
    noise: float = 3.0
    block: float = 0.0
    zoom: tuple[float, float] = (0.84, 0.92)
    shift: float = 0.05
    occlusion: float = 0.05
    facings: dict[str, float] = field(default_factory=lambda: {"front": 1, "right": 1, "back": 1, "left": 1})


def expose(image: Image.Image, camera: Camera, dice: Dice) -> Image.Image:
    """Take the picture: a scene (RGB, any size) as this camera delivers it, the same size."""
    pixels = _tone(np.asarray(image, dtype=np.float32), camera, dice)
    image = _soften(Image.fromarray(pixels), camera, dice)
    noisy = np.asarray(image, dtype=np.float32)
    if camera.noise:
        noisy = noisy + camera.noise * dice.noise(*noisy.shape)
    if camera.block:
        noisy = _block_code(noisy, camera.block)
    return Image.fromarray(np.clip(noisy, 0, 255).round().astype(np.uint8))


def _tone(pixels: np.ndarray, camera: Camera, dice: Dice) -> np.ndarray:
    height, width, _ = pixels.shape
    light = np.full((height, width), 1 + dice.uniform(-camera.exposure, camera.exposure), dtype=np.float32)
    if dice.chance(camera.shadow):
        edge, slope, depth = dice.uniform(0.2, 0.8), dice.uniform(-0.5, 0.5), dice.uniform(0.5, 0.75)
        rows = np.arange(height)[:, None] / height + slope * (np.arange(width)[None, :] / width - 0.5)
        light[rows < edge if dice.chance(0.5) else rows >= edge] *= depth
    grey = (pixels @ _LUMA)[:, :, None]
    pixels = (
        (grey + camera.saturation * (pixels - grey)) * np.array(camera.gain, np.float32) * light[:, :, None]
    )
    # A table keeps powers away from the pixels: they may differ in the last bit between processors.
    table = (np.arange(256) / 255.0) ** camera.gamma
    table = np.clip((table - 0.5) * camera.contrast + 0.5, 0, 1) * (1 - camera.haze) + camera.haze
    return (table * 255).round().astype(np.uint8)[np.clip(pixels, 0, 255).round().astype(np.uint8)]


def _soften(image: Image.Image, camera: Camera, dice: Dice) -> Image.Image:
    width, height = image.size
    detail, blur = dice.uniform(*camera.detail), dice.uniform(*camera.blur) * height / 128
    if detail < 0.98:
        small = (max(4, round(width * detail)), max(8, round(height * detail)))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BILINEAR)
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.05 else image


def _dct_matrix() -> np.ndarray:
    rows, columns = np.mgrid[0:8, 0:8]
    matrix = np.cos((2 * columns + 1) * rows * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


_DCT = _dct_matrix()
# Coarser steps for finer detail, as every picture coder does.
_STEPS = (1 + np.add.outer(np.arange(8), np.arange(8)) / 3).astype(np.float32)


def _block_code(pixels: np.ndarray, step: float) -> np.ndarray:
    """Round the 8x8 cosine transform of float (H, W, 3) pixels as JPEG would."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    rows, columns = padded.shape[0] // 8, padded.shape[1] // 8
    blocks = padded.reshape(rows, 8, columns, 8, 3).transpose(0, 2, 4, 1, 3)
    steps = step * _STEPS
    coded = np.round((_DCT @ blocks @ _DCT.T) / steps) * steps
    decoded = (_DCT.T @ coded @ _DCT).transpose(0, 3, 1, 4, 2)
    return decoded.reshape(padded.shape)[:height, :width]
