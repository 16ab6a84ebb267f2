"""Patches of the host's data path: loader, collation, image reading, tensors, transforms, dataset root."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from .patch import ModuleProxy, Patch, put, swap, target

DATASETS_VARIABLE = "FASTREID_DATASETS"


def dataset_root() -> str:
    """Return the folder of all datasets: FASTREID_DATASETS as it is *now*, or ``datasets`` as in the host."""
    return os.path.expanduser(os.getenv(DATASETS_VARIABLE) or "datasets")


class DatasetRoot(os.PathLike):
    """Stands where the host keeps the string it read at import: reads the variable at every use instead."""

    def __fspath__(self) -> str:
        return dataset_root()

    def __str__(self) -> str:
        return dataset_root()

    def __add__(self, rest: str) -> str:
        return dataset_root() + rest


_FOR_THE_RUN = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY = 5.0  # seconds between two looks of a worker at its reader


class SteadyLoader(DataLoader):
    """torch's DataLoader whose workers leave SIGTERM and SIGINT to the process that reads them.

    `timeout`, systemd, Slurm and Ctrl-C signal all processes of a run. Workers that died of it would take the
    run with them, before it has saved. They end with the reader: when it is done, ends them, or is gone. They
    are born with the signals blocked, so that one that comes while they start is left alone too.
    """

    def __init__(
        self, *args: Any, worker_init_fn: Callable[[int], None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, worker_init_fn=functools.partial(_begin_worker, worker_init_fn), **kwargs)

    def __iter__(self) -> Iterator:
        context = self.multiprocessing_context or multiprocessing
        if self.num_workers and context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # which unblocks the signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(own: Callable[[int], None] | None, worker: int) -> None:
    # of a fork server that was there before, they are not blocked yet
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
    threading.Thread(target=_end_with_reader, daemon=True).start()
    if own is not None:
        own(worker)


def _end_with_reader() -> None:
    """End this worker when its reader says so by a signal, as torch's handler would, or is gone.

    torch looks for a reader that is gone too, but takes the process that is its parent when it starts to look
    for the reader: a worker that is born late would wait for ever.
    """
    reader = multiprocessing.parent_process()
    while True:
        received = signal.sigtimedwait(_FOR_THE_RUN, _LOOK_EVERY)
        if received.si_pid == reader.pid if received else not reader.is_alive():
            os._exit(0)


class HostDataLoader(SteadyLoader):
    """torch's DataLoader behind the signature of the host's DataLoaderX.

    Every `iter` is a fresh iterator, an error in a worker is raised in the main process, and batches stay on
    the CPU (pinned where CUDA is available): the model moves them to its own device.

    Args:
        local_rank: accepted for the host's sake and not used.
        kwargs: as for `torch.utils.data.DataLoader`.
    """

    def __init__(self, local_rank: int | None = None, **kwargs: Any) -> None:
        if not torch.cuda.is_available():
            kwargs["pin_memory"] = False  # torch warns at every epoch otherwise
        super().__init__(**kwargs)
        self.local_rank = local_rank

    def shutdown(self) -> None:
        """Do nothing: there is no background thread to stop."""


def collate(batch: Sequence[Any]) -> Any:
    """Collate samples as torch does, keeping text and paths as lists.

    Raises:
        TypeError: for a type that torch cannot collate (the host returns None there).
    """
    first = batch[0]
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, (str, bytes, os.PathLike)):
        return list(batch)
    return default_collate(batch)


def read_image(file_name: str | os.PathLike, format: str | None = None) -> Image.Image:
    """Read an image with `fastreid_sskd.data.views.read_image`, through the host's PathManager."""
    from ..data.views import read_image as read

    path_manager = target("fastreid.utils.file_io", "PathManager")
    return read(file_name, format, opener=path_manager.open)


def to_tensor(picture: Image.Image | np.ndarray) -> torch.Tensor:
    """Convert a PIL image, or an H x W (x C) array, to a C x H x W tensor without scaling.

    Returns:
        float32 in 0..255 for 8-bit (and 1-bit) images; int32, int16 or float32 as they are for modes I, I;16
        and F; an array that is not uint8 keeps its type.
    """
    if isinstance(picture, Image.Image):
        array = np.array(picture)
        if picture.mode == "1":
            array = array.astype(np.uint8) * 255
        elif picture.mode.startswith("I;16"):
            array = array.astype(np.int16)
    elif isinstance(picture, np.ndarray):
        array = np.array(picture)
    else:
        raise TypeError(f"to_tensor takes a PIL image or an array, got {type(picture).__name__}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise TypeError(f"an image array has 2 or 3 dimensions, got shape {array.shape}")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    dtype = torch.float32 if tensor.dtype == torch.uint8 else tensor.dtype
    return tensor.to(dtype, memory_format=torch.contiguous_format).contiguous()


def _random_affine(random_affine: Callable[..., Any]) -> Callable[..., Any]:
    """Return `RandomAffine` taking the host's old argument names (resample, fillcolor)."""
    from torchvision.transforms import InterpolationMode

    def build(*args: Any, resample: bool = False, fillcolor: float = 0, **kwargs: Any) -> Any:
        mode = InterpolationMode.BILINEAR if resample else InterpolationMode.NEAREST
        return random_affine(*args, interpolation=mode, fill=fillcolor, **kwargs)

    return build


def _patch_affine() -> None:
    transforms = target("fastreid.data.transforms.build", "T")
    proxy = ModuleProxy(transforms, RandomAffine=_random_affine(transforms.RandomAffine))
    put("fastreid.data.transforms.build", "T", proxy)


PATCHES = (
    Patch(
        "data-loader",
        "data/data_utils.py:126-132, 148-195",
        "DataLoaderX needs CUDA, hangs for ever on any loading error and returns itself from iter()",
        lambda: swap("fastreid.data.data_utils", "DataLoaderX", lambda old: HostDataLoader),
    ),
    Patch(
        "collate",
        "data/build.py:168-187",
        "the collator returns None silently for lists, tuples, arrays and numpy scalars",
        lambda: swap("fastreid.data.build", "fast_batch_collator", lambda old: collate),
    ),
    Patch(
        "read-image",
        "data/data_utils.py:17",
        "errors do not name the file; palette images come out as indices, RGBA with 4 channels, 16 bits fail",
        lambda: swap("fastreid.data.data_utils", "read_image", lambda old: read_image),
    ),
    Patch(
        "to-tensor",
        "data/transforms/functional.py:38-46",
        "TypedStorage is deprecated from torch 2.0 on; np.array(copy=False) fails with numpy 2",
        lambda: swap("fastreid.data.transforms.functional", "to_tensor", lambda old: to_tensor),
    ),
    Patch(
        "random-affine",
        "data/transforms/build.py:81",
        "torchvision 0.15 dropped RandomAffine's resample and fillcolor: INPUT.AFFINE fails",
        _patch_affine,
    ),
    Patch(
        "dataset-root",
        "data/build.py:27 (git :34)",
        f"{DATASETS_VARIABLE} is read once at import",
        lambda: put("fastreid.data.build", "_root", DatasetRoot()),
    ),
)
