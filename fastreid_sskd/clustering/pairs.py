"""Jaccard distances of the pairs that share support, each pair once, and the symmetric matrix made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
import scipy.sparse

from .encoding import Encoding
from .parallel import in_threads
from .progress import Progress, no_progress

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
