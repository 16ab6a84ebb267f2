"""What a camera does to the light: tone, colour, sharpness, noise and compression."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from .dice import Dice

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
