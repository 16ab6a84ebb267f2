"""eps for DBSCAN from the distances themselves: the mean of the smallest share of them."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse

from .pairs import PairDistances


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
