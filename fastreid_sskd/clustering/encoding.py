"""V: each image as a sparse vector of shares over its reciprocal set, in integers so that sums are exact."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from .reciprocal import ReciprocalSets

#: about 1 in fixed point: a row's shares sum to this after query expansion, and must fit int32
ONE = 2**30


@dataclass(frozen=True)
class Encoding:
    """V after query expansion, as compressed rows of integers that sum to `total` exactly.

    Sums of integers do not depend on their order, so distances built from them are exact: images that share m of
    their k2 nearest have the same distance wherever they stand, which in floating point rounding would decide.

    Attributes:
        indptr: (N + 1,) int64.
        indices: (E,) int32 columns, in no order.
        values: (E,) int32 shares; a row sums to `total`.
        total: what stands for 1.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    total: int

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Compressed columns: indptr (N + 1,) int64 and entries (E, 2) int32 of (row, share), rows ascending."""
        return _columns(self.indptr, self.indices, self.values)


@numba.njit(cache=True, nogil=True)
def _columns(indptr, indices, values):
    count = indptr.shape[0] - 1
    col_indptr = np.zeros(count + 1, dtype=np.int64)
    for e in range(indices.shape[0]):
        col_indptr[indices[e] + 1] += 1
    for i in range(count):
        col_indptr[i + 1] += col_indptr[i]
    place = col_indptr[:-1].copy()
    entries = np.empty((indices.shape[0], 2), dtype=np.int32)  # side by side: a column is read as one stream
    for i in range(count):
        for e in range(indptr[i], indptr[i + 1]):
            column = indices[e]
            entries[place[column], 0] = i
            entries[place[column], 1] = values[e]
            place[column] += 1
    return col_indptr, entries


@numba.njit(cache=True, nogil=True)
def _shares(indptr, similarities, largest_distance, one, out):
    """exp(-D_ij / largest_distance_i) as shares of `one`; what rounding down leaves goes to the row itself."""
    for i in range(indptr.shape[0] - 1):
        start, stop = indptr[i], indptr[i + 1]
        total = np.int64(0)
        weights = np.empty(stop - start, dtype=np.int64)
        for e in range(start, stop):
            distance = 2.0 - 2.0 * np.float64(similarities[e])
            # all rows equal: every distance is 0 and so is the largest
            ratio = distance / largest_distance[i] if largest_distance[i] > 0.0 else 0.0
            weights[e - start] = np.int64(np.rint(np.exp(-ratio) * 2.0**30))
            total += weights[e - start]
        left = one
        for e in range(start, stop):
            share = weights[e - start] * one // total
            out[e] = share
            left -= share
        out[start] += left


@numba.njit(cache=True, nogil=True)
def _query_expansion(neighbors, k2, indptr, members, shares, out_indptr, out_indices, out_values):
    """Sum of V over the first k2 entries of each list; with an empty `out_indices` only counts."""
    count = neighbors.shape[0]
    fill = out_indices.shape[0] > 0
    place_of = np.empty(count, dtype=np.int64)
    stamp = np.full(count, -1, dtype=np.int32)
    for i in range(count):
        place = out_indptr[i] if fill else 0
        for p in range(k2):
            r = neighbors[i, p]
            for e in range(indptr[r], indptr[r + 1]):
                j = members[e]
                if stamp[j] != i:
                    stamp[j] = i
                    if fill:
                        place_of[j] = place
                        out_indices[place] = j
                        out_values[place] = 0
                    place += 1
                if fill:
                    out_values[place_of[j]] += shares[e]
        if not fill:
            out_indptr[i + 1] = place


def encode(sets: ReciprocalSets, neighbors: np.ndarray, k2: int, largest_distance: np.ndarray) -> Encoding:
    """V_ij = exp(-D_ij / largest_distance_i) over R*(i), normalised, then averaged over the first k2 of each list.

    Args:
        sets: R*(i) with similarities.
        neighbors: (N, >= k2) int32 lists, self first.
        k2: lists averaged; 1 leaves V as it is.
        largest_distance: (N,) float64 divisor of D in the exponent (1 for the faiss variant's softmax).
    """
    one = ONE // k2
    shares = np.empty(len(sets.members), dtype=np.int32)
    _shares(sets.indptr, sets.similarities, largest_distance, one, shares)
    if k2 == 1:
        return Encoding(sets.indptr, sets.members, shares, one)
    indptr = np.zeros(len(sets.indptr), dtype=np.int64)
    nothing = np.empty(0, dtype=np.int32)
    _query_expansion(neighbors, k2, sets.indptr, sets.members, shares, indptr, nothing, nothing)
    np.cumsum(indptr, out=indptr)
    indices = np.empty(indptr[-1], dtype=np.int32)
    values = np.empty(indptr[-1], dtype=np.int32)
    _query_expansion(neighbors, k2, sets.indptr, sets.members, shares, indptr, indices, values)
    return Encoding(indptr, indices, values, one * k2)
