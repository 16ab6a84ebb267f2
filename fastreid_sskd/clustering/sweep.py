"""A radius that is chosen without identities: clusters at several radii of one set of distances, and rules to choose by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from .diagnostics import noise_as_singletons
from .pairs import PairDistances
from .report import ClusterReport
from .silhouette import sparse_silhouette

logger = logging.getLogger("fastreid.sskd.clustering")


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
