"""The similarity from which two images count as one person, estimated without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fastreid.config import CfgNode
from torch import nn

from ..clustering import ClusterOptions, pseudo_labels
from ..clustering.diagnostics import noise_as_singletons
from ..clustering.features import UnitRows
from ..data.items import unseen_items
from ..engine.pipeline import image_features

#: bins of the cosines in [-1, 1], and pairs that are counted at most: of more, those of evenly taken images
BINS, MOST_PAIRS = 2**15, 2**31
#: pairs of different people above a threshold that make it an estimate and not an accident
LEAST_ABOVE = 10
#: a method that joins people who look alike, and one that splits people; each without a radius to choose
CLUSTERINGS = (
    {"method": "dbscan", "eps": 0.0, "eps_rule": "silhouette", "eps_largest_share": 1.0},
    {"method": "hdbscan"},
)


@dataclass(frozen=True)
class PairCounts:
    """Cosine similarities of the pairs of different people, across cameras where cameras are known.

    Attributes:
        counts: (BINS,) int64, pairs by their cosine in [-1, 1].
        across_cameras: whether pairs under one camera are left out.
    """

    counts: np.ndarray
    across_cameras: bool

    @classmethod
    def of(cls, features, people: Sequence, cameras: Sequence | None = None) -> PairCounts:
        """Count pairs in blocks of rows; memory O(N) beside the features.

        Args:
            features: (N, d), N >= 2, of any length.
            people: (N,) names; images of one name give no pair.
            cameras: (N,) names; fewer than two different ones count as not known.

        Raises:
            TypeError, ValueError: bad features, or another number of names than of images.
        """
        rows = UnitRows.from_features(features).cpu()
        names = [people] if cameras is None or len(set(cameras)) < 2 else [people, cameras]
        if any(len(given) != len(rows) for given in names):
            raise ValueError(f"people and cameras must name one for each of {len(rows)} images")
        numbers = [torch.from_numpy(np.unique(given, return_inverse=True)[1]) for given in names]
        taken = min(len(rows), max(1, MOST_PAIRS // len(rows)))
        chosen = np.linspace(0, len(rows) - 1, taken).astype(np.int64)
        counts = torch.zeros(BINS, dtype=torch.int64)
        everyone = rows.block(0, len(rows))
        for part in np.array_split(chosen, -(-taken // 256)):
            counted = torch.ones(len(part), len(rows), dtype=torch.bool)
            for number in numbers:
                counted &= number[part, None] != number
            cosines = (rows.take(part) @ everyone.T)[counted]
            bins = ((cosines + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
            counts += torch.bincount(bins, minlength=BINS)
        # a pair of two images that are both taken is counted from both ends
        return cls((counts // 2 if taken == len(rows) else counts).numpy(), len(names) > 1)

    @property
    def pairs(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    def rate(self, similarity: float) -> float:
        """The false-match rate of a threshold: the share of these pairs at or above it."""
        first = int(np.ceil((similarity + 1) * (BINS / 2) - 1e-6))
        return float(self.counts[max(first, 0) :].sum() / max(self.pairs, 1))

    def similarity(self, rate: float) -> float:
        """The lowest threshold with at most this false-match rate.

        Raises:
            ValueError: a rate outside of (0, 1), or too few pairs to tell.
        """
        if not 0 < rate < 1:
            raise ValueError(f"a false-match rate lies in (0, 1), e.g. 1e-3; got {rate:g}")
        if rate * self.pairs < LEAST_ABOVE:
            raise ValueError(
                f"a false-match rate of {rate:g} needs {LEAST_ABOVE / rate:,.0f} pairs of different people, "
                f"and these images give {self.pairs:,}: give more images, or a higher rate"
            )
        above = np.cumsum(self.counts[::-1])[::-1]  # at or above each bin's lower end
        return float(np.argmax(np.append(above, 0) <= rate * self.pairs) * (2 / BINS) - 1)


@dataclass(frozen=True)
class Threshold:
    """Where to say "the same person".

    Attributes:
        similarity: cosine in [-1, 1]; pairs at or above it count as one person.
        false_match_rate: the share of pairs of different people that is to be at or above it.
        lowest, highest: the thresholds that ``similarity`` is the mean of; far apart, it is a guess.
        images: how many it was estimated from.
        across_cameras: whether the rate is of pairs under different cameras.
    """

    similarity: float
    false_match_rate: float
    lowest: float
    highest: float
    images: int
    across_cameras: bool

    def __str__(self) -> str:
        kind = "pairs across cameras" if self.across_cameras else "all pairs"
        return (
            f"same person from cosine {self.similarity:.4f} ({self.lowest:.4f} to {self.highest:.4f}), "
            f"false-match rate {self.false_match_rate:g} of {kind}, estimated from {self.images} images "
            "without labels"
        )


def estimate_threshold(
    features: np.ndarray | torch.Tensor,
    false_match_rate: float,
    cameras: Sequence | None = None,
    options: ClusterOptions | None = None,
) -> Threshold:
    """Estimate the threshold with this false-match rate from clusters in place of identities.

    Pairs of images in different clusters stand for pairs of different people. Clusters that join people hide
    their most similar pairs, so the threshold comes out too low. Clusters that split people count pairs of
    one person, and it comes out too high. As many of these as of those cancel. So the mean is taken of two
    thresholds: of DBSCAN at the radius of the highest silhouette, which rather joins, and of HDBSCAN, which
    rather splits. Images without a cluster are people of their own.

    Args:
        features: (N, d) of images that the model was not trained on: training drives the clusters of its own
            images apart, and people it has not seen pass the threshold up to three times as often.
        false_match_rate: in (0, 1), of random pairs of different people.
        cameras: (N,) names; pairs under one camera are left out, and the clusters are of features without
            the cameras' statistics, which would split people by camera.
        options: of the neighbor search, ``min_samples`` and the radii that are tried.

    Raises:
        ValueError: bad features, too few images for the rate, or images that form no two clusters.
    """
    options = options or ClusterOptions()
    found = []
    for clustering in CLUSTERINGS:
        labels = pseudo_labels(features, options.replace(**clustering), cameras=cameras).labels
        if labels.max() < 1:
            raise ValueError(
                f"{len(labels)} images form {labels.max() + 1} clusters by {clustering['method']}, and a "
                "threshold is estimated from the pairs between clusters: give more images of more people"
            )
        counts = PairCounts.of(features, noise_as_singletons(labels), cameras)
        found.append(counts.similarity(false_match_rate))
    return Threshold(
        float(np.mean(found)), false_match_rate, min(found), max(found), len(labels), counts.across_cameras
    )


def exported_threshold(cfg: CfgNode, model: nn.Module, peer: str, false_match_rate: float) -> Threshold:
    """Estimate the threshold of a network as it is exported: one teacher or the ensemble, without flips.

    Args:
        cfg: names the images, see :func:`..data.items.unseen_items`; identities are not read.
        model: see :func:`..export.deployed.deployed`, as for ``peer``.
        false_match_rate: see :func:`estimate_threshold`, also for what is raised.
    """
    items = unseen_items(cfg)
    features = image_features(cfg, model, [item[0] for item in items], peer, flip=False)
    cameras = [str(item[2]) for item in items]
    return estimate_threshold(features, false_match_rate, cameras, ClusterOptions.from_cfg(cfg))
