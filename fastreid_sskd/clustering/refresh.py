"""The pseudo-label refresh: features -> k-NN -> Jaccard distances -> eps -> clusters -> centroids."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from . import hdbscan, infomap, kmeans  # noqa: F401  they register their methods
from .backends import ApproximateOptions
from .candidates import Candidates
from .centroids import centroids_of_rows
from .eps import eps_of_pairs, most_pairs_averaged, rho_from_pairs_per_image
from .features import UnitRows
from .guards import bounded_eps, check_bounds
from .jaccard import list_sizes, neighbors_from_candidates, pairs_from_neighbors, search_share
from .methods import CLUSTERING_METHODS, ClusteringMethod, ClusterProblem
from .report import ClusterReport
from .shares import Share
from .sweep import Radius, RadiusSweep, sweep_table

logger = logging.getLogger("fastreid.sskd.clustering")

#: image counts for which the authors' rho is known to give a sensible eps: it grows with N
RHO_RANGE = (10_000, 20_000)


@dataclass(frozen=True)
class PseudoLabels:
    """Result of one refresh.

    Attributes:
        labels: (N,) int64, 0..C-1, -1 for images that take no part.
        centroids: (C, d) float32, normalised; numpy or torch as the features were.
        eps: the eps in use (keep it for later epochs where the method says so); None for methods without one.
        report: sizes, noise and change since the last refresh.
        seconds: wall seconds per stage: knn, jaccard, eps, the method's name, centroids; those that were needed.
        cpu_seconds: CPU seconds of this process per stage, all threads together.
        recall: of an approximate k-NN search, measured on a sample; None where the search was exact.
        sweep: the radii that eps was chosen from, where it was; else empty.
    """

    labels: np.ndarray
    centroids: np.ndarray | torch.Tensor
    eps: float | None
    report: ClusterReport
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    recall: float | None = None
    sweep: tuple[Radius, ...] = ()


def pseudo_labels(
    features: np.ndarray | torch.Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    variant: str = "sskd",
    eps: float | None = None,
    rho: float | None = None,
    pairs_per_image: float | None = None,
    sweep: RadiusSweep | None = None,
    eps_min: float = 0.0,
    eps_max: float = 0.0,
    min_samples: int = 4,
    method: str = "dbscan",
    num_clusters: int = 0,
    seed: int = 0,
    knn: str = "auto",
    approximate: ApproximateOptions | None = None,
    device: str | torch.device | None = None,
    cameras: Sequence | None = None,
    previous: np.ndarray | None = None,
    candidates: Candidates | None = None,
) -> PseudoLabels:
    """Cluster the target features; the same labels as the dense implementations, in memory O(N * k).

    Args:
        features: (N, d), N >= 2; see `jaccard_distance`, as for k1, k2, variant, knn and device.
        eps, rho, pairs_per_image, sweep: exactly one of them: eps itself, how to estimate it (see `estimate_eps`), or how
            to choose it from several; none for a method that has no radius.
        eps_min, eps_max: bounds that an estimated eps is moved into, 0: none. An eps that is given is not touched.
        min_samples: neighbours within eps, itself included, that make an image a core; for other methods, see there.
        method: name in `CLUSTERING_METHODS`.
        num_clusters: for kmeans. seed: for methods that draw, >= 0.
        approximate: options of the k-NN "reduced" and "ivf".
        cameras: (N,) names, whose mean and deviation are taken out of the features that are clustered; the centroids
            are those of the features as they come. See `UnitRows.without_camera_statistics`.
        previous: (N,) labels of the last refresh, for the report's changed share.
        candidates: of a k-NN search that was shared out: `merge_shares` of each process's `search_neighbors`, of the
            same features and options; the labels are those of a search made here.

    Raises:
        ValueError: not exactly one of eps, rho, pairs_per_image and sweep; bad features, names or bounds.

    All-noise labels are returned as they are: `check_usable` is what refuses them.
    """
    clustering = find_method(method)
    given = sum(value is not None for value in (eps, rho, pairs_per_image, sweep))
    if given != (clustering.uses == "radius"):
        wanted = "exactly one" if clustering.uses == "radius" else "none"
        raise ValueError(
            f"give {wanted} of eps, rho, pairs_per_image and sweep for {method}, got eps={eps}, rho={rho}, "
            f"pairs_per_image={pairs_per_image}, sweep={sweep}: see SSKD.CLUSTER.EPS, SSKD.CLUSTER.RHO, "
            "SSKD.CLUSTER.PAIRS_PER_IMAGE, SSKD.CLUSTER.EPS_RULE"
        )
    check_bounds(eps_min, eps_max)
    clock, pairs, recall, radii = _Clock(), None, None, ()
    with clock.stage(method if clustering.uses == "features" else "knn"):
        given_rows = UnitRows.from_features(features, device)
        rows = given_rows if cameras is None else given_rows.without_camera_statistics(cameras)
    if clustering.uses != "features":
        with clock.stage("knn"):
            sizes = list_sizes(len(rows), k1, k2, variant)
            if candidates is None:
                candidates = search_share(rows, sizes, variant, knn=knn, approximate=approximate)
            neighbors = neighbors_from_candidates(rows, candidates, sizes, variant, approximate=approximate)
            recall = neighbors.recall
            del candidates
        keep_smallest = None
        if clustering.uses == "radius" and eps is None and sweep is None:
            rho = _share(rho, pairs_per_image, len(rows))
            keep_smallest = most_pairs_averaged(len(rows), rho)
        with clock.stage("jaccard"):
            pairs = pairs_from_neighbors(
                rows, neighbors, sizes, variant, max_distance=eps, keep_smallest=keep_smallest, keep_within=eps_min
            )
            del neighbors
    problem = ClusterProblem(rows, pairs, None, min_samples, num_clusters, seed)
    if clustering.uses == "radius":
        with clock.stage("eps"):
            if sweep is not None:
                radii = sweep.cluster(pairs, lambda radius: clustering.label(replace(problem, eps=radius)))
                eps = bounded_eps(sweep.choose(radii), eps_min, eps_max)
                logger.info("the radius by the rule %s: %.4f of\n%s", sweep.rule, eps, sweep_table(radii))
            elif eps is None:
                eps = bounded_eps(eps_of_pairs(pairs, rho), eps_min, eps_max)
    with clock.stage(method):
        labels = clustering.label(replace(problem, eps=eps))
    with clock.stage("centroids"):
        centroids = centroids_of_rows(given_rows, labels)
        if isinstance(features, torch.Tensor):
            centroids = torch.from_numpy(centroids).to(features.device)
    eps = None if eps is None else float(eps)
    report = ClusterReport.from_labels(labels, eps, previous)
    return PseudoLabels(labels, centroids, eps, report, clock.seconds, clock.cpu_seconds, recall, radii)


def labels_again(
    features: np.ndarray | torch.Tensor, labels: np.ndarray, collapsed: PseudoLabels
) -> PseudoLabels:
    """Earlier labels in place of collapsed ones, with the centroids of the new features under them.

    Args:
        features: (N, d), new. labels: (N,) of the last good refresh.
        collapsed: the refresh to replace; its seconds are kept.
    """
    centroids = centroids_of_rows(UnitRows.from_features(features), labels)
    if isinstance(features, torch.Tensor):
        centroids = torch.from_numpy(centroids).to(features.device)
    report = ClusterReport.from_labels(labels, None, previous=labels)
    return replace(collapsed, labels=labels, centroids=centroids, eps=None, report=report)


def search_neighbors(
    features: np.ndarray | torch.Tensor,
    share: Share,
    *,
    k1: int = 20,
    k2: int = 6,
    variant: str = "sskd",
    knn: str = "auto",
    approximate: ApproximateOptions | None = None,
    device: str | torch.device | None = None,
    cameras: Sequence | None = None,
) -> Candidates:
    """One process's share of the k-NN search of `pseudo_labels`, for `merge_shares`.

    Args:
        features: all N rows, the same in every process. share: which part, e.g. Share(rank, world size).
        The others are those that `pseudo_labels` is called with.

    Methods that use "features" only need no search.
    """
    rows = UnitRows.from_features(features, device, cameras)
    sizes = list_sizes(len(rows), k1, k2, variant)
    return search_share(rows, sizes, variant, share=share, knn=knn, approximate=approximate)


def find_method(method: str) -> ClusteringMethod:
    """The registered clustering method of this name.

    Raises:
        ValueError: there is none.
    """
    if method not in CLUSTERING_METHODS:
        known = ", ".join(CLUSTERING_METHODS)
        raise ValueError(f"unknown clustering method {method!r}: SSKD.CLUSTER.METHOD is one of {known}")
    return CLUSTERING_METHODS[method]


def _share(rho: float | None, pairs_per_image: float | None, num_images: int) -> float:
    """rho, given or from the pairs per image; remarks on a rho that was made for another number of images."""
    if rho is None:
        return rho_from_pairs_per_image(pairs_per_image, num_images)
    if not RHO_RANGE[0] <= num_images <= RHO_RANGE[1]:
        logger.warning(
            "rho=%g averages %.1f pairs per image at %d images, and eps grows with their number: outside %d to %d "
            "images SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS say the same at any size",
            rho, rho * (num_images - 1) / 2, num_images, *RHO_RANGE,
        )  # fmt: skip
    return rho


class _Clock:
    """Wall and CPU seconds of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as a part of the stage `name`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - wall
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - cpu
