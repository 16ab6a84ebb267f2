"""k-reciprocal Jaccard distance (Zhong et al., CVPR 2017), exact and sparse, in the two variants in use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from .backends import ApproximateOptions
from .candidates import Candidates
from .encoding import encode
from .features import UnitRows
from .knn import Neighbors, knn_share, lists_from_candidates
from .pairs import PairDistances, pair_distances
from .progress import LogProgress
from .reciprocal import expanded_reciprocal_sets
from .shares import Share

logger = logging.getLogger("fastreid.sskd.clustering")


@dataclass(frozen=True)
class Variant:
    """How a code base reads the paper.

    Attributes:
        lists_hold_self_and_k1: lists have k1 + 1 entries (self and k1 others) rather than k1 (self included).
        distance_over_row_maximum: weights are exp(-D_ij / max_j D_ij) rather than exp(-D_ij); D = 2 - 2 cos.
    """

    lists_hold_self_and_k1: bool
    distance_over_row_maximum: bool


#: SSKD.CLUSTER.VARIANT. sskd: the released SSKD and MMT. faiss: SpCL, OpenUnReID, Cluster-Contrast, fast-reid.
VARIANTS = {
    "sskd": Variant(lists_hold_self_and_k1=True, distance_over_row_maximum=True),
    "faiss": Variant(lists_hold_self_and_k1=False, distance_over_row_maximum=False),
}


@dataclass(frozen=True)
class ListSizes:
    """Entries per list, self included, after cutting at N.

    Attributes:
        full, half: for R(i, k1) and R(i, round(k1 / 2)). expansion: for the mean over the first k2.
        search: what the k-NN search must return.
    """

    full: int
    half: int
    expansion: int

    @property
    def search(self) -> int:
        """Longest list in use."""
        return max(self.full, self.expansion)


def list_sizes(num_images: int, k1: int, k2: int, variant: str) -> ListSizes:
    """How long the lists are for N images.

    Raises:
        ValueError: unknown variant, k1 < 1 or k2 < 1.

    Warns when N cuts the lists: every image is then among every other's neighbours and distances say little.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: SSKD.CLUSTER.VARIANT is one of {', '.join(VARIANTS)}")
    if k1 < 1 or k2 < 1:
        raise ValueError(
            f"k1 and k2 must be at least 1, got k1={k1}, k2={k2}: see SSKD.CLUSTER.K1 and SSKD.CLUSTER.K2"
        )
    with_self = VARIANTS[variant].lists_hold_self_and_k1
    if num_images <= k1:
        warnings.warn(
            f"{num_images} images are not more than k1={k1}: neighbour lists are cut at {num_images}; "
            "lower SSKD.CLUSTER.K1",
            stacklevel=3,
        )
    full = min(num_images, k1 + 1 if with_self else k1)
    half = min(round(k1 / 2) + 1, full)  # Python rounds half to even, as NumPy's around does
    # the sskd variant ranks all images, the faiss variant knows only its k1 neighbours
    expansion = min(k2, num_images if with_self else full)
    return ListSizes(full, half, expansion)


def pairs_from_neighbors(
    rows: UnitRows,
    neighbors: Neighbors,
    sizes: ListSizes,
    variant: str,
    *,
    max_distance: float | None = None,
    keep_smallest: int | None = None,
    keep_within: float = 0.0,
) -> PairDistances:
    """Everything after the k-NN: reciprocal sets, V, query expansion, distances of the pairs that share support.

    max_distance, keep_smallest and keep_within are those of `pair_distances`.
    """
    sets = expanded_reciprocal_sets(rows, neighbors, sizes.full, sizes.half)
    if VARIANTS[variant].distance_over_row_maximum:
        largest_distance = 2 - 2 * neighbors.smallest.astype(np.float64)
    else:
        largest_distance = np.ones(len(rows))
    encoding = encode(sets, neighbors.indices, sizes.expansion, largest_distance)
    return pair_distances(
        encoding,
        max_distance=max_distance,
        keep_smallest=keep_smallest,
        keep_within=keep_within,
        progress=LogProgress("Jaccard distances"),
    )


def search_share(
    rows: UnitRows,
    sizes: ListSizes,
    variant: str,
    *,
    share: Share | None = None,
    knn: str = "auto",
    approximate: ApproximateOptions | None = None,
) -> Candidates:
    """One share (the whole when None) of the k-NN search that `neighbors_from_candidates` needs."""
    need_smallest = VARIANTS[variant].distance_over_row_maximum
    progress = LogProgress("k-NN search")
    return knn_share(
        rows,
        sizes.search,
        share=share,
        backend=knn,
        need_smallest=need_smallest,
        progress=progress,
        approximate=approximate,
    )


def neighbors_from_candidates(
    rows: UnitRows,
    candidates: Candidates,
    sizes: ListSizes,
    variant: str,
    *,
    approximate: ApproximateOptions | None = None,
) -> Neighbors:
    """The k-NN lists that `pairs_from_neighbors` needs."""
    need_smallest = VARIANTS[variant].distance_over_row_maximum
    progress = LogProgress("k-NN search")
    return lists_from_candidates(
        rows, sizes.search, candidates, need_smallest=need_smallest, progress=progress, approximate=approximate
    )


def jaccard_distance(
    features: np.ndarray | torch.Tensor,
    k1: int = 20,
    k2: int = 6,
    *,
    variant: str = "sskd",
    knn: str = "auto",
    approximate: ApproximateOptions | None = None,
    device: str | torch.device | None = None,
    max_distance: float | None = None,
    cameras: Sequence | None = None,
) -> scipy.sparse.csr_matrix:
    """k-reciprocal Jaccard distances below 1 as a sparse matrix; what is not stored is exactly 1.

    Args:
        features: (N, d), N >= 2, numpy array or torch tensor, any real dtype; not modified, normalised inside when
            not unit norm. float32 and contiguous costs no copy.
        k1: neighbours that make the reciprocal sets. k2: images averaged in query expansion, self included; 1: none.
        variant: "sskd" (also MMT's: k1 + 1 entries with self, D over its row's maximum) or "faiss" (SpCL,
            OpenUnReID, Cluster-Contrast, fast-reid: k1 entries with self, softmax of -D).
        knn: "auto", "torch" or "faiss", which give the same lists, or "reduced" and "ivf", which are approximate.
        approximate: options of the k-NN "reduced" and "ivf".
        device: where the k-NN search runs; the tensor's own device when None. The rest runs on the CPU.
        max_distance: store only distances <= this (in float32), e.g. eps where it is known.
        cameras: (N,) names, whose mean and deviation are taken out of the features first.

    Returns:
        (N, N) float32 CSR, symmetric, indices sorted, in [0, 1). The diagonal and pairs at distance 0 are stored
        as explicit zeros: do not call `eliminate_zeros`, which would make them distance 1.

    Raises:
        ValueError: fewer than 2 images, a row that is not finite or all zeros, k1 or k2 < 1, unknown names.

    Neighbours are ordered by (similarity descending, index ascending), self first even among exact duplicates.
    Shares are integers, so a distance does not depend on any order of summation. Memory O(N * k), never N x N.
    """
    rows = UnitRows.from_features(features, device, cameras)
    sizes = list_sizes(len(rows), k1, k2, variant)
    candidates = search_share(rows, sizes, variant, knn=knn, approximate=approximate)
    neighbors = neighbors_from_candidates(rows, candidates, sizes, variant, approximate=approximate)
    return pairs_from_neighbors(rows, neighbors, sizes, variant, max_distance=max_distance).symmetric()
