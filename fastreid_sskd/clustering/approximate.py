"""Other neighbor searches: faiss's flat index, and the approximate one, "reduced"."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch

from ..refusals import optional
from .features import UnitRows
from .neighbors import Candidates, Search, product_error, register_knn, torch_candidates
from .parallel import LogProgress

logger = logging.getLogger("fastreid.sskd.clustering")

#: rows that faiss is asked about, or that are projected, at a time
ROWS_PER_CALL = 8192
#: reduced: candidates beyond those of an exact search, rows the directions are learned from, and their number
MORE_CANDIDATES = 24
LEARN_ROWS = 20_000
AUTOMATIC_DIM = 256


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
    for start in range(0, count, ROWS_PER_CALL):
        block = rows.block(start, start + ROWS_PER_CALL)
        torch.mm(block, directions, out=out[start : start + len(block)])
    return UnitRows(out, np.ones(count), 0.0)


@register_knn("faiss")
def faiss_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Search faiss's flat index, on its first GPU or the CPU; it holds a copy of the features."""
    with _faiss() as faiss:
        index = _on_gpu(faiss, faiss.IndexFlatIP(rows.dim))
        for start in range(0, len(rows), ROWS_PER_CALL):
            index.add(rows.block(start, start + ROWS_PER_CALL).cpu().numpy())
        return _search(index, rows, search)


def import_faiss() -> ModuleType:
    """The module faiss."""
    return optional(
        "faiss",
        "SSKD.CLUSTER.KNN is 'faiss', which is not installed: pip install faiss-cpu, or set it to 'auto'",
    )


@contextlib.contextmanager
def _faiss() -> Iterator:
    """faiss with as many threads as torch uses; it has an OpenMP runtime of its own."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
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


def _search(index, rows: UnitRows, search: Search) -> Candidates:
    """Ask the index about this shard's rows; a row's least similar one is the nearest to its opposite."""
    count = len(rows)
    found = Candidates(
        np.full((count, search.size), -1, dtype=np.int32),
        np.full((count, search.size), -np.inf, dtype=np.float32),
        product_error(rows),
    )
    if search.need_farthest:
        found.farthest, found.lowest = np.arange(count), np.full(count, np.inf, dtype=np.float32)
    begin, end = search.shard.rows(count)
    progress = LogProgress("k-NN search")
    for start in range(begin, end, ROWS_PER_CALL):
        queries = rows.block(start, min(start + ROWS_PER_CALL, end)).cpu().numpy()
        own_rows = slice(start, start + len(queries))
        value, index_of = index.search(queries, search.size + 1)
        # drop the row itself; with many exact duplicates it may not be listed: then the last one goes
        own = index_of == np.arange(own_rows.start, own_rows.stop)[:, None]
        own[~own.any(1), -1] = True
        found.indices[own_rows] = index_of[~own].reshape(-1, search.size)
        found.approximate[own_rows] = value[~own].reshape(-1, search.size)
        if search.need_farthest:
            value, index_of = index.search(-queries, 1)
            found.farthest[own_rows], found.lowest[own_rows] = index_of[:, 0], -value[:, 0]
        progress(own_rows.stop - begin, end - begin)
    return found
