"""Image files: finding them below a folder, and reading one as 8-bit RGB with an error that names it."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger("fastreid.sskd.data")

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_OF_THE_SYSTEM = ("desktop.ini", "thumbs.db")  # written by Windows into folders of images
_PASSED_ON = (FileNotFoundError, PermissionError, IsADirectoryError)  # name the file themselves


def find_images(folder: str) -> list[str]:
    """List all images below a folder, by their endings in any letter case, sorted; may be empty.

    Links to folders are followed. Each folder is listed once, under its own path if it lies below ``folder`` itself.
    Links to it, and links to a folder that holds them, are left out with a warning. Hidden files and folders
    (``.name``) are left out too; files of other endings are, with their count in the log.

    Args:
        folder: where to look; its name is taken literally.

    Raises:
        FileNotFoundError: if there is no such folder, or a link below it leads nowhere.
    """
    if not os.path.isdir(folder):
        what = "is a file, not a folder" if os.path.exists(folder) else "not found"
        raise FileNotFoundError(f"folder {folder!r} {what}")
    paths, others, again = [], Counter(), []
    seen, pending, links = set(), [folder], []
    while pending or links:
        links.sort(reverse=True)
        at = pending.pop() if pending else links.pop()
        real = os.path.realpath(at)
        if real in seen:
            again.append(at)
            continue
        seen.add(real)
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    loop = entry.is_symlink() and Path(real).is_relative_to(os.path.realpath(entry.path))
                    (again if loop else links if entry.is_symlink() else pending).append(entry.path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    raise FileNotFoundError(
                        f"link {entry.path!r} leads to {os.readlink(entry.path)!r}, which is not there: mend or remove it"
                    )
                elif entry.name.lower().endswith(IMAGE_ENDINGS):
                    paths.append(entry.path)
                elif entry.name.lower() not in _OF_THE_SYSTEM:
                    others[os.path.splitext(entry.name)[1] or entry.name] += 1
    if again:
        logger.warning(
            "%s: %d links to folders that are listed already are left out (first: %s)", folder, len(again), min(again)
        )
    if others:
        count = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
        logger.info("%s: %d files without an image's ending are left out (%s)", folder, others.total(), count)
    return sorted(paths)


def image_paths(folder: str) -> list[str]:
    """List the images of :func:`find_images`; a folder without any is an error.

    Raises:
        FileNotFoundError: as there.
        ValueError: if it holds no image.
    """
    paths = find_images(folder)
    if not paths:
        raise ValueError(f"no image below {folder!r}: looked for {', '.join(IMAGE_ENDINGS)}")
    return paths


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
