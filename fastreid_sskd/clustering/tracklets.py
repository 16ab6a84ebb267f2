"""Clusters of tracklets: no cluster holds two that overlap in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from .methods import NOISE, ClusterProblem, numbered

if TYPE_CHECKING:
    from ..data.tracklets import Tracklets


@dataclasses.dataclass(frozen=True)
class TrackletReport:
    """What a refresh did with tracklets.

    Attributes:
        tracklets: T.
        joined: tracklets in a cluster with another one.
        split: tracklets taken out of a cluster, because one in it overlaps with them in time.
    """

    tracklets: int
    joined: int
    split: int

    @classmethod
    def from_labels(cls, labels: np.ndarray, split: int) -> TrackletReport:
        """Count the tracklets of labels (T,), -1 for noise."""
        sizes = np.bincount(labels[labels != NOISE])
        return cls(len(labels), int(sizes[sizes > 1].sum()), split)


class Apart:
    """A clustering method that never joins tracklets which overlap in time.

    Their pairs are taken away first, so that their distance is 1. A cluster that holds two of them all the
    same, by way of others, is split. Beginning with the tracklets that overlap with most others of the
    cluster, each goes to the part that it overlaps with none of and whose features are most similar in the
    mean, or begins a part of its own. Parts of fewer than min_samples images are noise. Memory O(M^2) of the
    M tracklets of such a cluster.

    Args:
        label: a registered method, function(problem) -> (T,) labels.
        tracklets: the T rows of its problems.

    Attributes:
        split: tracklets of the last labels that are not in the largest part of their cluster.
    """

    def __init__(self, label: Callable[[ClusterProblem], np.ndarray], tracklets: Tracklets):
        self.label = label
        self.tracklets = tracklets
        self.split = 0

    def __call__(self, problem: ClusterProblem) -> np.ndarray:
        """Label the tracklets (T,), 0..C-1 and -1 for noise."""
        pairs = problem.pairs
        if pairs is not None:
            kept = ~self.tracklets.overlap(pairs.i, pairs.j)
            problem = dataclasses.replace(problem, pairs=pairs.where(kept))
        labels = self.label(problem).copy()
        self.split = 0
        for members in self._with_overlap(labels):
            rows = problem.rows.take(members).cpu().numpy()
            parts = self._parts(rows @ rows.T, self.tracklets.overlap(members[:, None], members))
            for part in parts:
                enough = problem.sizes[members[part]].sum() >= problem.options.min_samples
                labels[members[part]] = labels.max() + 1 if enough else NOISE
            self.split += len(members) - len(parts[0])
        return numbered(labels)

    def _with_overlap(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        """The members of each cluster in which two tracklets overlap in time."""
        order = np.lexsort((self.tracklets.first, self.tracklets.scene, labels))
        one, other = order[:-1], order[1:]
        # of the tracklets of a scene in the order of their first frames two overlap only if two neighbors do
        clash = (labels[one] == labels[other]) & (labels[one] != NOISE) & self.tracklets.overlap(one, other)
        for cluster in np.unique(labels[one[clash]]):
            yield np.flatnonzero(labels == cluster)

    @staticmethod
    def _parts(cosines: np.ndarray, overlap: np.ndarray) -> list[list[int]]:
        """Parts of a cluster without overlap, the largest first."""
        parts: list[list[int]] = []
        for at in np.argsort(-overlap.sum(1), kind="stable"):
            free = [part for part in parts if not overlap[at, part].any()]
            if free:
                max(free, key=lambda part: cosines[at, part].mean()).append(at)
            else:
                parts.append([at])
        return sorted(parts, key=len, reverse=True)
