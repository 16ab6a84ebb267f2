"""Guards against collapse: what labels are refused, and what is only warned of."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .report import ClusterReport

logger = logging.getLogger("fastreid.sskd.clustering")


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
