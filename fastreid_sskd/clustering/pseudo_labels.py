"""The pseudo-label refresh: features -> k-NN -> Jaccard distances -> eps -> clusters -> centroids."""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch

from .diagnostics import ClusterReport
from .eps import Radius, RadiusSweep, eps_of_pairs, most_pairs_averaged, rho_from_pairs_per_image, sweep_table
from .features import UnitRows
from .jaccard import list_sizes, neighbors_from_candidates, pairs_from_neighbors, search_share
from .methods import CLUSTERING_METHODS, ClusteringMethod, ClusterProblem
from .neighbors import ApproximateOptions, Candidates, Share

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


class PseudoLabelError(ValueError):
    """The clusters cannot be trained on."""

    exit_status = 3  # of the command that stops for it


@dataclass(frozen=True)
class Limits:
    """How much noise, and how large a cluster, is suspicious.

    Attributes:
        max_noise_share: share of images without a cluster, [0, 1]; 1: no limit.
        max_largest_share: share of images in the largest cluster, [0, 1]; 1: no limit.
        collapse: a share above its limit counts as collapse, rather than being warned of.

    Raises:
        ValueError: a share outside [0, 1].
    """

    max_noise_share: float = 1.0
    max_largest_share: float = 1.0
    collapse: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.max_noise_share <= 1 and 0 <= self.max_largest_share <= 1):
            raise ValueError(
                f"limits must be shares in [0, 1], got {self.max_noise_share} and {self.max_largest_share}: see "
                "SSKD.CLUSTER.MAX_NOISE_SHARE and SSKD.CLUSTER.MAX_LARGEST_SHARE"
            )

    def passed(self, report: ClusterReport) -> list[str]:
        """What is above its limit, a sentence each, with what to do about it."""
        found = []
        if report.noise_share > self.max_noise_share:
            found.append(
                f"{report.noise_share:.1%} of {report.num_images} images are noise, more than "
                f"SSKD.CLUSTER.MAX_NOISE_SHARE={self.max_noise_share:g}{_at(report)}: the radius may be too small, or "
                "the source model too far from the target"
            )
        if report.largest_share > self.max_largest_share:
            found.append(
                f"the largest of {report.num_clusters} clusters holds {report.largest_share:.1%} of "
                f"{report.num_images} images, more than SSKD.CLUSTER.MAX_LARGEST_SHARE={self.max_largest_share:g}"
                f"{_at(report)}: identities are merging; the radius may be too large"
            )
        return found


def check_usable(report: ClusterReport, limits: Limits | None = None) -> None:
    """Refuse collapsed labels; warn of shares above their limits.

    Labels have collapsed when there is no cluster (all images are noise), or one (nothing to tell apart), or, where
    `limits.collapse` says so, a share above its limit.

    Args:
        report: of the labels. limits: none when None.

    Raises:
        PseudoLabelError: the labels have collapsed.
    """
    noise = round(report.noise_share * report.num_images)
    if report.num_clusters == 0:
        raise PseudoLabelError(
            f"0 clusters{_at(report)} (all {report.num_images} images are noise): raise SSKD.CLUSTER.RHO, "
            "SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, lower SSKD.CLUSTER.MIN_SAMPLES, or train the source "
            "longer"
        )
    if report.num_clusters == 1:
        raise PseudoLabelError(
            f"1 cluster{_at(report)} ({noise} of {report.num_images} images are noise): nothing to tell apart; lower "
            "SSKD.CLUSTER.RHO, SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, or train the source longer"
        )
    passed = limits.passed(report) if limits is not None else []
    if passed and limits.collapse:
        raise PseudoLabelError("; ".join(passed))
    for sentence in passed:
        logger.warning("%s", sentence)


def check_bounds(eps_min: float, eps_max: float) -> None:
    """Refuse bounds on eps that are negative or exclude everything; 0 is no bound.

    Raises:
        ValueError: they are.
    """
    if eps_min < 0 or eps_max < 0 or (eps_max and eps_min > eps_max):
        raise ValueError(
            f"SSKD.CLUSTER.EPS_MIN={eps_min:g} and SSKD.CLUSTER.EPS_MAX={eps_max:g} must be 0 (no bound) or positive "
            "with EPS_MIN <= EPS_MAX"
        )


def bounded_eps(eps: float, eps_min: float, eps_max: float) -> float:
    """The estimated eps, moved to the nearer of its bounds (0: none) where it lies outside, with a warning."""
    bounded = max(eps, eps_min)
    if eps_max:
        bounded = min(bounded, eps_max)
    if bounded != eps:
        logger.warning(
            "the estimated eps %.4f lies outside SSKD.CLUSTER.EPS_MIN=%g and EPS_MAX=%g: %.4f is used",
            eps, eps_min, eps_max, bounded,
        )  # fmt: skip
    return bounded


def _at(report: ClusterReport) -> str:
    return "" if report.eps is None else f" at eps={report.eps:.4g}"


@numba.njit(cache=True, nogil=True)
def _sums(x, weights, labels, out):
    for i in range(x.shape[0]):
        if labels[i] >= 0:
            for c in range(x.shape[1]):
                out[labels[i], c] += weights[i] * x[i, c]


def cluster_centroids(
    features: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor
) -> np.ndarray | torch.Tensor:
    """Normalised mean of the features of each cluster (the initial classifier rows of an epoch).

    Args:
        features: (N, d), used as they come (normalise them before). labels: (N,) int, 0..C-1, -1 for noise.

    Returns:
        (C, d) float32, numpy or torch as the features are, on their device; (0, d) when all is noise.

    Raises:
        ValueError: lengths differ, or a number in 0..C-1 that no image has.
    """
    is_torch = isinstance(features, torch.Tensor)
    numbers = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if numbers.shape != (len(features),):
        raise ValueError(
            f"labels must be (N,) beside features (N, d), got {numbers.shape} and {tuple(features.shape)}"
        )
    count = int(numbers.max(initial=-1)) + 1
    sizes = np.bincount(numbers[numbers >= 0], minlength=count)
    if (sizes == 0).any():
        raise ValueError(
            f"cluster {int((sizes == 0).argmax())} of {count} has no image: number clusters 0..C-1"
        )
    sums = _cluster_sums(features, np.ones(len(numbers)), numbers, count)
    centroids = _normalised(sums)
    return torch.from_numpy(centroids).to(features.device) if is_torch else centroids


def centroids_of_rows(rows: UnitRows, labels: np.ndarray) -> np.ndarray:
    """`cluster_centroids` of the normalised rows, (C, d) float32."""
    return _normalised(
        _cluster_sums(rows.tensor, rows.inverse_norms, labels, int(labels.max(initial=-1)) + 1)
    )


def _cluster_sums(features, weights: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Weighted sums of the rows of each cluster, (C, d) float64."""
    if isinstance(features, torch.Tensor):
        features = features.detach()
        if features.device.type != "cpu":
            return _cluster_sums_on_device(features, weights, labels, count)
        features = features.float().numpy()
    rows = np.asarray(features, dtype=np.float32)
    sums = np.zeros((count, rows.shape[1]), dtype=np.float64)
    _sums(rows, weights, labels.astype(np.int64, copy=False), sums)
    return sums


def _cluster_sums_on_device(
    features: torch.Tensor, weights: np.ndarray, labels: np.ndarray, count: int
) -> np.ndarray:
    kept = np.flatnonzero(labels >= 0)
    sums = torch.zeros(count, features.shape[1], dtype=torch.float64, device=features.device)
    for start in range(0, len(kept), 8192):
        part = kept[start : start + 8192]
        row, cluster, scale = (
            torch.from_numpy(array).to(features.device)
            for array in (part, labels[part].astype(np.int64), weights[part])
        )
        sums.index_add_(0, cluster, features[row].double() * scale[:, None])
    return sums.cpu().numpy()


def _normalised(sums: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("cd,cd->c", sums, sums))
    return (sums / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
