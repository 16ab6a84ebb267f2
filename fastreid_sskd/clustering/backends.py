"""k-NN searches by name (SSKD.CLUSTER.KNN): each gives candidates, which are re-scored exactly afterwards."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from .candidates import Candidates, device_topk, product_error, symmetric_tiles
from .features import UnitRows
from .parallel import num_threads
from .progress import Progress, no_progress
from .shares import Share

logger = logging.getLogger("fastreid.sskd.clustering")

#: rows and columns of one tile on the CPU: 32 MB of float32, which stays in a server's cache
CPU_TILE = (1024, 8192)
DEVICE_TILE = 16384
#: rows that faiss is asked about at a time
FAISS_QUERIES = 8192


@dataclass(frozen=True)
class ApproximateOptions:
    """How the approximate searches "reduced" and "ivf" look.

    Attributes:
        reduced_dim: reduced: length that features are projected to; 0: half of it, at most 256.
        lists: ivf: cells that the features are divided into (nlist); 0: 4 sqrt(N).
        probes: ivf: cells searched for each image (nprobe); 0: as many as a sample needs to reach `min_recall`.
        min_recall: share of the true neighbours that must be found, (0, 1]; below it a warning is logged.

    Raises:
        ValueError: out of range.
    """

    reduced_dim: int = 0
    lists: int = 0
    probes: int = 0
    min_recall: float = 0.98

    def __post_init__(self) -> None:
        if min(self.reduced_dim, self.lists, self.probes) < 0 or not 0 < self.min_recall <= 1:
            raise ValueError(
                "REDUCED_DIM, IVF_LISTS and IVF_PROBES must be >= 0 and MIN_RECALL in (0, 1], got "
                f"{self.reduced_dim}, {self.lists}, {self.probes}, {self.min_recall}: see SSKD.CLUSTER"
            )


@dataclass(frozen=True)
class Search:
    """What a backend is asked for.

    Attributes:
        size: candidates per row, the row itself not counted; at most N - 1.
        wanted: how many of them the lists will keep.
        need_farthest: also the least similar row of each.
        progress: called with (done, total).
        share: which part of the search; rows that it leaves out stay at -1 and -inf.
        approximate: for the approximate searches.
    """

    size: int
    wanted: int
    need_farthest: bool = False
    progress: Progress = no_progress
    share: Share = field(default_factory=Share)
    approximate: ApproximateOptions = field(default_factory=ApproximateOptions)


Backend = Callable[[UnitRows, Search], Candidates]
#: name -> function(rows, search) -> Candidates
KNN_BACKENDS: dict[str, Backend] = {}


def register_knn(name: str) -> Callable[[Backend], Backend]:
    """Register a k-NN backend under `SSKD.CLUSTER.KNN: name`."""

    def register(backend: Backend) -> Backend:
        if name in KNN_BACKENDS:
            raise ValueError(f"k-NN backend {name!r} is registered twice: choose another name")
        KNN_BACKENDS[name] = backend
        return backend

    return register


@register_knn("torch")
def torch_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Matrix products and top-k on the device where the rows are.

    In float32: on processors without matrix units for them, products of bfloat16 are slower (measured on AVX-512: a
    quarter of float32's rate) and those of int8 no faster.
    """
    options = {"need_farthest": search.need_farthest, "progress": search.progress}
    if rows.tensor.device.type == "cpu":
        return symmetric_tiles(rows, search.size, tile=CPU_TILE, deal=search.share.deal, **options)
    return device_topk(rows, search.size, tile=DEVICE_TILE, span=search.share.rows(len(rows)), **options)


@register_knn("faiss")
def faiss_candidates(rows: UnitRows, search: Search) -> Candidates:
    """faiss's flat index, on the first GPU that faiss-gpu sees or on the CPU (it holds a copy of the features)."""
    faiss = import_faiss("faiss")
    with faiss_threads(faiss):
        index = on_gpu(faiss, faiss.IndexFlatIP(rows.dim))
        add_rows(index, rows)
        return faiss_search(index, rows, search, product_error(rows))


def import_faiss(name: str):
    """The module faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"SSKD.CLUSTER.KNN is {name!r}, which needs faiss, which is not installed: pip install faiss-cpu, or set "
            "it to 'auto'"
        ) from error
    return faiss


@contextlib.contextmanager
def faiss_threads(faiss) -> Iterator[None]:
    """As many threads as torch uses; faiss has an OpenMP runtime of its own."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def on_gpu(faiss, index):
    """The index on one GPU where faiss can use any. One: several are known to return wrong distances silently."""
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return index
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index)


def add_rows(index, rows: UnitRows) -> None:
    """Add all rows, normalised, block by block."""
    for start in range(0, len(rows), FAISS_QUERIES):
        index.add(rows.block(start, start + FAISS_QUERIES).cpu().numpy())


def faiss_search(index, rows: UnitRows, search: Search, error: float | None) -> Candidates:
    """Ask the index about this share of the rows; a row's least similar one is the nearest to its opposite."""
    count, size = len(rows), search.size
    values = np.full((count, size), -np.inf, dtype=np.float32)
    indices = np.full((count, size), -1, dtype=np.int32)
    farthest = np.arange(count, dtype=np.int64)
    lowest = np.full(count, np.inf, dtype=np.float32)
    begin, end = search.share.rows(count)
    for start in range(begin, end, FAISS_QUERIES):
        queries = rows.block(start, min(start + FAISS_QUERIES, end)).cpu().numpy()
        stop = start + len(queries)
        value, found = index.search(queries, size + 1)
        # drop the row itself; with many exact duplicates it may not be listed: then the last one goes
        own = found == np.arange(start, stop)[:, None]
        own[~own.any(1), -1] = True
        indices[start:stop] = found[~own].reshape(-1, size)
        values[start:stop] = np.where(indices[start:stop] < 0, -np.inf, value[~own].reshape(-1, size))
        if search.need_farthest:
            value, found = index.search(-queries, 1)
            seen = found[:, 0] >= 0  # the cells searched may be empty
            farthest[start:stop] = np.where(seen, found[:, 0], farthest[start:stop])
            lowest[start:stop] = np.where(seen, -value[:, 0], lowest[start:stop])
        search.progress(stop - begin, end - begin)
    found = (farthest, lowest) if search.need_farthest else (None, None)
    return Candidates(indices, values, error, *found)
