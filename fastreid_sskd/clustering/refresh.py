"""The pseudo-label refresh: features -> k-NN -> Jaccard distances -> eps -> clusters -> centroids."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from .centroids import centroids_of_rows
from .eps import eps_of_pairs, most_pairs_averaged, rho_from_pairs_per_image
from .features import UnitRows
from .jaccard import list_sizes, pairs_from_neighbors, search_neighbors
from .methods import CLUSTERING_METHODS, ClusterProblem
from .report import ClusterReport

logger = logging.getLogger("fastreid.sskd.clustering")

#: image counts for which the authors' rho is known to give a sensible eps: it grows with N
RHO_RANGE = (10_000, 20_000)


class PseudoLabelError(ValueError):
    """The clusters cannot be trained on."""


@dataclass(frozen=True)
class PseudoLabels:
    """Result of one refresh.

    Attributes:
        labels: (N,) int64, 0..C-1, -1 for images that take no part.
        centroids: (C, d) float32, normalised; numpy or torch as the features were.
        eps: the eps in use (keep it for later epochs where the method says so).
        report: sizes, noise and change since the last refresh.
        seconds: wall seconds per stage: knn, jaccard, eps, dbscan, centroids.
    """

    labels: np.ndarray
    centroids: np.ndarray | torch.Tensor
    eps: float
    report: ClusterReport
    seconds: dict[str, float]


def pseudo_labels(
    features: np.ndarray | torch.Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    variant: str = "sskd",
    eps: float | None = None,
    rho: float | None = None,
    pairs_per_image: float | None = None,
    min_samples: int = 4,
    method: str = "dbscan",
    knn: str = "auto",
    device: str | torch.device | None = None,
    previous: np.ndarray | None = None,
) -> PseudoLabels:
    """Cluster the target features; the same labels as the dense implementations, in memory O(N * k).

    Args:
        features: (N, d), N >= 2; see `jaccard_distance`, as for k1, k2, variant, knn and device.
        eps, rho, pairs_per_image: exactly one of them: eps itself, or how to estimate it (see `estimate_eps`).
        min_samples: neighbours within eps, itself included, that make an image a core.
        method: name in `CLUSTERING_METHODS`.
        previous: (N,) labels of the last refresh, for the report's changed share.

    Raises:
        ValueError: not exactly one of eps, rho and pairs_per_image; bad features or names.

    All-noise labels are returned as they are: `check_usable` is what refuses them.
    """
    if sum(given is not None for given in (eps, rho, pairs_per_image)) != 1:
        raise ValueError(
            f"give exactly one of eps, rho and pairs_per_image, got eps={eps}, rho={rho}, "
            f"pairs_per_image={pairs_per_image}: see SSKD.CLUSTER.EPS, SSKD.CLUSTER.RHO, SSKD.CLUSTER.PAIRS_PER_IMAGE"
        )
    if method not in CLUSTERING_METHODS:
        known = ", ".join(CLUSTERING_METHODS)
        raise ValueError(f"unknown clustering method {method!r}: SSKD.CLUSTER.METHOD is one of {known}")
    seconds: dict[str, float] = {}
    with _timed(seconds, "knn"):
        rows = UnitRows.from_features(features, device)
        sizes = list_sizes(len(rows), k1, k2, variant)
        keep_smallest = None
        if eps is None:
            rho = _share(rho, pairs_per_image, len(rows))
            keep_smallest = most_pairs_averaged(len(rows), rho)
        neighbors = search_neighbors(rows, sizes, variant, knn=knn)
    with _timed(seconds, "jaccard"):
        pairs = pairs_from_neighbors(
            rows, neighbors, sizes, variant, max_distance=eps, keep_smallest=keep_smallest
        )
    with _timed(seconds, "eps"):
        if eps is None:
            eps = eps_of_pairs(pairs, rho)
    with _timed(seconds, method):
        labels = CLUSTERING_METHODS[method](ClusterProblem(rows, pairs, eps, min_samples))
    with _timed(seconds, "centroids"):
        centroids = centroids_of_rows(rows, labels)
        if isinstance(features, torch.Tensor):
            centroids = torch.from_numpy(centroids).to(features.device)
    return PseudoLabels(
        labels, centroids, float(eps), ClusterReport.from_labels(labels, eps, previous), seconds
    )


def check_usable(result: PseudoLabels) -> None:
    """Refuse labels that nothing can be learned from.

    Raises:
        PseudoLabelError: no cluster, or all images that have one share it.
    """
    report = result.report
    noise = round(report.noise_share * report.num_images)
    at = f" at eps={result.eps:.4g}"
    if report.num_clusters == 0:
        raise PseudoLabelError(
            f"0 clusters{at} (all {report.num_images} images are noise): raise SSKD.CLUSTER.RHO, "
            "SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, lower SSKD.CLUSTER.MIN_SAMPLES, or train the source longer"
        )
    if report.num_clusters == 1:
        raise PseudoLabelError(
            f"1 cluster{at} ({noise} of {report.num_images} images are noise): nothing to tell apart; lower "
            "SSKD.CLUSTER.RHO, SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, or train the source longer"
        )


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


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
