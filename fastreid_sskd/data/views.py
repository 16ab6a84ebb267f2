"""From an image file to its views: read, resized, kept in memory, augmented under the image's own seed."""

import gc
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
import torch
import torchvision.transforms as T
from fastreid.config import CfgNode
from fastreid.data.transforms import ToTensor, build_transforms
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from .samplers import Draw, seeded

logger = logging.getLogger("fastreid.sskd.data")

# transforms that give the same pixels on an 8-bit tensor as on a PIL image, in half the time
_ON_TENSORS = (T.Pad, T.RandomCrop, T.RandomHorizontalFlip, ToTensor, T.RandomErasing)
_PASSED_ON = (FileNotFoundError, PermissionError, IsADirectoryError)  # name the file themselves
_MB = 2**20


class MultiViewDataset(Dataset):
    """Images under the keys of the host's batches, with ``num_views`` independently augmented views each.

    An image is decoded and resized once. Its views are drawn one after the other under the seed of its
    :class:`Draw`.

    Args:
        items: (path, identity, camera). The identity is not read: labels come with the :class:`Draw`, so that
            identities of the target cannot leak into training.
        once, augment: of :func:`build_view_transforms`.
        num_views: K views, stacked as (K, 3, H, W); 0: one view, (3, H, W).
        cache: of decoded images, made for the same ``once``; None: every image is read each time.
    """

    def __init__(
        self, items: Sequence[tuple], once: Callable, augment: Callable, num_views: int = 0, *,
        cache: "CropCache | None" = None,
    ):  # fmt: skip
        self.paths = [item[0] for item in items]
        self.crops = CropCache(once) if cache is None else cache
        self.augment = augment
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> dict:
        path = self.paths[draw.index]
        crop = self.crops.read(path)
        with seeded(draw.seed):
            views = [self.augment(crop) for _ in range(max(1, self.num_views))]
        images = torch.stack(views) if self.num_views else views[0]
        return {"images": images, "targets": draw.label, "img_paths": path, "indices": draw.index}


def build_view_transforms(cfg: CfgNode) -> tuple[Callable, Callable]:
    """Split the host's training transforms into ``once`` (resize) and ``augment`` (all that is random).

    Random erasing draws its rectangle from ``SSKD.ERASING``, as the method does. It comes before the pixels
    are normalised, so ``INPUT.REA.VALUE`` is in units of 0..255: the method's fill of (.485, .456, .406) in
    normalised units is (152.0, 142.3, 126.8). torchvision draws the aspect log-uniformly, the released code
    uniformly.

    Returns:
        ``once``: PIL image -> PIL image. ``augment``: uint8 tensor (3, H, W) -> float32 tensor (3, h, w) in
            0..255; under the same seed it has the pixels of the host's own transforms.
    """
    steps = list(build_transforms(cfg, is_train=True).transforms)
    once = []
    while steps and isinstance(steps[0], T.Resize):
        once.append(steps.pop(0))
    if all(type(step) in _ON_TENSORS for step in steps):
        steps = [_to_float if isinstance(step, ToTensor) else step for step in steps]
    else:
        steps.insert(0, T.ToPILImage())
    for i, step in enumerate(steps):
        if isinstance(step, T.RandomErasing):
            area, aspect = tuple(cfg.SSKD.ERASING.AREA), tuple(cfg.SSKD.ERASING.ASPECT)
            steps[i] = T.RandomErasing(step.p, area, aspect, step.value, inplace=True)
    return T.Compose(once), T.Compose(steps)


def _to_float(crop: torch.Tensor) -> torch.Tensor:
    return crop.float()


class CropCache:
    """Reads images as 8-bit crops, and keeps those of ``paths`` in memory that forked processes share.

    The memory is an anonymous mapping, which needs no room in ``/dev/shm``; whoever reads an image first
    fills its place. A process that is started in another way than by a fork reads every file.

    Args:
        once: PIL image -> PIL image, the part of the transforms that is not random.
        paths: of the N images that are kept; none by default.
        size: (H, W) of their crops; a crop of another size is not kept.
    """

    def __init__(self, once: Callable, paths: Sequence[str] = (), size: tuple[int, int] = (0, 0)):
        self.once = once
        self.size = tuple(size)
        self._place = {path: i for i, path in enumerate(dict.fromkeys(paths))}
        count = len(self._place)
        self._pixels, self._filled = _shared(count, 3, *self.size), _shared(count)

    @staticmethod
    def num_bytes(num_images: int, size: tuple[int, int]) -> int:
        """Memory of a cache."""
        return num_images * (3 * size[0] * size[1] + 1)

    def __reduce__(self):
        return CropCache, (self.once,)

    def __len__(self) -> int:
        """Images that are in memory."""
        return int(self._filled.sum())

    def read(self, image: str | Image.Image) -> torch.Tensor:
        """The crop of an image, given by its path or decoded; uint8 (3, H, W), not to be changed.

        Raises as :func:`read_image`.
        """
        decoded = isinstance(image, Image.Image)
        place = None if decoded else self._place.get(image)
        if place is not None and self._filled[place]:
            return self._pixels[place]
        pixels = np.asarray(self.once(image if decoded else read_image(image))).transpose(2, 0, 1)
        crop = torch.from_numpy(np.array(pixels, order="C"))
        if place is not None and crop.shape[1:] == self.size:
            self._pixels[place] = crop
            self._filled[place] = 1  # last: another process that sees this sees the pixels
        return crop


def _shared(*shape: int) -> torch.Tensor:
    """Zeros (uint8) in memory that forked processes share; its pages are taken when they are written."""
    size = int(np.prod(shape))
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, size).reshape(shape))


def open_cache(cfg: CfgNode, paths: Sequence[str], once: T.Compose) -> CropCache | None:
    """Make the cache of a run's images; None if ``SSKD.CACHE_IMAGES`` is 0 or they do not fit (logged)."""
    limit, size, count = cfg.SSKD.CACHE_IMAGES, tuple(cfg.INPUT.SIZE_TRAIN), len(set(paths))
    if limit < 0:
        raise ValueError(f"SSKD.CACHE_IMAGES must be a size in MB, or 0 for no cache; got {limit}")
    if not limit:
        return None
    if not once.transforms or len(size) != 2 or min(size) < 1:
        logger.warning(
            "SSKD.CACHE_IMAGES: images are not resized to one size before anything random (INPUT.SIZE_TRAIN "
            "%s, INPUT.AUTOAUG.ENABLED %s), so they are not kept", list(size), cfg.INPUT.AUTOAUG.ENABLED,
        )  # fmt: skip
        return None
    needed = CropCache.num_bytes(count, size) / _MB
    if needed > limit:
        logger.warning(
            "%d training images of %dx%d take %.0f MB, more than SSKD.CACHE_IMAGES = %d MB: every image is "
            "read again each time", count, *size, needed, limit,
        )  # fmt: skip
        return None
    gc.collect()  # a finished trainer, which reference cycles keep, would keep its cache
    logger.info(
        "%d training images of %dx%d are read once and kept in memory: up to %.0f MB", count, *size, needed
    )
    return CropCache(once, paths, size)


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
