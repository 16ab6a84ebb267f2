"""The approximate search: faiss's inverted lists, with as many probes as the recall needs."""

from __future__ import annotations

import logging
import math

import numpy as np

from .backends import Search, add_rows, faiss_search, faiss_threads, import_faiss, on_gpu, register_knn
from .candidates import Candidates, product_error
from .features import UnitRows
from .recall import sample_of
from .similarity import search_rows_exactly

logger = logging.getLogger("fastreid.sskd.clustering")

#: rows per cell that the cells are learned from, rounds of k-means, and the seed of the sample
ROWS_PER_CELL = 40
ROUNDS = 10
SEED = 0


@register_knn("ivf")
def ivf_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Approximate, for millions of images; a row's least similar row is approximate too. See `build_ivf`."""
    faiss = import_faiss("ivf")
    with faiss_threads(faiss):
        return faiss_search(build_ivf(faiss, rows, search), rows, search, None)


def build_ivf(faiss, rows: UnitRows, search: Search):
    """A trained and filled index that searches `probes` cells for each row.

    The same for the same features: the cells are learned from evenly spread rows, and faiss draws from a fixed seed.
    It holds a copy of the features.

    Args:
        search: its `approximate` and `wanted`; with probes 0 they are doubled until a sample of rows finds the share
            `min_recall` of its neighbours.
    """
    count = len(rows)
    lists = min(search.approximate.lists or round(4 * math.sqrt(count)), count)
    quantizer = faiss.IndexFlatIP(rows.dim)
    index = faiss.IndexIVFFlat(quantizer, rows.dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.spherical = ROUNDS, True
    index.cp.min_points_per_centroid = 1  # more cells than usual are for the caller to choose
    index = on_gpu(faiss, index)
    chosen = np.linspace(0, count - 1, min(count, ROWS_PER_CELL * lists)).astype(np.int64)
    index.train(rows.take(chosen).cpu().numpy())
    add_rows(index, rows)
    probes = search.approximate.probes or _enough_probes(index, rows, search, lists)
    index.nprobe = min(probes, lists)
    logger.info("k-NN: %d of %d cells are searched for each of %d images", index.nprobe, lists, count)
    return index


def _enough_probes(index, rows: UnitRows, search: Search, lists: int) -> int:
    """The smallest power of two (or all cells) whose recall on a sample reaches the one wanted."""
    sample = sample_of(len(rows), SEED)
    k = search.wanted + 1
    exact_index = np.empty((len(rows), k), dtype=np.int32)
    exact = np.empty((len(rows), k), dtype=np.float32)
    search_rows_exactly(rows, sample, exact_index, exact)
    queries = rows.take(sample).cpu().numpy()
    least = exact[sample, -1:] - np.float32(product_error(rows))
    probes = 1
    while probes < lists:
        index.nprobe = probes
        value, found = index.search(queries, k)
        hits = ((value >= least) & (found >= 0)).sum() - len(sample)  # itself is no neighbour
        if hits >= search.approximate.min_recall * len(sample) * (k - 1):
            return probes
        probes *= 2
    return lists
