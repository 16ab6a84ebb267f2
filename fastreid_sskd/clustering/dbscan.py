"""DBSCAN on a sparse graph of distances (Ester et al., KDD 1996), with scikit-learn's labels."""

from __future__ import annotations

import numba
import numpy as np
import scipy.sparse

#: label of an image that belongs to no cluster
NOISE = -1


@numba.njit(cache=True, nogil=True)
def _labels(indptr, indices, data, eps, min_samples):
    count = indptr.shape[0] - 1
    core = np.zeros(count, dtype=np.bool_)
    for i in range(count):
        neighbors = 0
        has_self = False
        for e in range(indptr[i], indptr[i + 1]):
            if indices[e] == i:
                has_self = True
            if data[e] <= eps:
                neighbors += 1
        if not has_self:  # a diagonal entry that is not stored is the distance 0 to itself
            neighbors += 1
        core[i] = neighbors >= min_samples
    labels = np.full(count, NOISE, dtype=np.int64)
    stack = np.empty(count, dtype=np.int64)
    clusters = 0
    for seed in range(count):
        if labels[seed] != NOISE or not core[seed]:
            continue
        labels[seed] = clusters
        stack[0] = seed
        depth = 1
        while depth:
            depth -= 1
            i = stack[depth]
            if not core[i]:
                continue
            for e in range(indptr[i], indptr[i + 1]):
                j = indices[e]
                if data[e] <= eps and labels[j] == NOISE:
                    labels[j] = clusters
                    stack[depth] = j
                    depth += 1
        clusters += 1
    return labels


def dbscan(distance: scipy.sparse.spmatrix | np.ndarray, eps: float, min_samples: int = 4) -> np.ndarray:
    """Clusters of the graph distance <= eps; the labels of scikit-learn's DBSCAN(metric="precomputed").

    Args:
        distance: (N, N), symmetric; sparse as `jaccard_distance` gives it (what is not stored is no neighbour, the
            diagonal apart; stored zeros are neighbours), or dense. Not modified.
        eps: largest distance of neighbours, > 0, compared in the dtype of the distances. It does not bound the
            distance of two images of one cluster.
        min_samples: a core image has at least this many neighbours, itself included.

    Returns:
        (N,) int64, 0..C-1 in the order of each cluster's first core image, -1 for noise. An image that is no core
        takes the smallest label among its core neighbours.

    Raises:
        ValueError: not square, eps not a positive number, min_samples < 1.
    """
    if len(distance.shape) != 2 or distance.shape[0] != distance.shape[1]:
        raise ValueError(f"distance must be (N, N), got shape {tuple(distance.shape)}")
    if not eps > 0 or not np.isfinite(eps):
        raise ValueError(f"eps must be a positive number, got {eps}: see SSKD.CLUSTER.EPS")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples}: see SSKD.CLUSTER.MIN_SAMPLES")
    if not scipy.sparse.issparse(distance):
        dense = np.asarray(distance)
        distance = _neighbors_of_dense(dense if dense.dtype.kind == "f" else dense.astype(np.float64), eps)
    csr = distance.tocsr()
    if csr.dtype.kind != "f":  # eps would be cut to a whole number
        csr = csr.astype(np.float64)
    return _labels(csr.indptr, csr.indices, csr.data, csr.data.dtype.type(eps), min_samples)


def _neighbors_of_dense(distance: np.ndarray, eps: float) -> scipy.sparse.csr_matrix:
    """The entries <= eps of a dense matrix, zeros among them stored."""
    row, column = np.nonzero(distance <= distance.dtype.type(eps))
    indptr = np.searchsorted(row, np.arange(len(distance) + 1))
    return scipy.sparse.csr_matrix((distance[row, column], column, indptr), shape=distance.shape)
