"""What a refresh found, in the numbers that show a collapse early."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .dbscan import NOISE


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

    New and old clusters are matched one to one, the pair with the most common images first (ties: the pair whose
    first common image comes first, which renumbering does not change). An image is unchanged when its new
    cluster is matched to its old one, or when it is noise in both; a cluster that splits keeps its larger part.

    Raises:
        ValueError: the two label lists differ in length.
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
