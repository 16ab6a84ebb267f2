"""Images decoded and resized to 8-bit tensors, kept in memory that all workers share where they fit."""
import gc
import logging
import mmap
from collections.abc import Callable, Sequence

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image

from .image import read_image

__all__ = ["CropCache", "Crops", "open_cache", "to_pixels"]

logger = logging.getLogger("fastreid.sskd.data")

_MB = 2**20


def to_pixels(image: Image.Image) -> torch.Tensor:
    """An 8-bit RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


class CropCache:
    """Pixels of images of one size, filled by whoever reads an image first.

    The memory is an anonymous mapping: a process that is forked from this one, as loaders' workers are, shares it, and
    it needs no room in ``/dev/shm``. Pages are taken when they are written. A process that is not forked gets an empty cache.

    Args:
        paths: of the N images; paths that come twice take one place.
        size: (H, W).
        made_by: text that says how pixels are made of a file; who makes them otherwise must not use the cache.
    """

    def __init__(self, paths: Sequence[str], size: tuple[int, int], made_by: str = ""):
        self._place = {path: i for i, path in enumerate(dict.fromkeys(paths))}
        self.size = tuple(size)
        self.made_by = made_by
        count = len(self._place)
        self._pixels, self._filled = _shared(count, 3, *self.size), _shared(count)

    @staticmethod
    def num_bytes(num_images: int, size: tuple[int, int]) -> int:
        """Memory of a cache."""
        return num_images * (3 * size[0] * size[1] + 1)

    def __reduce__(self):
        return CropCache, ((), self.size, self.made_by)

    def __len__(self) -> int:
        """Images that have been read."""
        return int(self._filled.sum())

    def get(self, path: str) -> torch.Tensor | None:
        """The pixels (3, H, W), not to be changed; None if they are not there."""
        place = self._place.get(path)
        return self._pixels[place] if place is not None and self._filled[place] else None

    def put(self, path: str, pixels: torch.Tensor) -> None:
        """Keep the pixels (3, H, W) of an image; one that the cache has no place for is left out."""
        place = self._place.get(path)
        if place is not None and pixels.shape[1:] == self.size:
            self._pixels[place] = pixels
            self._filled[place] = 1  # last: another process that sees this sees the pixels


def _shared(*shape: int) -> torch.Tensor:
    """Zeros (uint8) in memory that forked processes share."""
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(1, int(np.prod(shape)))), dtype=np.uint8)[: np.prod(shape)].reshape(shape))


class Crops:
    """Images after the part of their transforms that is not random.

    Args:
        once: PIL image -> PIL image.
        cache: is used if its pixels are made the same way.
    """

    def __init__(self, once: Callable[[Image.Image], Image.Image], cache: CropCache | None = None):
        self.once = once
        self.cache = cache if cache is not None and cache.made_by == repr(once) else None

    def pixels(self, path: str) -> torch.Tensor:
        """uint8 (3, H, W), not to be changed. Raises as :func:`.image.read_image`."""
        if self.cache is None:
            return to_pixels(self.once(read_image(path)))
        pixels = self.cache.get(path)
        if pixels is None:
            pixels = to_pixels(self.once(read_image(path)))
            self.cache.put(path, pixels)
        return pixels

    def picture(self, path: str) -> Image.Image:
        """The same as a PIL image."""
        if self.cache is None:
            return self.once(read_image(path))
        return Image.fromarray(self.pixels(path).permute(1, 2, 0).numpy())


def open_cache(cfg: CfgNode, paths: Sequence[str], once: Callable) -> CropCache | None:
    """A cache for the training images of a run, None where ``SSKD.CACHE_IMAGES`` is 0 or they do not fit (logged).

    Args:
        cfg: the run's config.
        paths: of all images; those that are named twice count once.
        once: what makes crops of images, see :class:`Crops`.

    Raises:
        ValueError: if the limit is negative.
    """
    limit, size, count = cfg.SSKD.CACHE_IMAGES, tuple(cfg.INPUT.SIZE_TRAIN), len(set(paths))
    if limit < 0:
        raise ValueError(f"SSKD.CACHE_IMAGES must be a size in MB, or 0 for no cache; got {limit}")
    if not limit:
        return None
    if not once.transforms or len(size) != 2 or min(size) < 1:
        logger.warning(
            "SSKD.CACHE_IMAGES: images are not resized to one size before anything random (INPUT.SIZE_TRAIN %s, "
            "INPUT.AUTOAUG.ENABLED %s), so they are not kept", list(size), cfg.INPUT.AUTOAUG.ENABLED,
        )  # fmt: skip
        return None
    needed = CropCache.num_bytes(count, size) / _MB
    if needed > limit:
        logger.warning(
            "%d training images of %dx%d take %.0f MB, more than SSKD.CACHE_IMAGES = %d MB: every image is read again each "
            "time", count, *size, needed, limit,
        )  # fmt: skip
        return None
    gc.collect()  # a finished trainer, which reference cycles keep, would keep its cache
    logger.info("%d training images of %dx%d are read once and kept in memory: up to %.0f MB", count, *size, needed)
    return CropCache(paths, size, repr(once))
