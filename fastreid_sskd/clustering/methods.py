"""Clustering methods by name (SSKD.CLUSTER.METHOD)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .dbscan import NOISE, dbscan
from .features import UnitRows
from .pairs import PairDistances

#: what a method may work on; see `ClusterProblem`
USES = ("radius", "distances", "features")


@dataclass(frozen=True)
class ClusterProblem:
    """What a clustering method may use.

    Attributes:
        rows: the features.
        pairs: Jaccard distances, each pair once; for a method that uses "radius" at least all those <= eps, for
            "distances" all below 1, for "features" None.
        eps: the radius; None for methods that have none.
        min_samples: images that make a core or a cluster.
        num_clusters: for methods that are told; 0: not given.
        seed: of methods that draw, >= 0.
    """

    rows: UnitRows
    pairs: PairDistances | None
    eps: float | None
    min_samples: int
    num_clusters: int = 0
    seed: int = 0


@dataclass(frozen=True)
class ClusteringMethod:
    """A registered method.

    Attributes:
        label: function(problem) -> (N,) int64 labels, 0..C-1 and -1 for noise, every number in use.
        uses: "radius" (an eps and the pairs within it), "distances" (all pairs, no eps) or "features" (no pairs).
    """

    label: Callable[[ClusterProblem], np.ndarray]
    uses: str


CLUSTERING_METHODS: dict[str, ClusteringMethod] = {}


def register_clustering(name: str, uses: str = "radius") -> Callable[[Callable], Callable]:
    """Register a clustering method, function(problem) -> labels, under `SSKD.CLUSTER.METHOD: name`.

    Args:
        uses: what the method works on, one of `USES`; what it does not use is not computed.

    Raises:
        ValueError: the name is taken, or an unknown `uses`.
    """
    if uses not in USES:
        raise ValueError(f"uses must be one of {', '.join(USES)}, got {uses!r}")

    def register(label: Callable) -> Callable:
        if name in CLUSTERING_METHODS:
            raise ValueError(f"clustering method {name!r} is registered twice: choose another name")
        CLUSTERING_METHODS[name] = ClusteringMethod(label, uses)
        return label

    return register


def numbered(labels: np.ndarray) -> np.ndarray:
    """The same clusters as int64 numbers 0..C-1 in the order of their first images; negative labels become -1."""
    labels = np.asarray(labels)
    out = np.full(len(labels), NOISE, dtype=np.int64)
    kept = np.flatnonzero(labels >= 0)
    _, first, cluster = np.unique(labels[kept], return_index=True, return_inverse=True)
    out[kept] = np.argsort(np.argsort(first))[cluster]
    return out


@register_clustering("dbscan")
def _dbscan(problem: ClusterProblem) -> np.ndarray:
    return dbscan(problem.pairs.symmetric(problem.eps), problem.eps, problem.min_samples)
