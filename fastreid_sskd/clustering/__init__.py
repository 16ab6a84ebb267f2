"""Pseudo-labels for the target set: exact k-reciprocal Jaccard clustering in sparse memory."""

from . import parallel
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

parallel.say_when_compiling()
