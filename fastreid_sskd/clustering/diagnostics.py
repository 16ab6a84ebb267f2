"""Agreement of pseudo-labels with true identities: for development sets only, the method never sees them."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

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


def expected_mutual_information(cluster_sizes: np.ndarray, identity_sizes: np.ndarray) -> float:
    """Mean mutual information [nats] of random partitions with these sizes (Vinh et al., JMLR 2010, equation 24a).

    Args:
        cluster_sizes, identity_sizes: (C,) and (I,) int, each with the sum N.

    Depends on the sizes only, so each pair of *different* sizes is summed once: milliseconds where the C x I sum of
    scikit-learn takes half a minute (100,000 images).
    """
    count = int(cluster_sizes.sum())
    log_factorial = gammaln(np.arange(count + 1) + 1.0)
    total = 0.0
    for a, clusters in zip(*np.unique(cluster_sizes, return_counts=True), strict=True):
        for b, identities in zip(*np.unique(identity_sizes, return_counts=True), strict=True):
            n = np.arange(max(1, a + b - count), min(a, b) + 1)
            log_chance = (
                log_factorial[[a, b, count - a, count - b]].sum() - log_factorial[count] - log_factorial[n]
                - log_factorial[a - n] - log_factorial[b - n] - log_factorial[count - a - b + n]
            )  # fmt: skip
            terms = n / count * np.log(count * n / (float(a) * float(b))) * np.exp(log_chance)
            total += int(clusters) * int(identities) * float(terms.sum())
    return total


def adjusted_mutual_information(labels: np.ndarray, identities: np.ndarray) -> float:
    """AMI with the arithmetic mean of the entropies, as scikit-learn defines it, in [-1, 1]; 1: the same partition."""
    from sklearn.metrics import mutual_info_score

    sizes = [np.unique(partition, return_counts=True)[1] for partition in (labels, identities)]
    if len(sizes[0]) == len(sizes[1]) and len(sizes[0]) in (1, len(labels)):
        return 1.0
    entropies = [-(share * np.log(share)).sum() for share in (size / len(labels) for size in sizes)]
    expected = expected_mutual_information(*sizes)
    span = float(np.mean(entropies)) - expected
    smallest = np.finfo(np.float64).eps
    span = min(span, -smallest) if span < 0 else max(span, smallest)
    return float((mutual_info_score(identities, labels) - expected) / span)


def cluster_agreement(labels: np.ndarray, identities: np.ndarray) -> dict[str, float]:
    """NMI (arithmetic mean), AMI, ARI and BCubed precision, recall and F of pseudo-labels against identities.

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
    precision, recall, f = bcubed(clusters, identities)
    return {
        "NMI": float(metrics.normalized_mutual_info_score(identities, clusters)),
        "AMI": adjusted_mutual_information(clusters, identities),
        "ARI": float(metrics.adjusted_rand_score(identities, clusters)),
        "BCubed precision": precision,
        "BCubed recall": recall,
        "BCubed F": f,
    }
