"""Clustering methods by name (SSKD.CLUSTER.METHOD)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .dbscan import dbscan
from .features import UnitRows
from .pairs import PairDistances


@dataclass(frozen=True)
class ClusterProblem:
    """What a clustering method may use.

    Attributes:
        rows: the features. pairs: Jaccard distances, each pair once; at least all those <= eps.
        eps, min_samples: as for DBSCAN.
    """

    rows: UnitRows
    pairs: PairDistances
    eps: float
    min_samples: int


ClusteringMethod = Callable[[ClusterProblem], np.ndarray]
#: name -> function(problem) -> (N,) int64 labels, 0..C-1 and -1 for noise
CLUSTERING_METHODS: dict[str, ClusteringMethod] = {}


def register_clustering(name: str) -> Callable[[ClusteringMethod], ClusteringMethod]:
    """Register a clustering method under `SSKD.CLUSTER.METHOD: name`."""

    def register(method: ClusteringMethod) -> ClusteringMethod:
        if name in CLUSTERING_METHODS:
            raise ValueError(f"clustering method {name!r} is registered twice: choose another name")
        CLUSTERING_METHODS[name] = method
        return method

    return register


@register_clustering("dbscan")
def _dbscan(problem: ClusterProblem) -> np.ndarray:
    return dbscan(problem.pairs.symmetric(problem.eps), problem.eps, problem.min_samples)
