"""From an image's file to its views: read, resized, kept in memory, and augmented under the image's own seed."""
import gc
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms as T
from fastreid.config import CfgNode
from fastreid.data.transforms import ToTensor, build_transforms
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from .samplers import Draw, seeded, seeded_torch

__all__ = [
    "PLACES",
    "CropCache",
    "Crops",
    "FinishViews",
    "MultiViewDataset",
    "ViewNumbers",
    "Views",
    "build_view_transforms",
    "build_views",
    "cut",
    "cut_batch",
    "erase",
    "erase_batch",
    "open_cache",
    "read_image",
    "to_pixels",
    "without_numbers",
]

logger = logging.getLogger("fastreid.sskd.data")

_PASSED_ON = (FileNotFoundError, PermissionError, IsADirectoryError)  # name the file themselves
_MB = 2**20
PLACES = ("worker", "device")  # where SSKD.AUGMENT_ON may have views made
_ORDER = (T.Pad, T.RandomCrop, T.RandomHorizontalFlip, ToTensor, T.RandomErasing)


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


class ViewNumbers(NamedTuple):
    """One view: where it is cut out of the padded crop, whether it is mirrored (0 or 1), what is erased of it [pixels]."""

    top: int
    left: int
    mirrored: int
    erased_top: int = 0
    erased_left: int = 0
    erased_height: int = 0
    erased_width: int = 0


def without_numbers(steps: Sequence) -> list[str]:
    """Names of the steps that :class:`Views` cannot stand for; [] if it can."""
    rest = list(steps)
    for kind in _ORDER:
        if rest and type(rest[0]) is kind and (kind is not T.RandomErasing or not isinstance(rest[0].value, str)):
            rest.pop(0)
    return [type(step).__name__ for step in rest]


class Views:
    """The host's padding, random crop, flip and random erasing, drawn first and carried out afterwards.

    The draws are torchvision's own, in its order, from torch's CPU generator: under the same seed a view has the pixels
    that the steps themselves would give, wherever it is made.

    Args:
        steps: of the host's training transforms, after the resize.

    Raises:
        ValueError: if a step cannot be written as :class:`ViewNumbers`, naming it.
    """

    def __init__(self, steps: Sequence):
        if unknown := without_numbers(steps):
            raise ValueError(f"{', '.join(unknown)} cannot be drawn beforehand: apply the steps themselves")
        found = {type(step): step for step in steps}
        self._pad, self._crop, self._flip = (found.get(kind) for kind in (T.Pad, T.RandomCrop, T.RandomHorizontalFlip))
        self.erasing: T.RandomErasing | None = found.get(T.RandomErasing)
        value = self.erasing.value if self.erasing else 0
        self._fill = list(value) if isinstance(value, Sequence) else [value]
        # torchvision compares in float32
        self._flip_share, self._erased_share = (torch.tensor(step.p if step else 0).float().item() for step in (self._flip, self.erasing))
        self._shapes: dict[torch.Size, tuple[torch.Tensor, torch.Tensor]] = {}

    def draw(self, count: int, shape: torch.Size) -> list[ViewNumbers]:
        """The numbers of ``count`` views of a crop of ``shape`` (3, H, W)."""
        padded, view = self._frames(shape)
        return [self._draw(padded, view) for _ in range(count)]

    def cut(self, crop: torch.Tensor, numbers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Views (K, 3, h, w) of one crop (3, H, W), uint8, nothing erased yet."""
        return cut(self._padded(crop), numbers, self._frames(crop.shape)[1].shape)

    def cut_batch(self, crops: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Views (B, K, 3, h, w) of crops (B, 3, H, W) for numbers (B, K, 7) on one device: what :meth:`cut` gives for each."""
        return cut_batch(self._padded(crops), numbers, self._frames(crops.shape[1:])[1].shape)

    def erase(self, views: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Views (B, K, 3, h, w) in 0..255 with their rectangles filled, float32; without erasing as they are.

        Numbers (B, K, 7) are on the CPU.
        """
        return views if self.erasing is None else erase(views, numbers[..., 3:].tolist(), self._fill)

    def erase_batch(self, views: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """As :meth:`erase`, of numbers on the views' device."""
        return views if self.erasing is None else erase_batch(views, numbers[..., 3:], self._fill)

    def _padded(self, crops: torch.Tensor) -> torch.Tensor:
        return crops if self._pad is None else self._pad(crops)

    def _frames(self, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Stand-ins without pixels for the padded crop and the view, which torchvision asks for their shapes."""
        if shape not in self._shapes:
            padded = torch.empty(self._padded(torch.empty(shape, dtype=torch.uint8)).shape, device="meta")
            view = padded if self._crop is None else torch.empty((shape[0], *self._crop.size), device="meta")
            self._shapes[shape] = padded, view
        return self._shapes[shape]

    def _draw(self, padded: torch.Tensor, view: torch.Tensor) -> ViewNumbers:
        top = left = 0
        if self._crop is not None:
            top, left, *_ = self._crop.get_params(padded, self._crop.size)
        mirrored = self._flip is not None and torch.rand(1).item() < self._flip_share
        numbers = ViewNumbers(top, left, int(mirrored))
        erasing = self.erasing
        if erasing is None or torch.rand(1).item() >= self._erased_share:
            return numbers
        *box, fill = erasing.get_params(view, erasing.scale, erasing.ratio, [0.0])
        return numbers if fill is view else ViewNumbers(*numbers[:3], *box)  # itself: no rectangle fitted


def cut(padded: torch.Tensor, numbers: Sequence[Sequence[int]], shape: Sequence[int]) -> torch.Tensor:
    """Views of one crop.

    Args:
        padded: (3, H, W), any type.
        numbers: K times (top, left, mirrored, ...), further ones are not read.
        shape: (3, h, w) of a view.

    Returns:
        (K, 3, h, w), memory of its own.
    """
    height, width = shape[-2:]
    views = padded.new_empty((len(numbers), *shape))
    for view, (top, left, mirrored, *_) in zip(views, numbers):
        part = padded[:, top : top + height, left : left + width]
        view.copy_(part.flip(-1) if mirrored else part)
    return views


def cut_batch(padded: torch.Tensor, numbers: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Views of a batch of crops, without a loop over it.

    Args:
        padded: (B, 3, H, W), any type.
        numbers: (B, K, 3 or more) of (top, left, mirrored, ...), on the same device.
        shape: (3, h, w) of a view.

    Returns:
        (B, K, 3, h, w), contiguous.
    """
    channels, height, width = shape
    device = padded.device
    top, left, mirrored = numbers[..., :3].long().unsqueeze(-2).unbind(-1)  # (B, K, 1) each
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(mirrored > 0, width - 1 - columns, columns)
    image = torch.arange(len(padded), device=device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(-1, 1, 1)
    return padded[image, channel, rows[:, :, None, :, None], columns[:, :, None, None, :]]


def erase(views: torch.Tensor, boxes: Sequence[Sequence[Sequence[int]]], value: Sequence[float]) -> torch.Tensor:
    """Fill a rectangle of every view.

    Args:
        views: (B, K, 3, h, w), uint8 or float; is not changed.
        boxes: B times K times (top, left, height, width) [pixels]; a height of 0: nothing.
        value: 1 or 3 numbers in units of the views, with fractions (the method's fill has them).

    Returns:
        float32 of the same shape, on the views' device.
    """
    filled = views.to(torch.float32, copy=True)
    fill = _fill(value, filled)
    for view, (top, left, height, width) in zip(filled.flatten(0, 1), (box for row in boxes for box in row)):
        if height:
            view[:, top : top + height, left : left + width] = fill
    return filled


def erase_batch(views: torch.Tensor, boxes: torch.Tensor, value: Sequence[float]) -> torch.Tensor:
    """As :func:`erase`, without a loop over the batch; ``boxes`` (B, K, 4) are on the views' device."""
    top, left, high, wide = boxes.unsqueeze(-2).unbind(-1)  # (B, K, 1) each
    row = torch.arange(views.shape[-2], device=views.device)
    column = torch.arange(views.shape[-1], device=views.device)
    rows, columns = (row >= top) & (row < top + high), (column >= left) & (column < left + wide)
    inside = rows[:, :, None, :, None] & columns[:, :, None, None, :]
    return torch.where(inside, _fill(value, views), views.float())


def _fill(value: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32).to(like.device, non_blocking=True).view(-1, 1, 1)


def build_view_transforms(cfg: CfgNode) -> tuple[Callable, Callable]:
    """Training transforms as a pair: ``once`` (resize) and ``augment`` (everything random, then to a tensor).

    Differs from the host where the method does: random erasing draws its rectangle from ``SSKD.ERASING``. The host
    erases before the pixels are normalised, so ``INPUT.REA.VALUE`` is in units of 0..255; the method's fill of
    (.485, .456, .406) in *normalised* units is (152.0, 142.3, 126.8) there. torchvision draws the aspect
    log-uniformly, where the released code draws it uniformly.

    Returns:
        ``once``: PIL image -> PIL image; ``augment``: PIL image -> float tensor (3, H, W) in 0..255.
    """
    steps = list(build_transforms(cfg, is_train=True).transforms)
    once = []
    while steps and isinstance(steps[0], T.Resize):
        once.append(steps.pop(0))
    for i, step in enumerate(steps):
        if isinstance(step, T.RandomErasing):
            steps[i] = T.RandomErasing(
                p=step.p, scale=tuple(cfg.SSKD.ERASING.AREA), ratio=tuple(cfg.SSKD.ERASING.ASPECT), value=step.value
            )
    return T.Compose(once), T.Compose(steps)


def build_views(cfg: CfgNode) -> tuple[Callable, Callable | Views]:
    """As :func:`build_view_transforms`, with :class:`.views.Views` for ``augment`` where it has the same pixels.

    It has not if a transform beyond padding, crop, flip and erasing is on (colour jitter, AutoAugment, ...): then the host's
    own are applied in the workers, wherever ``SSKD.AUGMENT_ON`` wants it, which is logged.

    Raises:
        ValueError: if ``SSKD.AUGMENT_ON`` is no place.
    """
    if cfg.SSKD.AUGMENT_ON not in PLACES:
        raise ValueError(f"SSKD.AUGMENT_ON must be {' or '.join(PLACES)}, got {cfg.SSKD.AUGMENT_ON!r}")
    once, augment = build_view_transforms(cfg)
    unknown = without_numbers(augment.transforms)
    if not unknown:
        return once, Views(augment.transforms)
    level = logging.WARNING if cfg.SSKD.AUGMENT_ON == "device" else logging.INFO
    logger.log(level, "%s cannot be done in a batch: views are made by the workers, one after the other", ", ".join(unknown))
    return once, augment


class MultiViewDataset(Dataset):
    """Images under the keys of the host's batches, with ``num_views`` views each.

    With :class:`.views.Views`, samples are 8-bit and carry "views", the numbers (K, 7) of their views, for :class:`FinishViews`.

    Args:
        items: (path, identity, camera) as the host's data sets list them; the identity is not used: labels come with
            the :class:`Draw`, so that identities of the target cannot leak into training.
        once: applied once to the decoded image.
        augment: applied ``num_views`` times: a function of a PIL image that returns a tensor (3, H, W), or ``Views``.
        num_views: K views stacked as (K, 3, H, W); 0: one view, not stacked, (3, H, W).
        cut: with ``Views``: whether to cut them here; if not, "images" is the whole crop (3, H, W).
        cache: of decoded images.
    """

    def __init__(
        self, items: Sequence[tuple], once: Callable, augment: Callable | Views, num_views: int = 0, *,
        cut: bool = True, cache: CropCache | None = None,
    ):  # fmt: skip
        self.paths = [item[0] for item in items]
        self.crops = Crops(once, cache)
        self.augment = augment
        self.num_views = num_views
        self.cut = cut

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> dict:
        path = self.paths[draw.index]
        made = self._numbered(path, draw.seed) if isinstance(self.augment, Views) else self._augmented(path, draw.seed)
        return {**made, "targets": draw.label, "img_paths": path, "indices": draw.index}

    def _numbered(self, path: str, seed: int) -> dict:
        crop = self.crops.pixels(path)
        with seeded_torch(seed):
            numbers = self.augment.draw(max(1, self.num_views), crop.shape)
        if self.cut:
            views = self.augment.cut(crop, numbers)
            crop = views if self.num_views else views[0]
        return {"images": crop, "views": torch.tensor(numbers)}

    def _augmented(self, path: str, seed: int) -> dict:
        image = self.crops.picture(path)
        with seeded(seed):
            if self.num_views:
                return {"images": torch.stack([self.augment(image) for _ in range(self.num_views)])}
            return {"images": self.augment(image)}


class FinishViews:
    """Takes a batch to the device and does what is left of its views there: what workers did not cut, and erasing.

    Args:
        augment, num_views, cut: the data set's.
        device: where the model is.
    """

    def __init__(self, augment: Callable | Views, num_views: int, cut: bool, device: torch.device | str):
        self.augment = augment
        self.num_views = num_views
        self.cut = cut
        self.device = torch.device(device)

    def __call__(self, batch: dict) -> dict:
        """The batch with "images" (B, K, 3, H, W), or (B, 3, H, W) for ``num_views`` 0, in 0..255: uint8 or float32."""
        batch = dict(batch)
        images = batch["images"].to(self.device, non_blocking=True)
        numbers = batch.pop("views", None)
        if numbers is not None:
            here = numbers.to(self.device, non_blocking=True)
            images = images.view(*numbers.shape[:2], *images.shape[-3:]) if self.cut else self.augment.cut_batch(images, here)
            # on the CPU one rectangle after the other; elsewhere that would be as many launches
            images = self.augment.erase(images, here) if images.is_cpu else self.augment.erase_batch(images, here)
            images = images if self.num_views else images[:, 0]
        batch["images"] = images
        return batch
