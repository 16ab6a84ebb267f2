"""The pseudo-label refresh: features -> k-NN -> Jaccard distances -> eps -> clusters -> centroids."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .approximate import import_faiss
from .diagnostics import ClusterReport
from .eps import (
    Radius,
    bounded_eps,
    choose_radius,
    cluster_at_radii,
    mean_of_smallest,
    most_pairs_averaged,
    ratio_of_pairs,
    sweep_table,
    warn_of_rho,
)
from .features import UnitRows, as_tensor
from .jaccard import list_sizes, pairs_from_neighbors
from .methods import ClusterProblem, check_num_clusters, find_method, import_infomap
from .neighbors import Candidates, Shard, find_candidates, lists_from_candidates
from .options import ClusterOptions
from .tracklets import Apart, TrackletReport

if TYPE_CHECKING:
    from ..data.tracklets import Tracklets

logger = logging.getLogger("fastreid.sskd.clustering")


@dataclass(frozen=True)
class PseudoLabels:
    """Result of one refresh.

    Attributes:
        labels: (N,) int64, 0..C-1, -1 for images that take no part.
        centroids: (C, d) float32, normalised; numpy or torch as the features were.
        eps: the eps in use (keep it for later epochs where the method says so); None for methods without one.
        report: sizes, noise and change since the last refresh.
        seconds: wall seconds per stage: knn, jaccard, eps, the method's name, centroids; those that were
            needed.
        cpu_seconds: CPU seconds of this process per stage, all threads together.
        recall: of an approximate k-NN search, measured on a sample; None where the search was exact.
        sweep: the radii that eps was chosen from, where it was; else empty.
        tracklets: what was done with tracklets; None where images were clustered.
    """

    labels: np.ndarray
    centroids: np.ndarray | torch.Tensor
    eps: float | None
    report: ClusterReport
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    recall: float | None = None
    sweep: tuple[Radius, ...] = ()
    tracklets: TrackletReport | None = None


def pseudo_labels(
    features: np.ndarray | torch.Tensor,
    options: ClusterOptions | None = None,
    *,
    device: str | torch.device | None = None,
    cameras: Sequence | None = None,
    tracklets: Tracklets | None = None,
    previous: np.ndarray | None = None,
    candidates: Candidates | None = None,
    **settings,
) -> PseudoLabels:
    """Cluster the target features; the same labels as the dense implementations, in memory O(N * k).

    Args:
        features: (N, d), N >= 2; see `jaccard_distance`, as for device.
        options: of the method when None; `settings` change single ones, as in the example.
        cameras: (N,) names, whose mean and deviation are taken out of the features that are clustered; the
            centroids are those of the features as they come. See `UnitRows.without_camera_statistics`.
        tracklets: of the images. Their mean features are clustered, those that overlap in time are kept
            apart (see `Apart`), and an image has the label of its tracklet. rho, also that of
            pairs_per_image, is a ratio of their pairs; min_samples of dbscan and infomap counts images, other
            options count tracklets.
        previous: (N,) labels of the last refresh, for the report's changed share.
        candidates: of a k-NN search in several processes: `merge_shards` of each one's `search_neighbors`, of
            the same features and options; the labels are those of a search made here.

    All-noise labels are returned as they are: `check_usable` is what refuses them.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(500, 64))
        >>> result = pseudo_labels(features, pairs_per_image=5, min_samples=3)
        >>> result.labels.shape, result.centroids.shape[1]
        ((500,), 64)
    """
    options = (options or ClusterOptions()).replace(**settings)
    check_options(options)
    if tracklets is not None:  # the same ratio of all pairs, whether they are of images or of tracklets
        share = (len(tracklets) - 1) / max(len(tracklets.of_image) - 1, 1)
        options = options.replace(pairs_per_image=options.pairs_per_image * share)
    method = find_method(options.method)
    clock, pairs, recall = _Clock(), None, None
    with clock.stage(options.method if method.uses == "features" else "knn"):
        given = UnitRows.from_features(features, device)
        rows = _clustered_rows(given, cameras, tracklets)
    label = method.label if tracklets is None else Apart(method.label, tracklets)
    if method.uses != "features":
        with clock.stage("knn"):
            sizes = list_sizes(len(rows), options)
            if candidates is None:
                k, smallest = sizes.search, sizes.need_smallest
                candidates = find_candidates(rows, k, options, need_smallest=smallest)
            neighbors = lists_from_candidates(rows, sizes.search, candidates, options)
            recall = neighbors.recall
            del candidates
        with clock.stage("jaccard"):
            pairs = pairs_from_neighbors(
                rows, neighbors, sizes, **_pairs_needed(options, method.uses, len(rows))
            )
            del neighbors
    sizes = None if tracklets is None else np.bincount(tracklets.of_image)
    problem = ClusterProblem(rows, pairs, None, options, sizes)
    eps, radii = None, ()
    if method.uses == "radius":
        with clock.stage("eps"):
            eps, radii = _radius(problem, label)
    with clock.stage(options.method):
        labels = label(replace(problem, eps=eps))
    of_tracklets = None
    if tracklets is not None:
        of_tracklets = TrackletReport.from_labels(labels, label.split)
        labels = labels[tracklets.of_image]
    with clock.stage("centroids"):
        centroids = _centroids_like(features, given, labels)
    report = ClusterReport.from_labels(labels, eps, previous)
    return PseudoLabels(
        labels, centroids, eps, report, clock.seconds, clock.cpu_seconds, recall, radii, of_tracklets
    )


def _clustered_rows(rows: UnitRows, cameras: Sequence | None, tracklets: Tracklets | None) -> UnitRows:
    """What is clustered: the rows of images, or of tracklets the mean of their images' rows."""
    if cameras is not None:
        rows = rows.without_camera_statistics(cameras)
    if tracklets is not None:
        rows = UnitRows.from_features(_centroids_like(rows.tensor, rows, tracklets.of_image))
    return rows


def _pairs_needed(options: ClusterOptions, uses: str, count: int) -> dict:
    """Arguments of `pair_distances`: which pairs the clustering and its eps can need."""
    if uses != "radius" or (options.eps_rule != "pairs" and not options.eps):
        return {}
    if options.eps:
        return {"max_distance": options.eps}
    warn_of_rho(options, count)
    keep = most_pairs_averaged(count, ratio_of_pairs(options, count))
    return {"keep_smallest": keep, "keep_within": options.eps_min}


def _radius(problem: ClusterProblem, label) -> tuple[float, tuple[Radius, ...]]:
    """eps, given or estimated, and the radii that it was chosen from."""
    options, pairs = problem.options, problem.pairs
    if options.eps:
        return float(options.eps), ()
    if options.eps_rule == "pairs":
        ratio = ratio_of_pairs(options, pairs.num_images)
        return bounded_eps(mean_of_smallest(pairs.distance, pairs.num_images, ratio), options), ()
    radii = cluster_at_radii(pairs, options.eps_radii, lambda eps: label(replace(problem, eps=eps)))
    eps = bounded_eps(choose_radius(radii, options.eps_rule, options.eps_largest_share), options)
    logger.info("the radius by the rule %s: %.4f of\n%s", options.eps_rule, eps, sweep_table(radii))
    return eps, radii


def search_neighbors(
    features: np.ndarray | torch.Tensor,
    shard: Shard,
    options: ClusterOptions | None = None,
    *,
    device: str | torch.device | None = None,
    cameras: Sequence | None = None,
    tracklets: Tracklets | None = None,
    **settings,
) -> Candidates:
    """One process's shard of the k-NN search of `pseudo_labels`, for `merge_shards`.

    Every process gives all N rows, and what `pseudo_labels` is called with; its shard is its own.
    """
    options = (options or ClusterOptions()).replace(**settings)
    rows = _clustered_rows(UnitRows.from_features(features, device), cameras, tracklets)
    sizes = list_sizes(len(rows), options)
    return find_candidates(rows, sizes.search, options, shard=shard, need_smallest=sizes.need_smallest)


def labels_again(
    features: np.ndarray | torch.Tensor, labels: np.ndarray, collapsed: PseudoLabels
) -> PseudoLabels:
    """Earlier labels in place of collapsed ones, with the centroids of the new features under them.

    Args:
        features: (N, d), new. labels: (N,) of the last good refresh.
        collapsed: the refresh to replace; its seconds are kept.
    """
    centroids = _centroids_like(features, UnitRows.from_features(features), labels)
    report = ClusterReport.from_labels(labels, None, previous=labels)
    return replace(collapsed, labels=labels, centroids=centroids, eps=None, report=report, tracklets=None)


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


# ---- centroids -----------------------------------------------------------------------------------


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
    numbers = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if numbers.shape != (len(features),):
        raise ValueError(
            f"labels must be (N,) beside features (N, d), got {numbers.shape} and {tuple(features.shape)}"
        )
    sizes = np.bincount(numbers[numbers >= 0])
    if (sizes == 0).any():
        raise ValueError(
            f"cluster {int((sizes == 0).argmax())} of {len(sizes)} has no image: number clusters 0..C-1"
        )
    tensor = (
        features.detach()
        if isinstance(features, torch.Tensor)
        else as_tensor(np.asarray(features, np.float32))
    )
    return _centroids_like(features, UnitRows(tensor.float(), np.ones(len(numbers)), 0.0), numbers)


def _centroids_like(features, rows: UnitRows, labels: np.ndarray) -> np.ndarray | torch.Tensor:
    """Centroids of the normalised rows, (C, d) float32, of the kind and on the device of the features."""
    kept = np.flatnonzero(labels >= 0)
    device = rows.tensor.device
    sums = torch.zeros(int(labels.max(initial=-1)) + 1, rows.dim, dtype=torch.float64, device=device)
    for start in range(0, len(kept), 512):
        part = kept[start : start + 512]
        row, cluster, scale = (
            torch.from_numpy(array).to(device)
            for array in (part, labels[part].astype(np.int64), rows.inverse_norms[part])
        )
        sums.index_add_(0, cluster, rows.tensor[row].double() * scale[:, None])
    norms = sums.norm(dim=1, keepdim=True)
    centroids = (sums / torch.where(norms > 0, norms, 1.0)).float()
    return centroids.to(features.device) if isinstance(features, torch.Tensor) else centroids.cpu().numpy()


# ---- guards --------------------------------------------------------------------------------------


class PseudoLabelError(ValueError):
    """The clusters cannot be trained on."""

    exit_status = 3  # of the command that stops for it


def check_options(options: ClusterOptions, num_images: int | None = None) -> None:
    """Check the packages that the options need, and what they say about N images where N is given.

    Raises:
        ValueError: no pair to average, or clusters that are not in 2..N.
        ImportError: a package that is needed is not installed.
    """
    uses = find_method(options.method).uses
    if options.method == "infomap":
        import_infomap()
    if options.knn == "faiss" and uses != "features":
        import_faiss()
    if num_images is None:
        return
    UnitRows.from_features(np.ones((num_images, 1), dtype=np.float32))  # refuses too few
    if options.method == "kmeans":
        check_num_clusters(options.num_clusters, num_images)
    if uses != "features":
        list_sizes(num_images, options)
    if uses == "radius" and not options.eps and options.eps_rule == "pairs":
        # no two images at distance 0 would give the most pairs there can be
        mean_of_smallest(np.empty(0), num_images, ratio_of_pairs(options, num_images))


def check_usable(report: ClusterReport, options: ClusterOptions | None = None) -> None:
    """Refuse collapsed labels; warn of ratios above the limits of the options, if any.

    Raises:
        PseudoLabelError: there is no cluster, or one, or, where `on_limit` is "collapse", a ratio is above
            its limit.
    """
    noise = round(report.noise_share * report.num_images)
    at = "" if report.eps is None else f" at eps={report.eps:.4g}"
    if report.num_clusters == 0:
        raise PseudoLabelError(
            f"0 clusters{at} (all {report.num_images} images are noise): raise SSKD.CLUSTER.RHO, "
            "SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, lower SSKD.CLUSTER.MIN_SAMPLES, or train "
            "the source longer"
        )
    if report.num_clusters == 1:
        raise PseudoLabelError(
            f"1 cluster{at} ({noise} of {report.num_images} images are noise): nothing to tell apart; lower "
            "SSKD.CLUSTER.RHO, SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS, or train the source longer"
        )
    if options is None:
        return
    passed = []
    if report.noise_share > options.max_noise_share:
        passed.append(
            f"{report.noise_share:.1%} of {report.num_images} images are noise, more than "
            f"SSKD.CLUSTER.MAX_NOISE_SHARE={options.max_noise_share:g}{at}: the radius may be too small, or "
            "the source model too far from the target"
        )
    if report.largest_share > options.max_largest_share:
        passed.append(
            f"the largest of {report.num_clusters} clusters holds {report.largest_share:.1%} of "
            f"{report.num_images} images, more than "
            f"SSKD.CLUSTER.MAX_LARGEST_SHARE={options.max_largest_share:g}{at}: identities are merging; the "
            "radius may be too large"
        )
    if passed and options.on_limit == "collapse":
        raise PseudoLabelError("; ".join(passed))
    for sentence in passed:
        logger.warning("%s", sentence)
