"""Image files: finding them below a folder, and reading one as 8-bit RGB with an error that names it."""

import os
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PASSED_ON = (FileNotFoundError, PermissionError, IsADirectoryError)  # name the file themselves


def image_paths(folder: str) -> list[str]:
    """All images below a folder, by their endings, sorted; hidden files and folders (``.name``) are left out.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"folder {folder!r} not found")
    paths = []
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (name for name in names if not name.startswith(".") and name.lower().endswith(IMAGE_ENDINGS))
        paths += [os.path.join(at, name) for name in found]
    if not paths:
        raise ValueError(f"no image below {folder!r}: looked for {', '.join(IMAGE_ENDINGS)}")
    return sorted(paths)


def read_image(
    file_name: str | os.PathLike, format: str | None = None, *, opener: Callable[..., IO[bytes]] = open
) -> Image.Image:
    """Read an image file, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 1-bit images are converted to colours, transparency is dropped (the colour below
    it stays), and 16-bit values are scaled from 0..65535 to 0..255.

    Args:
        file_name: the file.
        format: PIL mode of the result; None is "RGB". "BGR" gives a mode-RGB image with red and blue swapped,
            as in the host.
        opener: opens the file, called as ``opener(file_name, "rb")``.

    Returns:
        A PIL image, read completely, the file closed.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: as `open` does.
        OSError: if the file is empty, truncated, damaged or no image; the message names it.
    """
    try:
        with opener(file_name, "rb") as file:
            image = Image.open(file)
            image.load()  # here, so that a truncated file is not mistaken for one with damaged EXIF
            image = _upright(image)
            return _convert(image, format or "RGB")
    except (*_PASSED_ON, MemoryError):
        raise
    except Exception as error:  # damaged files make decoders raise SyntaxError, struct.error, zlib.error, ...
        raise OSError(
            f"cannot read {os.fspath(file_name)!r} as an image ({_cause(error, file_name)}): "
            "replace the file or remove it from the data set"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged EXIF says nothing about the pixels, which are already read
        return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow before 10.3 opens 16-bit PNG as "I"
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    if mode == "BGR":
        red, green, blue = image.convert("RGB").split()
        return Image.merge("RGB", (blue, green, red))
    return image.convert(mode)


def _cause(error: Exception, file_name: Any) -> str:
    if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
        return "the file is empty"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
