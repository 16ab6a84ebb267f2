"""Silhouette of clusters on a sparse matrix of Jaccard distances, without the dense one."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from .dbscan import NOISE


def sparse_silhouette(distances: scipy.sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Silhouette of every image (Rousseeuw, 1987): (b - a) / max(a, b), as from the dense distances.

    a is the mean distance to the other images of its cluster, b the smallest mean distance to the images of another
    cluster. Pairs that are not stored are at distance 1, so a mean needs the stored ones only.

    Args:
        distances: (N, N) symmetric, from `jaccard_distance` without ``max_distance``: what is not stored is 1.
        labels: (N,) int, 0..C-1, -1 for noise.

    Returns:
        (N,) float64 in [-1, 1]. 0 for noise, for an image alone in its cluster, and everywhere if there are fewer than
        two clusters: an image that is left out then neither helps nor harms a mean over all images.

    Raises:
        ValueError: sizes differ.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or distances.shape != (len(labels), len(labels)):
        raise ValueError(f"distances must be (N, N) beside labels (N,), got {distances.shape} and {labels.shape}")
    silhouette = np.zeros(len(labels))
    sizes = np.bincount(labels[labels != NOISE])
    if np.count_nonzero(sizes) < 2:
        return silhouette
    inside = np.flatnonzero(labels != NOISE)
    similarity = scipy.sparse.csr_matrix(
        (1.0 - distances.data.astype(np.float64), distances.indices, distances.indptr), shape=distances.shape
    )
    member = scipy.sparse.csr_matrix((np.ones(len(inside)), (inside, labels[inside])), shape=(len(labels), len(sizes)))
    sums = (similarity @ member).tocoo()  # of the similarities of image i to the images of cluster c

    own = sums.col == labels[sums.row]
    to_own = np.zeros(len(labels))
    to_own[sums.row[own]] = sums.data[own]
    to_own -= similarity.diagonal()
    nearest = np.zeros(len(labels))  # the largest mean similarity to another cluster
    np.maximum.at(nearest, sums.row[~own], sums.data[~own] / sizes[sums.col[~own]])

    scored = inside[sizes[labels[inside]] > 1]
    a = 1 - to_own[scored] / (sizes[labels[scored]] - 1)
    b = 1 - nearest[scored]
    largest = np.maximum(a, b)
    silhouette[scored] = np.divide(b - a, largest, out=np.zeros(len(scored)), where=largest > 0)
    return silhouette
