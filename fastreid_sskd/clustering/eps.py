"""eps for DBSCAN from the distances themselves: the mean of the smallest share of them."""
from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse

from .diagnostics import ClusterReport, noise_as_singletons, sparse_silhouette
from .jaccard import PairDistances

logger = logging.getLogger("fastreid.sskd.clustering")

def rho_from_pairs_per_image(pairs_per_image: float, num_images: int) -> float:
    """The share of all pairs that is `pairs_per_image` * N pairs: 2 * pairs / (N - 1)."""
    return 2 * pairs_per_image / (num_images - 1)


def most_pairs_averaged(num_images: int, rho: float) -> int:
    """The most non-zero distances that a share `rho` of those of N images can be: none of them being zero.

    Raises:
        ValueError: rho outside (0, 1].
    """
    if not 0 < rho <= 1:
        raise ValueError(
            f"rho={rho:g} is not a share in (0, 1] of the pairs of {num_images} images: "
            "change SSKD.CLUSTER.RHO or SSKD.CLUSTER.PAIRS_PER_IMAGE"
        )
    return math.ceil(rho * (num_images * (num_images - 1) // 2))


def mean_of_smallest(stored: np.ndarray, num_images: int, rho: float) -> float:
    """Mean of the smallest `rho` share of the non-zero distances of N images.

    Args:
        stored: (P,) distances of the strict upper triangle that are below 1; those not given count as 1.
        num_images: N. rho: share in (0, 1] of the non-zero distances, rounded to the nearest count.

    Raises:
        ValueError: rho outside (0, 1], or a share that rounds to 0 pairs.
    """
    most_pairs_averaged(num_images, rho)  # refuses a rho out of range
    nonzero = stored[stored > 0]
    pairs = num_images * (num_images - 1) // 2
    candidates = pairs - (len(stored) - len(nonzero))
    share = round(rho * candidates)
    if share == 0:
        raise ValueError(
            f"the smallest {rho:g} of {candidates} non-zero distances of {num_images} images rounds to 0 pairs: "
            "raise SSKD.CLUSTER.RHO or SSKD.CLUSTER.PAIRS_PER_IMAGE, or set SSKD.CLUSTER.EPS"
        )
    beyond = max(share - len(nonzero), 0)  # of these each counts as 1
    within = share - beyond
    if 0 < within < len(nonzero):
        nonzero = np.partition(nonzero, within - 1)[:within]
    return float((nonzero.sum(dtype=np.float64) + beyond) / share)


def estimate_eps(
    distance: scipy.sparse.spmatrix | np.ndarray, rho: float = 1.6e-3, *, pairs_per_image: float | None = None
) -> float:
    """Mean of the smallest `rho` share of the non-zero distances of the strict upper triangle.

    Args:
        distance: (N, N) symmetric; sparse as `jaccard_distance` gives it (entries not stored count as 1, stored
            zeros as 0), or dense.
        rho: share in (0, 1], rounded to the nearest count. It means rho * N / 2 pairs per image, so eps grows with
            N; the authors' 1.6e-3 suits 10,000 to 20,000 images.
        pairs_per_image: instead of rho, the number of pairs per image whose distances are averaged.

    Raises:
        ValueError: not square, rho outside (0, 1], or a share that rounds to 0 pairs.

    Pairs at distance 0 (equal neighbour lists) do not count. Whether rounding makes such a pair 0 or 5e-7 depends
    on the order of summation in the dense implementations, so eps agrees with theirs to about 1e-2 only.
    """
    count = distance.shape[0]
    if len(distance.shape) != 2 or distance.shape[1] != count or count < 2:
        raise ValueError(f"distance must be (N, N) with N >= 2, got shape {tuple(distance.shape)}")
    if pairs_per_image is not None:
        rho = rho_from_pairs_per_image(pairs_per_image, count)
    if scipy.sparse.issparse(distance):
        csr = distance.tocsr()
        row = np.repeat(np.arange(count, dtype=np.int32), np.diff(csr.indptr))
        stored = csr.data[csr.indices > row]
    else:
        stored = np.asarray(distance)[~np.tri(count, dtype=bool)]
    return mean_of_smallest(stored, count, rho)


def eps_of_pairs(pairs: PairDistances, rho: float) -> float:
    """`estimate_eps` on distances that hold each pair once."""
    return mean_of_smallest(pairs.data, pairs.num_images, rho)


@dataclass(frozen=True)
class Radius:
    """The clusters at one radius.

    Attributes:
        eps: the radius. clusters: C.
        noise_share, largest_share: of all images, those without a cluster and those in the largest, [0, 1].
        silhouette: mean over all images, noise counts 0; see `sparse_silhouette`.
        agreement: mean adjusted Rand index of these labels with those of the next smaller and the next larger radius, each
            noise image a cluster of its own.
    """

    eps: float
    clusters: int
    noise_share: float
    largest_share: float
    silhouette: float
    agreement: float


#: share of the highest silhouette that still belongs to its plateau
PLATEAU = 0.95


def _plateau(radii: Sequence[Radius]) -> Radius:
    """The far end of the silhouette's flat top: noise counts 0 in it, so its peak comes at radii that leave many images out."""
    highest = max(radius.silhouette for radius in radii)
    least = highest - (1 - PLATEAU) * abs(highest)
    return [radius for radius in radii if radius.silhouette >= least][-1]


#: what `RadiusSweep` chooses of ascending radii; of equals the smallest
RULES: dict[str, Callable[[Sequence[Radius]], Radius]] = {
    "plateau": _plateau,
    "silhouette": lambda radii: max(radii, key=lambda radius: radius.silhouette),
    "agreement": lambda radii: max(radii, key=lambda radius: radius.agreement),
    "largest": lambda radii: radii[-1],
}


@dataclass(frozen=True)
class RadiusSweep:
    """Choose eps by what the clusters at several radii look like.

    Attributes:
        rule: one of `RULES`: "plateau", the largest radius whose silhouette is at least `PLATEAU` of the highest;
            "silhouette", the highest; "agreement", the highest with the neighbouring radii; "largest", the largest radius.
            Radii with fewer than two clusters, or from the first on at which one is too large, are left out.
        radii: ascending Jaccard distances in (0, 1), two or more.
        largest_share: share of the images that the largest cluster may hold, (0, 1].

    Raises:
        ValueError: an unknown rule, or radii or a share out of range.
    """

    rule: str
    radii: tuple[float, ...]
    largest_share: float

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}: SSKD.CLUSTER.EPS_RULE is one of pairs, {', '.join(RULES)}")
        inside = [0, *self.radii, 1]
        if len(self.radii) < 2 or not all(low < high for low, high in pairwise(inside)):
            raise ValueError(
                f"SSKD.CLUSTER.EPS_RADII must be two or more ascending Jaccard distances in (0, 1), got {list(self.radii)}"
            )
        if not 0 < self.largest_share <= 1:
            raise ValueError(f"SSKD.CLUSTER.EPS_LARGEST_SHARE must be a share in (0, 1], got {self.largest_share}")

    def cluster(self, pairs: PairDistances, label: Callable[[float], np.ndarray]) -> tuple[Radius, ...]:
        """The clusters at every radius.

        Args:
            pairs: all distances below 1, which the silhouette needs.
            label: a radius -> (N,) labels, -1 for noise.
        """
        from sklearn.metrics import adjusted_rand_score  # slow to import, and few runs need it

        labels = [label(radius) for radius in self.radii]
        alone = [noise_as_singletons(found) for found in labels]
        steps = [adjusted_rand_score(one, other) for one, other in pairwise(alone)]
        distances = pairs.symmetric()
        radii = []
        for i, (eps, found) in enumerate(zip(self.radii, labels, strict=True)):
            report = ClusterReport.from_labels(found, eps)
            silhouette = float(sparse_silhouette(distances, found).mean())
            agreement = float(np.mean(steps[max(i - 1, 0) : i + 1]))
            radii.append(
                Radius(eps, report.num_clusters, report.noise_share, report.largest_share, silhouette, agreement)
            )
        return tuple(radii)

    def choose(self, radii: Sequence[Radius]) -> float:
        """eps by the rule; where no radius can be chosen from, the nearest to being usable, with a warning."""
        merged = next((i for i, radius in enumerate(radii) if radius.largest_share > self.largest_share), len(radii))
        usable = [radius for radius in radii[:merged] if radius.clusters >= 2]
        if not usable:
            instead = radii[min(merged, len(radii) - 1)]
            logger.warning(
                "no radius of SSKD.CLUSTER.EPS_RADII has two clusters or more of which none holds more than "
                "EPS_LARGEST_SHARE=%g of the images: %g is used; give smaller radii, or a larger share",
                self.largest_share, instead.eps,
            )  # fmt: skip
            return instead.eps
        return RULES[self.rule](usable).eps


def sweep_table(radii: Iterable[Radius | Mapping]) -> str:
    """The radii, a line each."""
    rows = [radius if isinstance(radius, Mapping) else asdict(radius) for radius in radii]
    lines = ["  eps  clusters   noise  largest  silhouette  agreement"]
    lines += [
        "{eps:5.3f}  {clusters:8d}  {noise_share:6.1%}  {largest_share:7.1%}  {silhouette:10.3f}  {agreement:9.3f}".format(**row)
        for row in rows
    ]
    return "\n".join(lines)
