"""Pseudo-labels for the target set: exact k-reciprocal Jaccard clustering in sparse memory."""

from .diagnostics import ClusterReport, changed_share, cluster_agreement
from .eps import estimate_eps, sparse_silhouette, sweep_table
from .jaccard import VARIANTS, jaccard_distance
from .methods import (
    CLUSTERING_METHODS,
    NOISE,
    ClusteringMethod,
    ClusterProblem,
    dbscan,
    find_method,
    register_clustering,
)
from .neighbors import (
    KNN_BACKENDS,
    Candidates,
    Neighbors,
    Search,
    Shard,
    find_candidates,
    lists_from_candidates,
    merge_shards,
    nearest_neighbors,
    register_knn,
)
from .options import ClusterOptions
from .parallel import say_when_compiling
from .refresh import (
    PseudoLabelError,
    PseudoLabels,
    check_options,
    check_usable,
    cluster_centroids,
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
    "Candidates",
    "ClusterOptions",
    "ClusterProblem",
    "ClusterReport",
    "ClusteringMethod",
    "Neighbors",
    "PseudoLabelError",
    "PseudoLabels",
    "Search",
    "Shard",
    "changed_share",
    "check_options",
    "check_usable",
    "cluster_agreement",
    "cluster_centroids",
    "dbscan",
    "estimate_eps",
    "find_candidates",
    "find_method",
    "jaccard_distance",
    "labels_again",
    "lists_from_candidates",
    "merge_shards",
    "nearest_neighbors",
    "pseudo_labels",
    "register_clustering",
    "register_knn",
    "search_neighbors",
    "sparse_silhouette",
    "sweep_table",
]
