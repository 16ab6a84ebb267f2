"""Summary of pseudo-labels, and their agreement with true identities, which the method never sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from .methods import NOISE


def noise_as_singletons(labels: np.ndarray) -> np.ndarray:
    """Labels in which each noise image is a cluster of its own."""
    labels = np.asarray(labels).copy()
    noise = labels == NOISE
    labels[noise] = labels.max(initial=NOISE) + 1 + np.arange(noise.sum())
    return labels


def bcubed(labels: np.ndarray, identities: np.ndarray) -> tuple[float, float, float]:
    """BCubed precision, recall and F (Bagga and Baldwin, 1998), each in [0, 1].

    Precision is the mean over images of the share of its cluster that has its identity, recall the share of
    its identity that is in its cluster, F their harmonic mean. Labels are taken as they are: -1 would be one
    cluster.
    """
    _, cluster = np.unique(labels, return_inverse=True)
    _, identity = np.unique(identities, return_inverse=True)
    cell, common = np.unique(cluster.astype(np.int64) * (identity.max() + 1) + identity, return_counts=True)
    squares = common.astype(np.float64) ** 2
    precision = float((squares / np.bincount(cluster)[cell // (identity.max() + 1)]).sum() / len(cluster))
    recall = float((squares / np.bincount(identity)[cell % (identity.max() + 1)]).sum() / len(cluster))
    return precision, recall, 2 * precision * recall / (precision + recall)


def expected_mutual_information(cluster_sizes: np.ndarray, identity_sizes: np.ndarray) -> float:
    """Mean mutual information [nats] of random partitions (Vinh et al., JMLR 2010, equation 24a).

    Args:
        cluster_sizes, identity_sizes: (C,) and (I,) int, each with the sum N.

    Depends on the sizes only, so each pair of *different* sizes is summed once: milliseconds where the C x I
    sum of scikit-learn takes half a minute (100,000 images).
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
    """AMI with the arithmetic mean of the entropies, as scikit-learn's, in [-1, 1]."""
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
        labels: (N,) int, -1 for noise: each noise image counts as a cluster of its own, so that leaving an
            image out costs recall but no precision. identities: (N,) int.
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


@dataclass(frozen=True)
class ClusterReport:
    """Summary of one refresh.

    Attributes:
        num_images: N. num_clusters: C.
        eps: the eps in use, None for methods without one.
        noise_share: share of images without a cluster, in [0, 1].
        largest: images in the largest cluster (0 without clusters). median: median cluster size (0 without).
        changed_share: share of images whose cluster changed since the previous refresh (see `changed_share`),
            None at the first.
    """

    num_images: int
    num_clusters: int
    eps: float | None
    noise_share: float
    largest: int
    median: float
    changed_share: float | None = None

    @classmethod
    def from_labels(
        cls, labels: np.ndarray, eps: float | None = None, previous: np.ndarray | None = None
    ) -> ClusterReport:
        """Summarise labels (N,), -1 for noise, beside those of the refresh before."""
        labels = np.asarray(labels)
        sizes = np.bincount(labels[labels != NOISE])
        sizes = sizes[sizes > 0]
        return cls(
            num_images=len(labels),
            num_clusters=len(sizes),
            eps=None if eps is None else float(eps),
            noise_share=float((labels == NOISE).mean()) if len(labels) else 0.0,
            largest=int(sizes.max(initial=0)),
            median=float(np.median(sizes)) if len(sizes) else 0.0,
            changed_share=None if previous is None else changed_share(labels, previous),
        )

    @property
    def largest_share(self) -> float:
        """Share of all images that the largest cluster holds."""
        return self.largest / self.num_images if self.num_images else 0.0

    def __str__(self) -> str:
        parts = [f"{self.num_clusters} clusters of {self.num_images} images"]
        if self.eps is not None:
            parts.append(f"eps {self.eps:.4f}")
        parts.append(f"noise {self.noise_share:.1%}")
        parts.append(f"largest {self.largest}, median {self.median:g}")
        if self.changed_share is not None:
            parts.append(f"changed {self.changed_share:.1%}")
        return ", ".join(parts)


def changed_share(labels: np.ndarray, previous: np.ndarray) -> float:
    """Share of images whose cluster changed, whatever numbers the clusters carry.

    New and old clusters are matched one to one, the pair with the most common images first (ties: the pair
    whose first common image comes first, which renumbering does not change). An image is unchanged when its
    new cluster is matched to its old one, or when it is noise in both; a cluster that splits keeps its larger
    part.
    """
    labels, previous = np.asarray(labels), np.asarray(previous)
    if labels.shape != previous.shape or labels.ndim != 1:
        raise ValueError(
            f"labels and previous must be (N,) of the same images, got {labels.shape}, {previous.shape}"
        )
    if not len(labels):
        return 0.0
    unchanged = int(((labels == NOISE) & (previous == NOISE)).sum())
    both = np.flatnonzero((labels != NOISE) & (previous != NOISE))
    pairs, first, common = np.unique(
        np.stack([labels[both], previous[both]], 1), axis=0, return_index=True, return_counts=True
    )
    new_taken: set[int] = set()
    old_taken: set[int] = set()
    for p in np.lexsort((first, -common)):
        new, old = pairs[p]
        if new not in new_taken and old not in old_taken:
            new_taken.add(new)
            old_taken.add(old)
            unchanged += int(common[p])
    return 1 - unchanged / len(labels)
