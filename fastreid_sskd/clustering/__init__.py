"""Pseudo-labels for the target set: exact k-reciprocal Jaccard clustering in sparse memory."""

from .centroids import cluster_centroids
from .dbscan import NOISE, dbscan
from .diagnostics import cluster_agreement
from .eps import estimate_eps
from .jaccard import VARIANTS, jaccard_distance
from .knn import KNN_BACKENDS, Neighbors, exact_knn, register_knn
from .methods import CLUSTERING_METHODS, ClusterProblem, register_clustering
from .refresh import PseudoLabelError, PseudoLabels, check_usable, pseudo_labels
from .report import ClusterReport, changed_share

__all__ = [
    "CLUSTERING_METHODS",
    "KNN_BACKENDS",
    "NOISE",
    "VARIANTS",
    "ClusterProblem",
    "ClusterReport",
    "Neighbors",
    "PseudoLabelError",
    "PseudoLabels",
    "changed_share",
    "check_usable",
    "cluster_agreement",
    "cluster_centroids",
    "dbscan",
    "estimate_eps",
    "exact_knn",
    "jaccard_distance",
    "pseudo_labels",
    "register_clustering",
    "register_knn",
]
