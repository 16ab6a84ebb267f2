"""Agreement of pseudo-labels with true identities: for development sets only, the method never sees them."""

from __future__ import annotations

import numpy as np

from .dbscan import NOISE


def noise_as_singletons(labels: np.ndarray) -> np.ndarray:
    """Labels in which each noise image is a cluster of its own."""
    labels = np.asarray(labels).copy()
    noise = labels == NOISE
    labels[noise] = labels.max(initial=NOISE) + 1 + np.arange(noise.sum())
    return labels


def bcubed(labels: np.ndarray, identities: np.ndarray) -> tuple[float, float, float]:
    """BCubed precision, recall and F (Bagga and Baldwin, 1998), each in [0, 1].

    Precision is the mean over images of the share of its cluster that has its identity, recall the share of its
    identity that is in its cluster, F their harmonic mean. Labels are taken as they are: -1 would be one cluster.
    """
    _, cluster = np.unique(labels, return_inverse=True)
    _, identity = np.unique(identities, return_inverse=True)
    cell, common = np.unique(cluster.astype(np.int64) * (identity.max() + 1) + identity, return_counts=True)
    squares = common.astype(np.float64) ** 2
    precision = float((squares / np.bincount(cluster)[cell // (identity.max() + 1)]).sum() / len(cluster))
    recall = float((squares / np.bincount(identity)[cell % (identity.max() + 1)]).sum() / len(cluster))
    return precision, recall, 2 * precision * recall / (precision + recall)


def cluster_agreement(labels: np.ndarray, identities: np.ndarray) -> dict[str, float]:
    """NMI (arithmetic mean), AMI, ARI and BCubed F of pseudo-labels against identities.

    Args:
        labels: (N,) int, -1 for noise: each noise image counts as a cluster of its own, so that leaving an image
            out costs recall but no precision. identities: (N,) int.

    Raises:
        ValueError: lengths differ, or no image.
    """
    from sklearn import metrics  # slow to import, and only diagnostics need it

    labels, identities = np.asarray(labels), np.asarray(identities)
    if labels.shape != identities.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels and identities must be (N,), N >= 1, got {labels.shape} and {identities.shape}"
        )
    clusters = noise_as_singletons(labels)
    return {
        "NMI": float(metrics.normalized_mutual_info_score(identities, clusters)),
        "AMI": float(metrics.adjusted_mutual_info_score(identities, clusters)),
        "ARI": float(metrics.adjusted_rand_score(identities, clusters)),
        "BCubed F": bcubed(clusters, identities)[2],
    }
