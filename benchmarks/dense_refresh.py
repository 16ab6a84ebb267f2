"""The refresh by the dense formulas: N x N matrices in NumPy and torch, for comparison."""

import time

import numpy as np
import torch

#: rows handled at a time where that saves memory
BLOCK = 256


def dense_distances(features: np.ndarray, k1: int, k2: int, variant: str) -> np.ndarray:
    """(N, N) float32 k-reciprocal Jaccard distances of unit rows (N, d), written from the formulas.

    Products in float64, neighbours by a full stable sort, self first: the order of near-ties must not decide
    whether two implementations agree. Memory 3 N x N float32.
    """
    count = len(features)
    full = min(count, k1 + 1 if variant == "sskd" else k1)
    half = min(round(k1 / 2) + 1, full)
    x = torch.from_numpy(features).double()
    x /= x.norm(dim=1, keepdim=True)
    v = np.empty((count, count), dtype=np.float32)  # similarities first
    ranks = np.empty((count, max(full, k2)), dtype=np.int64)
    for start in range(0, count, BLOCK):
        block = (x[start : start + BLOCK] @ x.T).clamp_(max=1.0).float()
        v[start : start + len(block)] = block.numpy()
        own = torch.arange(start, start + len(block))
        block[own - start, own] = 2.0
        order = block.sort(dim=1, descending=True, stable=True).indices
        ranks[start : start + len(block)] = order[:, : ranks.shape[1]].numpy()
    del x
    inside = {size: _reciprocal(ranks[:, :size]) for size in (full, half)}
    for i in range(count):
        base = ranks[i, :full][inside[full][i]]
        members = [base]
        for j in base:
            candidate = ranks[j, :half][inside[half][j]]
            if 3 * len(np.intersect1d(candidate, base)) > 2 * len(candidate):
                members.append(candidate)
        chosen = np.unique(np.concatenate(members))
        distance = 2 - 2 * v[i].astype(np.float64)
        distance[i] = 0
        largest = distance.max() if variant == "sskd" else 1.0
        weight = np.exp(-distance[chosen] / (largest or 1.0))
        v[i] = 0
        v[i, chosen] = weight / weight.sum()
    if k2 != 1:
        expansion = ranks[:, : min(k2, count if variant == "sskd" else full)]
        v = np.stack([v[row].mean(0) for row in expansion])
    by_column = np.ascontiguousarray(v.T)
    jaccard = np.empty((count, count), dtype=np.float32)
    for i in range(count):
        support = np.flatnonzero(v[i])
        shared = np.minimum(by_column[support], v[i, support][:, None]).sum(0)
        jaccard[i] = np.maximum(1 - shared / (2 - shared), 0)
    return jaccard


def _reciprocal(lists: np.ndarray) -> np.ndarray:
    """(N, k) bool: whether the entry's own list holds the row."""
    return np.stack([(lists[row] == i).any(1) for i, row in enumerate(lists)])


def dense_refresh(
    features: np.ndarray, *, k1: int, k2: int, variant: str, eps: float, min_samples: int
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Labels (N,) at a given eps, the distances (N, N), and seconds: distances, dbscan (wall), cpu."""
    from sklearn.cluster import DBSCAN

    wall, cpu = time.perf_counter(), time.process_time()
    distance = dense_distances(features, k1, k2, variant)
    between = time.perf_counter()
    labels = DBSCAN(eps=np.float32(eps), min_samples=min_samples, metric="precomputed").fit_predict(distance)
    seconds = {
        "distances": between - wall,
        "dbscan": time.perf_counter() - between,
        "cpu": time.process_time() - cpu,
    }
    return labels, distance, seconds
