"""k-reciprocal sets R(i, k) and their expansion R*(i) (Zhong et al., CVPR 2017, section 3.2)."""
from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
import scipy.sparse
import torch

from .features import UnitRows
from .neighbors import (
    ApproximateOptions,
    Candidates,
    Neighbors,
    Share,
    knn_share,
    lists_from_candidates,
    pair_cosines,
)
from .parallel import LogProgress, Progress, in_threads, no_progress

logger = logging.getLogger("fastreid.sskd.clustering")

@dataclass(frozen=True)
class ReciprocalSets:
    """R*(i) of every row as compressed rows: set i is members[indptr[i]:indptr[i + 1]], the row itself first.

    Attributes:
        indptr: (N + 1,) int64.
        members: (E,) int32, in no order but for the first.
        similarities: (E,) float32 cosines of the row with its members.
    """

    indptr: np.ndarray
    members: np.ndarray
    similarities: np.ndarray


@numba.njit(cache=True, nogil=True)
def _reciprocal(neighbors, k, members, lengths):
    """R(i, k): the first k entries of list i whose own first k entries hold i, in the order of list i."""
    for i in range(neighbors.shape[0]):
        length = 0
        for p in range(k):
            j = neighbors[i, p]
            for q in range(k):
                if neighbors[j, q] == i:
                    members[i, length] = j
                    length += 1
                    break
        lengths[i] = length


@numba.njit(cache=True, nogil=True)
def _expand(full, full_lengths, half, half_lengths, indptr, members):
    """R*(i); with an empty `members` only counts, into indptr[i + 1]."""
    count = full.shape[0]
    fill = members.shape[0] > 0
    in_full = np.full(count, -1, dtype=np.int32)
    in_union = np.full(count, -1, dtype=np.int32)
    for i in range(count):
        place = indptr[i] if fill else 0
        for p in range(full_lengths[i]):
            j = full[i, p]
            in_full[j] = i
            in_union[j] = i
            if fill:
                members[place] = j
            place += 1
        for p in range(full_lengths[i]):
            c = full[i, p]
            shared = 0
            for q in range(half_lengths[c]):
                if in_full[half[c, q]] == i:
                    shared += 1
            if 3 * shared > 2 * half_lengths[c]:
                for q in range(half_lengths[c]):
                    j = half[c, q]
                    if in_union[j] != i:
                        in_union[j] = i
                        if fill:
                            members[place] = j
                        place += 1
        if not fill:
            indptr[i + 1] = place


@numba.njit(cache=True, nogil=True)
def _listed_similarities(neighbors, similarities, indptr, members, out):
    """Similarities of members that either list holds; NaN for the others. Returns the number of others."""
    count, k = neighbors.shape
    position = np.empty(count, dtype=np.int32)
    stamp = np.full(count, -1, dtype=np.int32)
    missing = 0
    for i in range(count):
        for p in range(k):
            position[neighbors[i, p]] = p
            stamp[neighbors[i, p]] = i
        for e in range(indptr[i], indptr[i + 1]):
            j = members[e]
            if stamp[j] == i:
                out[e] = similarities[i, position[j]]
                continue
            out[e] = np.nan
            for q in range(k):
                if neighbors[j, q] == i:
                    out[e] = similarities[j, q]
                    break
            if np.isnan(out[e]):
                missing += 1
    return missing


@numba.njit(cache=True, nogil=True)
def _missing_pairs(indptr, members, similarities, entry, first, second):
    found = 0
    for i in range(indptr.shape[0] - 1):
        for e in range(indptr[i], indptr[i + 1]):
            if np.isnan(similarities[e]):
                entry[found], first[found], second[found] = e, i, members[e]
                found += 1


def expanded_reciprocal_sets(rows: UnitRows, neighbors: Neighbors, full: int, half: int) -> ReciprocalSets:
    """R*(i) for every row, with the similarities that the weights need.

    R(i, full) joined with R(c, half) for each c in R(i, full) with |R(c, half) & R(i, full)| > 2/3 |R(c, half)|,
    where R(i, full) is the set before any joining.

    Args:
        full, half: entries of a list that count, self included (k1 + 1 and round(k1 / 2) + 1 in the paper's terms).
    """
    lists = neighbors.indices
    count = len(lists)
    full_members = np.empty((count, full), dtype=np.int32)
    half_members = np.empty((count, half), dtype=np.int32)
    full_lengths = np.empty(count, dtype=np.int32)
    half_lengths = np.empty(count, dtype=np.int32)
    _reciprocal(lists, full, full_members, full_lengths)
    _reciprocal(lists, half, half_members, half_lengths)

    indptr = np.zeros(count + 1, dtype=np.int64)
    _expand(full_members, full_lengths, half_members, half_lengths, indptr, np.empty(0, dtype=np.int32))
    np.cumsum(indptr, out=indptr)
    members = np.empty(indptr[-1], dtype=np.int32)
    _expand(full_members, full_lengths, half_members, half_lengths, indptr, members)

    similarities = np.empty(len(members), dtype=np.float32)
    missing = _listed_similarities(lists, neighbors.similarities, indptr, members, similarities)
    if missing:
        entry, first, second = (np.empty(missing, dtype=kind) for kind in (np.int64, np.int32, np.int32))
        _missing_pairs(indptr, members, similarities, entry, first, second)
        similarities[entry] = pair_cosines(rows, first, second)
    return ReciprocalSets(indptr, members, similarities)


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


#: rows per task of a thread: how often progress is told and how finely the result grows
ROWS_PER_TASK = 1024
#: a distance below this is 0: copies of an image whose neighbor lists hold other copies each differ by rounding alone
SMALLEST_DISTANCE = np.float32(1e-6)


@dataclass(frozen=True)
class PairDistances:
    """Distances below 1 (or up to a limit) of the strict upper triangle, as compressed rows.

    Attributes:
        indptr: (N + 1,) int64.
        indices: (P,) int32 columns j > i, in no order within a row.
        data: (P,) float32 distances, 0 or in [`SMALLEST_DISTANCE`, 1).
    """

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.indptr) - 1

    def symmetric(self, max_distance: float | None = None) -> scipy.sparse.csr_matrix:
        """(N, N) CSR with both triangles and a stored zero diagonal, indices sorted.

        Args:
            max_distance: keep only distances <= this (compared in float32); all of them when None.
        """
        limit = np.float32(np.inf if max_distance is None else max_distance)
        indptr, indices, data = _symmetric(self.indptr, self.indices, self.data, limit)
        kind = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
        count = self.num_images
        matrix = scipy.sparse.csr_matrix(
            (data, indices.astype(kind, copy=False), indptr.astype(kind, copy=False)), shape=(count, count)
        )
        matrix.has_sorted_indices = True
        return matrix


@numba.njit(cache=True, nogil=True)
def _symmetric(indptr, indices, data, limit):
    """Both triangles, sorted without sorting: a transpose of compressed rows comes out in ascending order."""
    count = indptr.shape[0] - 1
    lower = np.zeros(count + 1, dtype=np.int64)
    out_indptr = np.zeros(count + 1, dtype=np.int64)
    for i in range(count):
        for e in range(indptr[i], indptr[i + 1]):
            if data[e] <= limit:
                lower[indices[e] + 1] += 1
                out_indptr[i + 1] += 1
    for i in range(count):
        out_indptr[i + 1] += out_indptr[i] + lower[i + 1] + 1
    place = out_indptr[:-1].copy()
    out_indices = np.empty(out_indptr[-1], dtype=np.int32)
    out_data = np.empty(out_indptr[-1], dtype=np.float32)
    for i in range(count):  # the lower triangle: row j gets its columns i in ascending order
        for e in range(indptr[i], indptr[i + 1]):
            if data[e] <= limit:
                j = indices[e]
                out_indices[place[j]] = i
                out_data[place[j]] = data[e]
                place[j] += 1
    for i in range(count):
        out_indices[place[i]] = i
        out_data[place[i]] = 0.0
        place[i] += 1
    for j in range(count):  # and back: row i gets its columns j > i in ascending order
        for e in range(out_indptr[j], out_indptr[j] + lower[j + 1]):
            i = out_indices[e]
            out_indices[place[i]] = j
            out_data[place[i]] = out_data[e]
            place[i] += 1
    return out_indptr, out_indices, out_data


@numba.njit(cache=True, nogil=True)
def _pairs_of_rows(
    indptr, indices, values, col_indptr, col_entries, next_row, total, limit, sums, touched,
    first_row, row_start, row_stop, out_counts, out_indices, out_data, written,
):  # fmt: skip
    """Distances of rows row_start..row_stop to later rows, until the output might not hold another row.

    Args:
        next_row: (N,) int64, for each column the place of the first row not yet passed; advanced here, so
            rows must come in ascending order.
        sums: (N,) int32 zeros, zero again on return. touched: (N + 1,) int32 scratch.
        first_row: row of out_counts[0]. written: entries of the output that are already in use.

    Returns:
        the first row not done, and the entries in use.
    """
    # J <= limit means shared >= 2 total (1 - limit) / (2 - limit): saves the division for most pairs. The next float32 stands for
    # the limit, since a distance is rounded to one before it is compared.
    above = np.float64(np.nextafter(np.float32(limit), np.float32(2.0)))
    least = np.int64(2.0 * total * (1.0 - above) / (2.0 - above)) - 2 if above < 1.0 else np.int64(0)
    for i in range(row_start, row_stop):
        if written + (sums.shape[0] - 1 - i) > out_indices.shape[0]:
            return i, written
        found = 0
        for e in range(indptr[i], indptr[i + 1]):
            column, value = indices[e], values[e]
            next_row[column] += 1  # passes row i itself
            for c in range(next_row[column], col_indptr[column + 1]):
                j = col_entries[c, 0]
                before = sums[j]
                touched[found] = j  # overwritten by the next one unless j is new
                found += before == 0
                sums[j] = before + min(value, col_entries[c, 1])
        already = written
        for f in range(found):
            j = touched[f]
            shared = np.int64(sums[j])
            sums[j] = 0
            if shared < least:
                continue
            # 1 - m / (2 - m) with m = shared / total; of integers, so it is rounded once
            distance = np.float32((2.0 * total - 2.0 * shared) / (2.0 * total - shared))
            if distance < SMALLEST_DISTANCE:
                distance = np.float32(0.0)
            if distance < 1.0 and distance <= limit:
                out_indices[written] = j
                out_data[written] = distance
                written += 1
        out_counts[i - first_row] = written - already
    return row_stop, written


@numba.njit(cache=True, nogil=True)
def _first_rows(col_indptr, col_entries, row, out):
    """For each column the place of its first row >= `row`."""
    for column in range(out.shape[0]):
        out[column] = col_indptr[column] + np.searchsorted(
            col_entries[col_indptr[column] : col_indptr[column + 1], 0], row
        )


@numba.njit(cache=True, nogil=True)
def _drop_above(limit, counts, rows_done, indices, data):
    """Remove distances above the limit in place; returns the entries left in use."""
    read = written = 0
    for i in range(rows_done):
        before = written
        for _ in range(counts[i]):
            if data[read] <= limit:
                indices[written] = indices[read]
                data[written] = data[read]
                written += 1
            read += 1
        counts[i] = written - before
    return written


class _Store:
    """Rows of pairs in arrays that grow, or that keep only the smallest distances."""

    def __init__(self, num_images: int, limit: float, keep_smallest: int | None, keep_within: float) -> None:
        self.limit = np.float32(limit)
        self.keep = keep_smallest
        self.within = np.float32(keep_within)
        self.counts = np.zeros(num_images + 1, dtype=np.int64)  # one more, so that their sums fit in place
        self.rows_done = self.used = 0
        self.indices, self.data = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)

    def append(self, counts: np.ndarray, indices: np.ndarray, data: np.ndarray) -> None:
        """Add the next rows."""
        if self.used + len(data) > len(self.data):
            self.shrink()
            needed = self.used + len(data)
            if needed > len(self.data) // 2:  # the smaller half free, or it would be shrunk again at once
                self.indices, self.data = (
                    np.concatenate(
                        [old[: self.used], np.empty(needed + needed // 2 - self.used, dtype=old.dtype)]
                    )
                    for old in (self.indices, self.data)
                )
        self.indices[self.used : self.used + len(data)] = indices
        self.data[self.used : self.used + len(data)] = data
        self.counts[self.rows_done : self.rows_done + len(counts)] = counts
        self.rows_done += len(counts)
        self.used += len(data)

    def shrink(self) -> None:
        """Lower the limit to the largest of the `keep` smallest non-zero distances, and drop what is above."""
        if self.keep is None:
            return
        nonzero = self.data[: self.used]
        nonzero = nonzero[nonzero > 0]
        if len(nonzero) > self.keep:
            self.limit = max(np.partition(nonzero, self.keep - 1)[self.keep - 1], self.within)
            self.used = _drop_above(self.limit, self.counts, self.rows_done, self.indices, self.data)

    def finish(self) -> PairDistances:
        """The pairs; the store is used up."""
        self.shrink()
        indptr = np.zeros_like(self.counts)
        np.cumsum(self.counts[:-1], out=indptr[1:])
        return PairDistances(indptr, self.indices[: self.used].copy(), self.data[: self.used].copy())


def pair_distances(
    encoding: Encoding,
    *,
    max_distance: float | None = None,
    keep_smallest: int | None = None,
    keep_within: float = 0.0,
    progress: Progress = no_progress,
) -> PairDistances:
    """J_ij = 1 - m / (2 - m), m = sum_l min(V_il, V_jl), for the pairs i < j with m > 0.

    A distance below `SMALLEST_DISTANCE` is stored as 0, so that exact copies of an image do not count as its closest
    neighbors when eps is estimated.

    Args:
        max_distance: keep only distances <= this (compared in float32), when eps is known.
        keep_smallest: keep only this many of the smallest non-zero distances, ties with the last and zeros besides:
            all that an eps which is their mean can need.
        keep_within: and all those up to this, when eps may be raised to it.

    Time is the sum over columns of (entries)^2; memory is the result and O(N) for each thread.
    """
    count = len(encoding.indptr) - 1
    columns = encoding.columns()
    store = _Store(count, np.inf if max_distance is None else max_distance, keep_smallest, keep_within)

    def rows_of_pairs(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        next_row = np.empty(count, dtype=np.int64)
        _first_rows(columns[0], columns[1], start, next_row)
        sums, touched = np.zeros(count, dtype=np.int32), np.empty(count + 1, dtype=np.int32)
        counts = np.zeros(stop - start, dtype=np.int64)
        indices, data = (np.empty(count + 2**18, dtype=kind) for kind in (np.int32, np.float32))
        row, written = start, 0
        while row < stop:
            row, written = _pairs_of_rows(
                encoding.indptr, encoding.indices, encoding.values, *columns, next_row, encoding.total, store.limit,
                sums, touched, start, row, stop, counts, indices, data, written,
            )  # fmt: skip
            if row < stop:
                indices, data = (
                    np.concatenate([old, np.empty(len(old) // 2, dtype=old.dtype)]) for old in (indices, data)
                )
        return counts, indices[:written], data[:written]

    for start, part in zip(
        range(0, count, ROWS_PER_TASK),
        in_threads(
            partial(rows_of_pairs, start, min(start + ROWS_PER_TASK, count))
            for start in range(0, count, ROWS_PER_TASK)
        ),
        strict=True,
    ):
        store.append(*part)
        progress(min(start + ROWS_PER_TASK, count), count)
    return store.finish()


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
