"""Clustering methods by name (SSKD.CLUSTER.METHOD): dbscan, hdbscan, kmeans, infomap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from ..refusals import optional

if TYPE_CHECKING:
    from .features import UnitRows
    from .jaccard import PairDistances
    from .options import ClusterOptions

#: label of an image that belongs to no cluster
NOISE = -1
#: what a method may work on; see `ClusteringMethod`
USES = ("radius", "distances", "features")
#: hdbscan: stands for a distance of 0, which a sparse graph takes for no edge; below any other distance of
#: two images
ALMOST_ZERO = 1e-12


@dataclass(frozen=True)
class ClusterProblem:
    """What a clustering method may use.

    Attributes:
        rows, options: the features; min_samples, num_clusters, seed.
        pairs: Jaccard distances, each pair once; for a method that uses "radius" at least all those <= eps,
            for "distances" all below 1, for "features" None.
        eps: the radius; None for methods that have none.
        sizes: (N,) int, images of each row, where rows are tracklets; None: one each.
    """

    rows: UnitRows
    pairs: PairDistances | None
    eps: float | None
    options: ClusterOptions
    sizes: np.ndarray | None = None


@dataclass(frozen=True)
class ClusteringMethod:
    """A registered method.

    Attributes:
        label: function(problem) -> (N,) int64 labels, 0..C-1 and -1 for noise, every number in use.
        uses: "radius" (an eps and the pairs within it), "distances" (all pairs, no eps) or "features" (no
            pairs).
    """

    label: Callable[[ClusterProblem], np.ndarray]
    uses: str


CLUSTERING_METHODS: dict[str, ClusteringMethod] = {}


def register_clustering(name: str, uses: str = "radius") -> Callable[[Callable], Callable]:
    """Register a clustering method, function(problem) -> labels, under `SSKD.CLUSTER.METHOD: name`.

    What it does not use, of `USES`, is not computed.

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


def find_method(method: str) -> ClusteringMethod:
    """The registered clustering method of this name.

    Raises:
        ValueError: there is none.
    """
    if method not in CLUSTERING_METHODS:
        known = ", ".join(CLUSTERING_METHODS)
        raise ValueError(f"unknown clustering method {method!r}: SSKD.CLUSTER.METHOD is one of {known}")
    return CLUSTERING_METHODS[method]


def numbered(labels: np.ndarray) -> np.ndarray:
    """Number clusters 0..C-1 in the order of their first images; negative labels become -1."""
    labels = np.asarray(labels)
    out = np.full(len(labels), NOISE, dtype=np.int64)
    kept = np.flatnonzero(labels >= 0)
    _, first, cluster = np.unique(labels[kept], return_index=True, return_inverse=True)
    out[kept] = np.argsort(np.argsort(first))[cluster]
    return out


# ---- dbscan --------------------------------------------------------------------------------------


@register_clustering("dbscan")
def _dbscan(problem: ClusterProblem) -> np.ndarray:
    distance = problem.pairs.symmetric(problem.eps)
    return dbscan(distance, problem.eps, problem.options.min_samples, problem.sizes)


def dbscan(
    distance: scipy.sparse.spmatrix | np.ndarray,
    eps: float,
    min_samples: int = 4,
    sizes: np.ndarray | None = None,
) -> np.ndarray:
    """DBSCAN (Ester et al., KDD 1996) of distances, with the labels of scikit-learn's.

    Args:
        distance: (N, N), symmetric; sparse as `jaccard_distance` gives it (what is not stored is no neighbor,
            the diagonal apart; stored zeros are neighbors), or dense. Not modified.
        eps: largest distance of neighbors, > 0, compared in the dtype of the distances. It does not bound the
            distance of two images of one cluster.
        min_samples: a core image has at least this many neighbors, itself included.
        sizes: (N,) int, how many each counts as; None: one.

    Returns:
        (N,) int64, 0..C-1 in the order of each cluster's first core image, -1 for noise. An image that is no
        core takes the smallest label among its core neighbors.

    Raises:
        ValueError: not square, eps not a positive number, min_samples < 1.
    """
    if len(distance.shape) != 2 or distance.shape[0] != distance.shape[1]:
        raise ValueError(f"distance must be (N, N), got shape {tuple(distance.shape)}")
    if not eps > 0 or not np.isfinite(eps):
        raise ValueError(f"eps must be a positive number, got {eps}: see SSKD.CLUSTER.EPS")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples}: see SSKD.CLUSTER.MIN_SAMPLES")
    if not distance.shape[0]:
        return np.empty(0, dtype=np.int64)
    from sklearn.cluster import DBSCAN  # slow to import
    from sklearn.neighbors import sort_graph_by_row_values

    if scipy.sparse.issparse(distance):
        distance = sort_graph_by_row_values(distance.tocsr(), copy=True, warn_when_not_sorted=False)
    model = DBSCAN(eps=float(eps), min_samples=min_samples, metric="precomputed")
    return model.fit_predict(distance, sample_weight=sizes)


# ---- hdbscan -------------------------------------------------------------------------------------


@register_clustering("hdbscan", uses="distances")
def hdbscan(problem: ClusterProblem) -> np.ndarray:
    """Clusters of any density, without a radius, of at least min_samples images; memory O(pairs below 1)."""
    return hdbscan_labels(problem.pairs.symmetric(), problem.options.min_samples)


def hdbscan_labels(distance: scipy.sparse.csr_matrix, min_samples: int) -> np.ndarray:
    """HDBSCAN (Campello et al., 2013) of distances of which those not stored are 1, by scikit-learn.

    As of the dense matrix, but that images which only a distance of 1 connects to a cluster are noise: there
    they fall to whichever cluster the order of equal edges gives them. Elsewhere too HDBSCAN's labels depend
    on that order where distances tie, which core distances make them do.

    Args:
        distance: (N, N) symmetric CSR, diagonal and zeros stored; not modified.
        min_samples: images of a cluster, and of a core distance.
    """
    from sklearn.cluster import HDBSCAN  # slow to import

    count, smallest = distance.shape[0], max(min_samples, 2)
    core = np.flatnonzero(np.diff(distance.indptr) >= min_samples)  # whose core distance is below 1
    component = csgraph.connected_components(distance[core][:, core], directed=False)[1]
    noise = np.ones(count, dtype=bool)
    noise[core] = np.bincount(component)[component] < smallest
    if noise.all():
        return np.full(count, NOISE, dtype=np.int64)
    graph = complete_graph(distance, min_samples)
    clusterer = HDBSCAN(min_cluster_size=smallest, min_samples=min_samples, metric="precomputed", copy=False)
    return numbered(np.where(noise, NOISE, clusterer.fit_predict(graph)))


def complete_graph(distance: scipy.sparse.csr_matrix, min_samples: int) -> scipy.sparse.csr_matrix:
    """Add as many missing edges, all of length 1, as the dense minimum spanning tree needs.

    Distances that are not stored are 1, the largest there is. Of them a minimum spanning tree needs one edge
    between neighboring components, and a core distance (that of the min_samples-th nearest, the image itself
    counted) one entry for each of the min_samples that is missing.

    Returns:
        (N, N) float64 CSR, symmetric, connected, at least min(min_samples, N) entries a row, no stored zeros.
    """
    count = distance.shape[0]
    graph = distance.astype(np.float64)
    graph.data[graph.data == 0] = ALMOST_ZERO
    of_component = csgraph.connected_components(graph, directed=False)[1]
    first = np.unique(of_component, return_index=True)[1]
    row, column = [first[:-1]], [first[1:]]
    for i in np.flatnonzero(np.diff(graph.indptr) < min_samples):
        missing = np.setdiff1d(
            np.arange(min(min_samples * 2, count)), graph.indices[graph.indptr[i] : graph.indptr[i + 1]]
        )[: min_samples - (graph.indptr[i + 1] - graph.indptr[i])]
        row.append(np.full(len(missing), i))
        column.append(missing)
    if not sum(map(len, row)):
        return graph
    row, column = np.concatenate(row), np.concatenate(column)
    pairs = np.unique(np.stack([np.minimum(row, column), np.maximum(row, column)], 1), axis=0)
    known = np.asarray(graph[pairs[:, 0], pairs[:, 1]]).ravel()
    row, column = pairs[known == 0].T
    added = scipy.sparse.coo_matrix((np.ones(len(row)), (row, column)), shape=graph.shape)
    graph = (graph + added + added.T).tocsr()
    graph.sort_indices()
    return graph


# ---- kmeans --------------------------------------------------------------------------------------


def check_num_clusters(num_clusters: int, num_images: int) -> None:
    """Refuse a number of clusters that k-means cannot find."""
    if not 2 <= num_clusters <= num_images:
        raise ValueError(
            f"k-means needs a number of clusters in 2..{num_images} (images), got {num_clusters}: set "
            "SSKD.CLUSTER.NUM_CLUSTERS"
        )


@register_clustering("kmeans", uses="features")
def kmeans(problem: ClusterProblem) -> np.ndarray:
    """Mini-batch k-means (Sculley, WWW 2010) of the unit features; no noise, the same for the same seed.

    A cluster that ends up without images is left out.
    """
    from sklearn.cluster import MiniBatchKMeans  # slow to import

    count, clusters = len(problem.rows), problem.options.num_clusters
    check_num_clusters(clusters, count)
    clusterer = MiniBatchKMeans(
        clusters, batch_size=max(1024, 2 * clusters), n_init=1, random_state=problem.options.seed
    )
    return numbered(clusterer.fit_predict(problem.rows.block(0, count).cpu().numpy()))


# ---- infomap -------------------------------------------------------------------------------------


def import_infomap() -> type:
    """The package's class Infomap."""
    refusal = (
        "SSKD.CLUSTER.METHOD is 'infomap', whose package is not installed: pip install infomap (GPL-3.0)"
    )
    return optional("infomap", f"{refusal}, or set it to 'dbscan'").Infomap


@register_clustering("infomap")
def infomap(problem: ClusterProblem) -> np.ndarray:
    """Modules (Rosvall and Bergstrom, PNAS 2008) of the graph of pairs with J <= eps, weighted 1 - J.

    Modules below min_samples images are noise.
    """
    infomap_class = import_infomap()
    pairs = problem.pairs.within(problem.eps)
    labels = np.full(pairs.num_images, NOISE, dtype=np.int64)
    if not len(pairs.i):
        return labels
    search = infomap_class(silent=True, two_level=True, seed=problem.options.seed + 1, num_trials=1)
    order = np.lexsort((pairs.j, pairs.i))  # the order of links would change what the seed draws
    weight = 1 - pairs.distance.astype(np.float64)
    search.add_links([*zip(pairs.i[order].tolist(), pairs.j[order].tolist(), weight[order].tolist())])
    result = search.run()
    # infomap 2.16 gives a result that is to be asked; before, the search itself is
    modules = result.modules() if hasattr(result, "modules") else search.get_modules()
    for image, module in dict(modules).items():
        labels[image] = module
    found = labels >= 0
    sizes = np.bincount(labels[found], None if problem.sizes is None else problem.sizes[found])
    labels[found & (sizes[labels] < problem.options.min_samples)] = NOISE
    return numbered(labels)
