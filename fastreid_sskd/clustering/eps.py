"""eps for DBSCAN: the method's mean of the smallest distances, or clusters at several radii."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse

from .diagnostics import ClusterReport, noise_as_singletons
from .jaccard import PairDistances
from .methods import NOISE
from .options import ClusterOptions

logger = logging.getLogger("fastreid.sskd.clustering")

#: image counts for which the authors' rho is known to give a sensible eps: it grows with N
RHO_RANGE = (10_000, 20_000)
#: ratio of the highest silhouette that still belongs to its plateau
PLATEAU = 0.95


# ---- the method's rule ---------------------------------------------------------------------------


def estimate_eps(
    distance: scipy.sparse.spmatrix | np.ndarray, rho: float = 1.6e-3, *, pairs_per_image: float | None = None
) -> float:
    """Mean of the smallest `rho` of the non-zero distances of the strict upper triangle.

    Args:
        distance: (N, N) symmetric; sparse as `jaccard_distance` gives it (entries not stored count as 1,
            stored zeros as 0), or dense.
        rho: ratio in (0, 1], rounded to the nearest count. It means rho * N / 2 pairs per image, so eps grows
            with N; the authors' 1.6e-3 suits 10,000 to 20,000 images.
        pairs_per_image: instead of rho, the number of pairs per image whose distances are averaged.

    Raises:
        ValueError: not square, rho outside (0, 1], or a ratio that rounds to 0 pairs.

    Pairs at distance 0 (equal neighbor lists) do not count. Whether rounding makes such a pair 0 or 5e-7
    depends on the order of summation in the dense implementations, so eps agrees with theirs to about 1e-2
    only.
    """
    count = distance.shape[0]
    if len(distance.shape) != 2 or distance.shape[1] != count or count < 2:
        raise ValueError(f"distance must be (N, N) with N >= 2, got shape {tuple(distance.shape)}")
    if pairs_per_image is not None:
        rho = 2 * pairs_per_image / (count - 1)
    if scipy.sparse.issparse(distance):
        csr = distance.tocsr()
        row = np.repeat(np.arange(count, dtype=np.int32), np.diff(csr.indptr))
        stored = csr.data[csr.indices > row]
    else:
        stored = np.asarray(distance)[~np.tri(count, dtype=bool)]
    return mean_of_smallest(stored, count, rho)


def ratio_of_pairs(options: ClusterOptions, num_images: int) -> float:
    """rho, given or from the pairs per image: 2 * pairs / (N - 1)."""
    return 2 * options.pairs_per_image / (num_images - 1) if options.pairs_per_image else options.rho


def warn_of_rho(options: ClusterOptions, num_images: int) -> None:
    """Warn of a rho that was made for another number of images."""
    if not options.pairs_per_image and not RHO_RANGE[0] <= num_images <= RHO_RANGE[1]:
        logger.warning(
            "rho=%g averages %.1f pairs per image at %d images, and eps grows with their number: outside %d "
            "to %d images SSKD.CLUSTER.PAIRS_PER_IMAGE or SSKD.CLUSTER.EPS say the same at any size",
            options.rho, options.rho * (num_images - 1) / 2, num_images, *RHO_RANGE,
        )  # fmt: skip


def most_pairs_averaged(num_images: int, rho: float) -> int:
    """How many distances `rho` of those of N images are where none is zero; ValueError outside (0, 1]."""
    if not 0 < rho <= 1:
        raise ValueError(
            f"rho={rho:g} is not a ratio in (0, 1] of the pairs of {num_images} images: "
            "change SSKD.CLUSTER.RHO or SSKD.CLUSTER.PAIRS_PER_IMAGE"
        )
    return math.ceil(rho * (num_images * (num_images - 1) // 2))


def mean_of_smallest(stored: np.ndarray, num_images: int, rho: float) -> float:
    """Mean of the smallest `rho` of the non-zero distances of N images.

    Args:
        stored: (P,) distances of the strict upper triangle that are below 1; those not given count as 1.
        num_images, rho: as for `estimate_eps`, as are the errors.
    """
    most_pairs_averaged(num_images, rho)  # refuses a rho out of range
    nonzero = stored[stored > 0]
    candidates = num_images * (num_images - 1) // 2 - (len(stored) - len(nonzero))
    averaged = round(rho * candidates)
    if averaged == 0:
        raise ValueError(
            f"the smallest {rho:g} of {candidates} non-zero distances of {num_images} images rounds to 0 "
            "pairs: raise SSKD.CLUSTER.RHO or SSKD.CLUSTER.PAIRS_PER_IMAGE, or set SSKD.CLUSTER.EPS"
        )
    beyond = max(averaged - len(nonzero), 0)  # of these each counts as 1
    within = averaged - beyond
    if 0 < within < len(nonzero):
        nonzero = np.partition(nonzero, within - 1)[:within]
    return float((nonzero.sum(dtype=np.float64) + beyond) / averaged)


def bounded_eps(eps: float, options: ClusterOptions) -> float:
    """Move an estimated eps to the nearer of its bounds (0: none), with a warning."""
    bounded = max(eps, options.eps_min)
    if options.eps_max:
        bounded = min(bounded, options.eps_max)
    if bounded != eps:
        logger.warning(
            "the estimated eps %.4f lies outside SSKD.CLUSTER.EPS_MIN=%g and EPS_MAX=%g: %.4f is used",
            eps, options.eps_min, options.eps_max, bounded,
        )  # fmt: skip
    return bounded


# ---- clusters at several radii -------------------------------------------------------------------


@dataclass(frozen=True)
class Radius:
    """The clusters at one radius.

    Attributes:
        eps: the radius. clusters: C.
        noise_share, largest_share: ratios of all images without a cluster and in the largest, [0, 1].
        silhouette: mean over all images, noise counts 0; see `sparse_silhouette`.
        agreement: mean adjusted Rand index of these labels with those of the next smaller and the next larger
            radius, each noise image a cluster of its own.
    """

    eps: float
    clusters: int
    noise_share: float
    largest_share: float
    silhouette: float
    agreement: float


def _plateau(radii: Sequence[Radius]) -> Radius:
    """Far end of the silhouette's flat top: at its peak many images are left out, which count 0."""
    highest = max(radius.silhouette for radius in radii)
    least = highest - (1 - PLATEAU) * abs(highest)
    return [radius for radius in radii if radius.silhouette >= least][-1]


#: SSKD.CLUSTER.EPS_RULE but "pairs": what is chosen of ascending radii; of equals the smallest
RULES: dict[str, Callable[[Sequence[Radius]], Radius]] = {
    "plateau": _plateau,
    "silhouette": lambda radii: max(radii, key=lambda radius: radius.silhouette),
    "agreement": lambda radii: max(radii, key=lambda radius: radius.agreement),
    "largest": lambda radii: radii[-1],
}


def cluster_at_radii(
    pairs: PairDistances, radii: Sequence[float], label: Callable[[float], np.ndarray]
) -> tuple[Radius, ...]:
    """The clusters at two or more ascending radii: `label` maps each to (N,) labels, -1 for noise.

    The silhouette needs all pairs at distances below 1.
    """
    from sklearn.metrics import adjusted_rand_score  # slow to import, and few runs need it

    labels = [label(radius) for radius in radii]
    alone = [noise_as_singletons(found) for found in labels]
    steps = [adjusted_rand_score(one, other) for one, other in pairwise(alone)]
    distances, found = pairs.symmetric(), []
    for i, (eps, numbers) in enumerate(zip(radii, labels, strict=True)):
        report = ClusterReport.from_labels(numbers, eps)
        shares = report.noise_share, report.largest_share
        silhouette = float(sparse_silhouette(distances, numbers).mean())
        agreement = float(np.mean(steps[max(i - 1, 0) : i + 1]))
        found.append(Radius(eps, report.num_clusters, *shares, silhouette, agreement))
    return tuple(found)


def choose_radius(radii: Sequence[Radius], rule: str, largest_share: float) -> float:
    """eps by the rule, of radii with two clusters or more, none of which holds more than `largest_share`.

    Radii beyond the first oversized cluster are left out too. Where none remains, the nearest to being usable
    is taken, with a warning.
    """
    merged = next((i for i, radius in enumerate(radii) if radius.largest_share > largest_share), len(radii))
    usable = [radius for radius in radii[:merged] if radius.clusters >= 2]
    if not usable:
        instead = radii[min(merged, len(radii) - 1)]
        logger.warning(
            "no radius of SSKD.CLUSTER.EPS_RADII has two clusters or more of which none holds more than "
            "EPS_LARGEST_SHARE=%g of the images: %g is used; give smaller radii, or a larger share",
            largest_share, instead.eps,
        )  # fmt: skip
        return instead.eps
    return RULES[rule](usable).eps


def sweep_table(radii: Iterable[Radius | Mapping]) -> str:
    """The radii as text, a line each."""
    rows = [radius if isinstance(radius, Mapping) else asdict(radius) for radius in radii]
    row = "{eps:5.3f}  {clusters:8d}  {noise_share:6.1%}  {largest_share:7.1%}  "
    row += "{silhouette:10.3f}  {agreement:9.3f}"
    lines = ["  eps  clusters   noise  largest  silhouette  agreement"]
    return "\n".join(lines + [row.format(**values) for values in rows])


def sparse_silhouette(distances: scipy.sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """Silhouette of every image (Rousseeuw, 1987): (b - a) / max(a, b), as from the dense distances.

    a is the mean distance to the other images of its cluster, b the smallest mean distance to the images of
    another cluster.

    Args:
        distances: (N, N) symmetric, from `jaccard_distance` without `max_distance`: what is not stored is 1.
        labels: (N,) int, 0..C-1, -1 for noise.

    Returns:
        (N,) float64 in [-1, 1]. 0 for noise, for an image alone in its cluster, and everywhere if there are
        fewer than two clusters: such images neither help nor harm a mean over all.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or distances.shape != (len(labels), len(labels)):
        raise ValueError(
            f"distances must be (N, N) beside labels (N,), got {distances.shape} and {labels.shape}"
        )
    silhouette = np.zeros(len(labels))
    sizes = np.bincount(labels[labels != NOISE])
    if np.count_nonzero(sizes) < 2:
        return silhouette
    inside = np.flatnonzero(labels != NOISE)
    similarity = distances.astype(np.float64)
    similarity.data = 1.0 - similarity.data
    member = scipy.sparse.csr_matrix(
        (np.ones(len(inside)), (inside, labels[inside])), shape=(len(labels), len(sizes))
    )
    sums = (similarity @ member).tocoo()  # of the similarities of image i to the images of cluster c

    own = sums.col == labels[sums.row]
    to_own = np.zeros(len(labels))
    to_own[sums.row[own]] = sums.data[own]
    to_own -= similarity.diagonal()
    nearest = np.zeros(len(labels))  # the largest mean similarity to another cluster
    np.maximum.at(nearest, sums.row[~own], sums.data[~own] / sizes[sums.col[~own]])

    scored = inside[sizes[labels[inside]] > 1]
    a = 1 - to_own[scored] / (sizes[labels[scored]] - 1)
    b = 1 - nearest[scored]
    largest = np.maximum(a, b)
    silhouette[scored] = np.divide(b - a, largest, out=np.zeros(len(scored)), where=largest > 0)
    return silhouette
