"""Pseudo-labels for the target set: exact k-reciprocal Jaccard clustering in sparse memory."""

from .diagnostics import ClusterReport, changed_share, cluster_agreement
from .eps import RadiusSweep, estimate_eps, sweep_table
from .jaccard import VARIANTS, jaccard_distance
from .methods import CLUSTERING_METHODS, NOISE, ClusteringMethod, ClusterProblem, dbscan, register_clustering
from .neighbors import (
    KNN_BACKENDS,
    ApproximateOptions,
    Candidates,
    Neighbors,
    Search,
    Share,
    knn_share,
    lists_from_candidates,
    merge_shares,
    nearest_neighbors,
    register_knn,
)
from .parallel import say_when_compiling
from .pseudo_labels import (
    Limits,
    PseudoLabelError,
    PseudoLabels,
    check_bounds,
    check_usable,
    cluster_centroids,
    find_method,
    labels_again,
    pseudo_labels,
    search_neighbors,
)

say_when_compiling()

__all__ = [
    "CLUSTERING_METHODS",
    "KNN_BACKENDS",
    "NOISE",
    "VARIANTS",
    "ApproximateOptions",
    "Candidates",
    "ClusterProblem",
    "ClusterReport",
    "ClusteringMethod",
    "Limits",
    "Neighbors",
    "PseudoLabelError",
    "PseudoLabels",
    "RadiusSweep",
    "Search",
    "Share",
    "changed_share",
    "check_bounds",
    "check_usable",
    "cluster_agreement",
    "cluster_centroids",
    "dbscan",
    "estimate_eps",
    "find_method",
    "jaccard_distance",
    "knn_share",
    "labels_again",
    "lists_from_candidates",
    "merge_shares",
    "nearest_neighbors",
    "pseudo_labels",
    "register_clustering",
    "register_knn",
    "search_neighbors",
    "sweep_table",
]
