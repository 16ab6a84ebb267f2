"""Exact k-nearest-neighbour lists in memory O(N * k): tiles, candidates, exact re-scoring. Never N x N."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .candidates import Candidates, device_topk, product_error, symmetric_tiles
from .features import UnitRows
from .progress import Progress, no_progress
from .similarity import pair_cosines, rescore, search_rows_exactly

logger = logging.getLogger("fastreid.sskd.clustering")

#: candidates listed beyond k, so that near-ties at the end of a list are settled without a second search
CANDIDATE_MARGIN = 8
#: rows and columns of one tile on the CPU: 32 MB of float32, which stays in a server's cache
CPU_TILE = (1024, 8192)
DEVICE_TILE = 16384
#: rows on which any backend but torch on the CPU is compared with an exact search
SELF_CHECK_ROWS = 32
SELF_CHECK_TOLERANCE = 2.0**-22
#: share of rows searched twice from which the log says so: the features are almost equal, or the backend errs
NOTABLE_SHARE_SEARCHED_TWICE = 0.1


@dataclass(frozen=True)
class Neighbors:
    """The k most similar rows of each row.

    Attributes:
        indices: (N, k) int32, the row itself first, the others by (similarity descending, index ascending).
        similarities: (N, k) float32 cosines, in [-1, 1].
        smallest: (N,) float32, cosine of the row's least similar row, or None if not asked for.
    """

    indices: np.ndarray
    similarities: np.ndarray
    smallest: np.ndarray | None = None

    @property
    def k(self) -> int:
        """Entries per list, self included."""
        return self.indices.shape[1]


Backend = Callable[..., Candidates]
#: name -> function(rows, size, *, need_farthest, progress) -> Candidates
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
def torch_candidates(rows: UnitRows, size: int, *, need_farthest: bool, progress: Progress) -> Candidates:
    """Matrix products and top-k on the device where the rows are."""
    if rows.tensor.device.type == "cpu":
        return symmetric_tiles(rows, size, need_farthest=need_farthest, tile=CPU_TILE, progress=progress)
    return device_topk(rows, size, need_farthest=need_farthest, tile=DEVICE_TILE, progress=progress)


@register_knn("faiss")
def faiss_candidates(rows: UnitRows, size: int, *, need_farthest: bool, progress: Progress) -> Candidates:
    """faiss's flat index on the CPU (it holds a copy of the features)."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "SSKD.CLUSTER.KNN is 'faiss', which is not installed: pip install faiss-cpu, or set it to 'auto'"
        ) from error
    count, block = len(rows), 8192
    index = faiss.IndexFlatIP(rows.dim)
    for start in range(0, count, block):
        index.add(rows.block(start, start + block).cpu().numpy())
    values = np.empty((count, size), dtype=np.float32)
    indices = np.empty((count, size), dtype=np.int32)
    farthest = np.empty(count, dtype=np.int64)
    for start in range(0, count, block):
        queries = rows.block(start, start + block).cpu().numpy()
        stop = start + len(queries)
        value, found = index.search(queries, size + 1)
        # drop the row itself; with many exact duplicates it may not be listed: then the last one goes
        own = found == np.arange(start, stop)[:, None]
        own[~own.any(1), -1] = True
        values[start:stop] = value[~own].reshape(-1, size)
        indices[start:stop] = found[~own].reshape(-1, size)
        if need_farthest:
            farthest[start:stop] = index.search(-queries, 1)[1][:, 0]
        progress(stop, count)
    return Candidates(indices, values, product_error(rows), farthest if need_farthest else None)


def exact_knn(
    features,
    k: int,
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
    need_smallest: bool = False,
    progress: Progress = no_progress,
) -> Neighbors:
    """The k most similar rows of every row by cosine, self first, ties in ascending order of index.

    The lists do not depend on tiles, threads or the backend: candidates are found by float32 products with a
    bound on their error, re-scored in float64, and a row for which that proves nothing is searched in float64.

    Args:
        features: (N, d), numpy array or torch tensor; normalised inside when not unit norm.
        k: entries per list, self included; cut at N.
        backend: "auto" (torch), "torch" or "faiss".
        device: where torch searches; the tensor's own device (the CPU for numpy) when None.
        need_smallest: also find each row's smallest similarity.
        progress: called with (done, total).

    Raises:
        ValueError: bad features (see `UnitRows.from_features`), k < 1 or an unknown backend.

    Memory beyond the features: N * (k + 16) * 8 bytes for the candidates, 16 MB for a tile.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 (a list holds the row itself), got {k}")
    name = "torch" if backend == "auto" else backend
    if name not in KNN_BACKENDS:
        raise ValueError(
            f"unknown k-NN backend {backend!r}: SSKD.CLUSTER.KNN is one of auto, {', '.join(KNN_BACKENDS)}"
        )
    rows = UnitRows.from_features(features, device)
    count = len(rows)
    k = min(k, count)
    size = min(k - 1 + CANDIDATE_MARGIN, count - 1)
    candidates = KNN_BACKENDS[name](rows, size, need_farthest=need_smallest, progress=progress)
    indices, similarities, redone = rescore(rows, candidates, k)
    smallest = pair_cosines(rows, np.arange(count), candidates.farthest) if need_smallest else None
    found = Neighbors(indices, similarities, smallest)
    own_and_here = name == "torch" and rows.tensor.device.type == "cpu"
    if not own_and_here and not _agrees_with_exact(rows, found):
        logger.warning(
            "k-NN backend %r on %s disagrees with an exact search on a sample: searching with torch on the CPU",
            name,
            rows.tensor.device,
        )
        return exact_knn(rows.cpu(), k, backend="torch", need_smallest=need_smallest, progress=progress)
    if redone:
        level = logging.INFO if redone > count * NOTABLE_SHARE_SEARCHED_TWICE else logging.DEBUG
        logger.log(
            level, "k-NN: %d of %d rows have too many near-ties and were searched twice", redone, count
        )
    return found


def _agrees_with_exact(rows: UnitRows, found: Neighbors) -> bool:
    """Compare rows spread over the data with an exact search; multi-GPU faiss is known to err silently."""
    sample = np.unique(np.linspace(0, len(rows) - 1, min(SELF_CHECK_ROWS, len(rows))).astype(np.int64))
    index, similarity = found.indices.copy(), found.similarities.copy()
    smallest = search_rows_exactly(rows, sample, index, similarity)
    agrees = np.abs(similarity[sample] - found.similarities[sample]).max() <= SELF_CHECK_TOLERANCE
    if found.smallest is not None:
        # that of float32 products, which may take another row within their error for the least similar
        agrees &= np.abs(smallest - found.smallest[sample]).max() <= product_error(rows)
    return bool(agrees)
