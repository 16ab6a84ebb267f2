"""Pseudo-labels for the target set: exact k-reciprocal Jaccard clustering in sparse memory."""

from .backends import KNN_BACKENDS, ApproximateOptions, Search, register_knn
from .candidates import Candidates
from .centroids import cluster_centroids
from .compiled import say_when_compiling
from .dbscan import NOISE, dbscan
from .diagnostics import cluster_agreement
from .eps import estimate_eps
from .guards import Limits, PseudoLabelError, check_bounds, check_usable
from .jaccard import VARIANTS, jaccard_distance
from .knn import Neighbors, knn_share, lists_from_candidates, nearest_neighbors
from .methods import CLUSTERING_METHODS, ClusteringMethod, ClusterProblem, register_clustering
from .refresh import PseudoLabels, find_method, labels_again, pseudo_labels, search_neighbors
from .report import ClusterReport, changed_share
from .shares import Share, merge_shares
from .sweep import RadiusSweep, sweep_table

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
