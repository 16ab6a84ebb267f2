"""Other neighbor searches: faiss's flat index, and two approximate ones, "reduced" and "ivf"."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from .features import UnitRows
from .neighbors import (
    Candidates,
    Search,
    product_error,
    register_knn,
    sample_of,
    search_rows_exactly,
    torch_candidates,
)
from .parallel import LogProgress, num_threads

logger = logging.getLogger("fastreid.sskd.clustering")

#: rows that faiss is asked about at a time
FAISS_QUERIES = 8192
#: ivf: rows per cell that the cells are learned from, rounds of k-means, and the seed of the sample
ROWS_PER_CELL = 40
ROUNDS = 10
PROBES_SEED = 0
#: reduced: candidates beyond those of an exact search, rows the directions are learned from, and their number
MORE_CANDIDATES = 24
LEARN_ROWS = 20_000
AUTOMATIC_DIM = 256
PROJECT_ROWS = 8192


# ---- fewer dimensions ----------------------------------------------------------------------------


@register_knn("reduced")
def reduced_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Exact search of the features' projections to the directions of their largest second moments.

    Measured with d = 2048 to 256 at 32,621 rows: half the time, recall 1.000; 256 to 128: three quarters,
    .999. A row's least similar row is approximate too. Holds the projections, N * reduced_dim float32.
    """
    dim = search.options.reduced_dim or min(AUTOMATIC_DIM, (rows.dim + 1) // 2)
    if dim >= rows.dim:
        logger.info(
            "k-NN 'reduced': features of length %d are not longer than %d, searching exactly", rows.dim, dim
        )
        return torch_candidates(rows, search)
    size = min(search.size + MORE_CANDIDATES, len(rows) - 1)
    return replace(torch_candidates(_projected(rows, dim), replace(search, size=size)), error=None)


def _projected(rows: UnitRows, dim: int) -> UnitRows:
    """Project the rows to `dim` dimensions, not normalised again: products stay nearly the same."""
    count = len(rows)
    sample = rows.take(np.linspace(0, count - 1, min(count, LEARN_ROWS)).astype(np.int64))
    directions = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -dim:]
    out = torch.empty(count, dim, device=rows.tensor.device)
    for start in range(0, count, PROJECT_ROWS):
        block = rows.block(start, start + PROJECT_ROWS)
        torch.mm(block, directions, out=out[start : start + len(block)])
    return UnitRows(out, np.ones(count), 0.0)


# ---- faiss ---------------------------------------------------------------------------------------


@register_knn("faiss")
def faiss_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Search faiss's flat index, on its first GPU or the CPU; it holds a copy of the features."""
    with _faiss("faiss") as faiss:
        index = _on_gpu(faiss, faiss.IndexFlatIP(rows.dim))
        _add_rows(index, rows)
        return _search(index, rows, search, product_error(rows))


@register_knn("ivf")
def ivf_candidates(rows: UnitRows, search: Search) -> Candidates:
    """faiss's inverted lists, for millions of images; a row's least similar row is approximate too.

    The same for the same features: cells are learned from evenly spread rows, and faiss draws from a fixed
    seed. It holds a copy of the features. Without `ivf_probes` they are doubled until a sample of rows has
    the wanted recall.
    """
    with _faiss("ivf") as faiss:
        count = len(rows)
        lists = min(search.options.ivf_lists or round(4 * math.sqrt(count)), count)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.dim), rows.dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.spherical = ROUNDS, True
        index.cp.min_points_per_centroid = 1  # more cells than usual are for the caller to choose
        index = _on_gpu(faiss, index)
        chosen = np.linspace(0, count - 1, min(count, ROWS_PER_CELL * lists)).astype(np.int64)
        index.train(rows.take(chosen).cpu().numpy())
        _add_rows(index, rows)
        index.nprobe = min(search.options.ivf_probes or _enough_probes(index, rows, search, lists), lists)
        logger.info("k-NN: %d of %d cells are searched for each of %d images", index.nprobe, lists, count)
        return _search(index, rows, search, None)


def _enough_probes(index, rows: UnitRows, search: Search, lists: int) -> int:
    """The smallest power of two (or all cells) whose recall on a sample reaches the one wanted."""
    sample = sample_of(len(rows), PROBES_SEED)
    k = search.wanted + 1
    exact = search_rows_exactly(rows, sample, k)[1]
    queries = rows.take(sample).cpu().numpy()
    least = exact[:, -1:] - np.float32(product_error(rows))
    probes = 1
    while probes < lists:
        index.nprobe = probes
        value, found = index.search(queries, k)
        hits = ((value >= least) & (found >= 0)).sum() - len(sample)  # itself is no neighbor
        if hits >= search.options.min_recall * len(sample) * (k - 1):
            return probes
        probes *= 2
    return lists


def import_faiss(name: str):
    """The module faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"SSKD.CLUSTER.KNN is {name!r}, which needs faiss, which is not installed: pip install "
            "faiss-cpu, or set it to 'auto'"
        ) from error
    return faiss


@contextlib.contextmanager
def _faiss(name: str) -> Iterator:
    """faiss with as many threads as torch uses; it has an OpenMP runtime of its own."""
    faiss = import_faiss(name)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def _on_gpu(faiss, index):
    """Move the index to one GPU, if any; several are known to return wrong distances silently."""
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return index
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index)


def _add_rows(index, rows: UnitRows) -> None:
    for start in range(0, len(rows), FAISS_QUERIES):
        index.add(rows.block(start, start + FAISS_QUERIES).cpu().numpy())


def _search(index, rows: UnitRows, search: Search, error: float | None) -> Candidates:
    """Ask the index about this shard's rows; a row's least similar one is the nearest to its opposite."""
    count, size = len(rows), search.size
    values = np.full((count, size), -np.inf, dtype=np.float32)
    indices = np.full((count, size), -1, dtype=np.int32)
    farthest = np.arange(count, dtype=np.int64)
    lowest = np.full(count, np.inf, dtype=np.float32)
    begin, end = search.shard.rows(count)
    progress = LogProgress("k-NN search")
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
        progress(stop - begin, end - begin)
    return Candidates(indices, values, error, *((farthest, lowest) if search.need_farthest else (None, None)))
