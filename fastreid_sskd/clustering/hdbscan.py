"""HDBSCAN (Campello et al., 2013) of the sparse Jaccard distances, by scikit-learn."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from .dbscan import NOISE
from .methods import ClusterProblem, numbered, register_clustering

#: stands for a distance of 0, which a sparse graph takes for no edge; below any distance of two images that is not 0
ALMOST_ZERO = 1e-12


def complete_graph(distance: scipy.sparse.csr_matrix, min_samples: int) -> scipy.sparse.csr_matrix:
    """The graph with enough of its missing edges, all of length 1, that its minimum spanning tree is the dense one's.

    Distances that are not stored are 1, the largest there is. Of them a minimum spanning tree needs one edge between
    neighbouring components, and a core distance (that of the min_samples-th nearest, the image itself counted) one
    entry for each of the min_samples that is missing.

    Args:
        distance: (N, N) symmetric, diagonal and zeros stored, as `PairDistances.symmetric` gives it.

    Returns:
        (N, N) float64 CSR, symmetric, connected, at least min(min_samples, N) entries a row, no stored zeros.
    """
    count = distance.shape[0]
    graph = distance.astype(np.float64)
    graph.data[graph.data == 0] = ALMOST_ZERO
    of_component = csgraph.connected_components(graph, directed=False)[1]
    first = np.unique(of_component, return_index=True)[1]
    row, column = [first[:-1]], [first[1:]]
    for i in np.flatnonzero(np.diff(graph.indptr) < min_samples):
        missing = np.setdiff1d(
            np.arange(min(min_samples * 2, count)), graph.indices[graph.indptr[i] : graph.indptr[i + 1]]
        )[: min_samples - (graph.indptr[i + 1] - graph.indptr[i])]
        row.append(np.full(len(missing), i))
        column.append(missing)
    if not sum(map(len, row)):
        return graph
    row, column = np.concatenate(row), np.concatenate(column)
    pairs = np.unique(np.stack([np.minimum(row, column), np.maximum(row, column)], 1), axis=0)
    known = np.asarray(graph[pairs[:, 0], pairs[:, 1]]).ravel()
    row, column = pairs[known == 0].T
    added = scipy.sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=graph.shape)
    graph = (graph + added + added.T).tocsr()
    graph.sort_indices()
    return graph


def hdbscan_labels(distance: scipy.sparse.csr_matrix, min_samples: int) -> np.ndarray:
    """HDBSCAN of distances of which those not stored are 1; clusters and core distances of min_samples images.

    As of the dense matrix, but that images which only a distance of 1 connects to a cluster are noise: there they fall
    to whichever cluster the order of equal edges gives them. Elsewhere too HDBSCAN's labels depend on that order
    where distances tie, which core distances make them do.

    Args:
        distance: (N, N) symmetric CSR, diagonal and zeros stored; not modified.

    Returns:
        (N,) int64, 0..C-1 and -1 for noise.
    """
    from sklearn.cluster import HDBSCAN  # slow to import

    count, smallest = distance.shape[0], max(min_samples, 2)
    noise = ~_within_reach(distance, min_samples, smallest)
    if noise.all():
        return np.full(count, NOISE, dtype=np.int64)
    graph = complete_graph(distance, min_samples)
    clusterer = HDBSCAN(min_cluster_size=smallest, min_samples=min_samples, metric="precomputed", copy=False)
    return numbered(np.where(noise, NOISE, clusterer.fit_predict(graph)))


def _within_reach(distance: scipy.sparse.csr_matrix, min_samples: int, smallest: int) -> np.ndarray:
    """(N,) bool: images that edges below 1 between images of core distances below 1 join to at least `smallest`."""
    core = np.diff(distance.indptr) >= min_samples
    row = np.repeat(np.arange(len(core)), np.diff(distance.indptr))
    kept = core[row] & core[distance.indices]
    edges = (np.ones(kept.sum(), dtype=np.bool_), (row[kept], distance.indices[kept]))
    _, component = csgraph.connected_components(scipy.sparse.csr_matrix(edges, shape=distance.shape), directed=False)
    return core & (np.bincount(component)[component] >= smallest)


@register_clustering("hdbscan", uses="distances")
def hdbscan(problem: ClusterProblem) -> np.ndarray:
    """Clusters of any density, without a radius, of at least min_samples images; memory O(pairs below 1)."""
    return hdbscan_labels(problem.pairs.symmetric(), problem.min_samples)
