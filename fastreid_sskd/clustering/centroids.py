"""Cluster centroids, which become the rows of every peer's classifier."""

from __future__ import annotations

import numba
import numpy as np
import torch

from .features import UnitRows


@numba.njit(cache=True, nogil=True)
def _sums(x, weights, labels, out):
    for i in range(x.shape[0]):
        if labels[i] >= 0:
            for c in range(x.shape[1]):
                out[labels[i], c] += weights[i] * x[i, c]


def cluster_centroids(
    features: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor
) -> np.ndarray | torch.Tensor:
    """Normalised mean of the features of each cluster (the initial classifier rows of an epoch).

    Args:
        features: (N, d), used as they come (normalise them before). labels: (N,) int, 0..C-1, -1 for noise.

    Returns:
        (C, d) float32, numpy or torch as the features are, on their device; (0, d) when all is noise.

    Raises:
        ValueError: lengths differ, or a number in 0..C-1 that no image has.
    """
    is_torch = isinstance(features, torch.Tensor)
    numbers = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if numbers.shape != (len(features),):
        raise ValueError(
            f"labels must be (N,) beside features (N, d), got {numbers.shape} and {tuple(features.shape)}"
        )
    count = int(numbers.max(initial=-1)) + 1
    sizes = np.bincount(numbers[numbers >= 0], minlength=count)
    if (sizes == 0).any():
        raise ValueError(
            f"cluster {int((sizes == 0).argmax())} of {count} has no image: number clusters 0..C-1"
        )
    sums = _cluster_sums(features, np.ones(len(numbers)), numbers, count)
    centroids = _normalised(sums)
    return torch.from_numpy(centroids).to(features.device) if is_torch else centroids


def centroids_of_rows(rows: UnitRows, labels: np.ndarray) -> np.ndarray:
    """`cluster_centroids` of the normalised rows, (C, d) float32."""
    return _normalised(
        _cluster_sums(rows.tensor, rows.inverse_norms, labels, int(labels.max(initial=-1)) + 1)
    )


def _cluster_sums(features, weights: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Weighted sums of the rows of each cluster, (C, d) float64."""
    if isinstance(features, torch.Tensor):
        features = features.detach()
        if features.device.type != "cpu":
            return _cluster_sums_on_device(features, weights, labels, count)
        features = features.float().numpy()
    rows = np.asarray(features, dtype=np.float32)
    sums = np.zeros((count, rows.shape[1]), dtype=np.float64)
    _sums(rows, weights, labels.astype(np.int64, copy=False), sums)
    return sums


def _cluster_sums_on_device(
    features: torch.Tensor, weights: np.ndarray, labels: np.ndarray, count: int
) -> np.ndarray:
    kept = np.flatnonzero(labels >= 0)
    sums = torch.zeros(count, features.shape[1], dtype=torch.float64, device=features.device)
    for start in range(0, len(kept), 8192):
        part = kept[start : start + 8192]
        row, cluster, scale = (
            torch.from_numpy(array).to(features.device)
            for array in (part, labels[part].astype(np.int64), weights[part])
        )
        sums.index_add_(0, cluster, features[row].double() * scale[:, None])
    return sums.cpu().numpy()


def _normalised(sums: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("cd,cd->c", sums, sums))
    return (sums / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
