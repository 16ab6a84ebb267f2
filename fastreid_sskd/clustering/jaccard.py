"""k-reciprocal Jaccard distance (https://arxiv.org/abs/1701.08398), exact and sparse.

From the k-NN lists: reciprocal sets R(i, k), their expansion R*(i), V as weights over R*(i), query expansion,
and the distances of the pairs whose rows of V overlap.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
import scipy.sparse
import torch

from .features import UnitRows
from .neighbors import Neighbors, nearest_neighbors, pair_cosines
from .options import ClusterOptions
from .parallel import LogProgress, in_threads

#: about 1 in fixed point: a row of V sums to this after query expansion, and must fit int32
ONE = 2**30
#: rows per task of a thread: how often progress is told and how finely the result grows
ROWS_PER_TASK = 1024
#: a distance below this is 0: copies of an image differ by rounding, as their lists differ
SMALLEST_DISTANCE = np.float32(1e-6)
#: pairs beyond those to keep that are collected before the largest are dropped
SPARE_PAIRS = 2**20


@dataclass(frozen=True)
class Variant:
    """How a code base reads the paper.

    Attributes:
        lists_hold_self_and_k1: lists have k1 + 1 entries (self and k1 others) rather than k1 (self included).
        distance_over_row_maximum: weights are exp(-D_ij / max_j D_ij) rather than exp(-D_ij); D = 2 - 2 cos.
    """

    lists_hold_self_and_k1: bool
    distance_over_row_maximum: bool


#: SSKD.CLUSTER.VARIANT. sskd: the released SSKD and MMT. faiss: SpCL, OpenUnReID, Cluster-Contrast,
#: fast-reid.
VARIANTS = {
    "sskd": Variant(lists_hold_self_and_k1=True, distance_over_row_maximum=True),
    "faiss": Variant(lists_hold_self_and_k1=False, distance_over_row_maximum=False),
}


@dataclass(frozen=True)
class ListSizes:
    """Entries per list, self included, after cutting at N.

    Attributes:
        full, half: for R(i, k1) and R(i, round(k1 / 2)). expansion: for the mean over the first k2.
        search: of the k-NN search. need_smallest: whether it must also find each row's smallest similarity.
    """

    full: int
    half: int
    expansion: int
    search: int
    need_smallest: bool


def list_sizes(num_images: int, options: ClusterOptions) -> ListSizes:
    """How long the lists are for N images; warns when N cuts them, since distances then say little."""
    variant, k1 = VARIANTS[options.variant], options.k1
    with_self = variant.lists_hold_self_and_k1
    if num_images <= k1:
        warnings.warn(
            f"{num_images} images are not more than k1={k1}: neighbour lists are cut at {num_images}; "
            "lower SSKD.CLUSTER.K1, or TEST.RERANK.K1 where queries are re-ranked",
            stacklevel=3,
        )
    full = min(num_images, k1 + 1 if with_self else k1)
    half = min(round(k1 / 2) + 1, full)  # Python rounds half to even, as NumPy's around does
    # the sskd variant ranks all images, the faiss variant knows only its k1 neighbors
    expansion = min(options.k2, num_images if with_self else full)
    return ListSizes(full, half, expansion, max(full, expansion), variant.distance_over_row_maximum)


def jaccard_distance(
    features: np.ndarray | torch.Tensor,
    k1: int = 20,
    k2: int = 6,
    *,
    options: ClusterOptions | None = None,
    device: str | torch.device | None = None,
    max_distance: float | None = None,
    cameras: Sequence | None = None,
    **settings,
) -> scipy.sparse.csr_matrix:
    """k-reciprocal Jaccard distances below 1 as a sparse matrix; what is not stored is exactly 1.

    Args:
        features: (N, d), N >= 2, numpy array or torch tensor, any real dtype; not modified, normalised inside
            when not unit norm. float32 and contiguous costs no copy.
        k1: neighbors that make the reciprocal sets. k2: images averaged in query expansion, self included; 1:
            none.
        options: instead of k1, k2 and settings, all options at once.
        device: where the k-NN search runs; the tensor's own device when None. The rest runs on the CPU.
        max_distance: store only distances <= this (in float32), e.g. eps where it is known.
        cameras: (N,) names, whose mean and deviation are taken out of the features first.
        settings: other `ClusterOptions` of the search and the distance: variant, knn, ...

    Returns:
        (N, N) float32 CSR, symmetric, indices sorted, in [0, 1). The diagonal and pairs at distance 0 are
        stored as explicit zeros: do not call `eliminate_zeros`, which would make them distance 1.

    Raises:
        ValueError: fewer than 2 images, a row that is not finite or all zeros, k1 or k2 < 1, unknown names.

    Neighbors are ordered by (similarity descending, index ascending), self first even among exact duplicates.
    V is in integers, so a distance does not depend on any order of summation. Memory O(N * k), never N x N.
    """
    options = options or ClusterOptions(k1=k1, k2=k2, **settings)
    rows = UnitRows.from_features(features, device, cameras)
    sizes = list_sizes(len(rows), options)
    neighbors = nearest_neighbors(rows, sizes.search, options, need_smallest=sizes.need_smallest)
    return pairs_from_neighbors(rows, neighbors, sizes, max_distance=max_distance).symmetric()


@dataclass(frozen=True)
class PairDistances:
    """Distances below 1 (or up to a limit) of the pairs i < j, by ascending i.

    Attributes:
        i, j: (P,) int32. distance: (P,) float32, 0 or in [`SMALLEST_DISTANCE`, 1).
        num_images: N.
    """

    i: np.ndarray
    j: np.ndarray
    distance: np.ndarray
    num_images: int

    def within(self, limit: float) -> PairDistances:
        """The pairs at distances <= limit, compared in float32."""
        return self.where(self.distance <= np.float32(limit))

    def where(self, kept: np.ndarray) -> PairDistances:
        """The pairs that a mask (P,) keeps."""
        return PairDistances(self.i[kept], self.j[kept], self.distance[kept], self.num_images)

    def symmetric(self, max_distance: float | None = None) -> scipy.sparse.csr_matrix:
        """(N, N) CSR with both triangles and a stored zero diagonal, indices sorted, up to a limit if any."""
        pairs = self if max_distance is None else self.within(max_distance)
        diagonal = np.arange(self.num_images, dtype=np.int32)
        row = np.concatenate([pairs.j, diagonal, pairs.i])
        column = np.concatenate([pairs.i, diagonal, pairs.j])
        data = np.concatenate([pairs.distance, np.zeros(self.num_images, np.float32), pairs.distance])
        return scipy.sparse.coo_matrix((data, (row, column)), shape=(self.num_images,) * 2).tocsr()


def pairs_from_neighbors(rows: UnitRows, neighbors: Neighbors, sizes: ListSizes, **kept) -> PairDistances:
    """Everything after the k-NN search; `kept` are the arguments of `pair_distances`."""
    sets = expanded_reciprocal_sets(rows, neighbors, sizes.full, sizes.half)
    largest = 2 - 2 * neighbors.smallest.astype(np.float64) if sizes.need_smallest else np.ones(len(rows))
    return pair_distances(encode(*sets, neighbors.indices, sizes.expansion, largest), **kept)


# ---- reciprocal sets -----------------------------------------------------------------------------


def expanded_reciprocal_sets(
    rows: UnitRows, neighbors: Neighbors, full: int, half: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R*(i) for every row (section 3.2), with the similarities that the weights need.

    R(i, full) joined with R(c, half) for each c in R(i, full) with |R(c, half) & R(i, full)| > 2/3 |R(c,
    half)|, where R(i, full) is the set before any joining. Sizes count the row itself: k1 + 1 in the paper.

    Returns:
        Compressed rows: indptr (N + 1,) int64, members (E,) int32, self first, cosines (E,) float32.
    """
    lists = neighbors.indices
    indptr, members = _expand(*_reciprocal(lists, full), *_reciprocal(lists, half))
    similarities = np.empty(len(members), dtype=np.float32)
    _listed_similarities(lists, neighbors.similarities, indptr, members, similarities)
    missing = np.flatnonzero(np.isnan(similarities))
    if len(missing):
        of_row = np.searchsorted(indptr, missing, side="right") - 1
        similarities[missing] = pair_cosines(rows, of_row, members[missing])
    return indptr, members, similarities


@numba.njit(cache=True, nogil=True)
def _with_room(array, needed):
    """The array, or a longer one that begins with it, of at least `needed` entries."""
    if needed <= array.shape[0]:
        return array
    longer = np.empty(needed + needed // 2, dtype=array.dtype)
    longer[: array.shape[0]] = array
    return longer


@numba.njit(cache=True, nogil=True)
def _reciprocal(neighbors, k):
    """R(i, k): the first k entries of list i whose own first k hold i, in order; and sizes."""
    members = np.empty((neighbors.shape[0], k), dtype=np.int32)
    lengths = np.zeros(neighbors.shape[0], dtype=np.int32)
    for i in range(neighbors.shape[0]):
        for p in range(k):
            j = neighbors[i, p]
            for q in range(k):
                if neighbors[j, q] == i:
                    members[i, lengths[i]] = j
                    lengths[i] += 1
                    break
    return members, lengths


@numba.njit(cache=True, nogil=True)
def _expand(full, full_lengths, half, half_lengths):
    """R*(i) as compressed rows."""
    count = full.shape[0]
    in_full = np.full(count, -1, dtype=np.int32)
    in_union = np.full(count, -1, dtype=np.int32)
    indptr = np.zeros(count + 1, dtype=np.int64)
    members = np.empty(count * full.shape[1], dtype=np.int32)
    for i in range(count):
        place = indptr[i]
        members = _with_room(members, place + full.shape[1] * (1 + half.shape[1]))
        for p in range(full_lengths[i]):
            j = full[i, p]
            in_full[j] = i
            in_union[j] = i
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
                        members[place] = j
                        place += 1
        indptr[i + 1] = place
    return indptr, members[: indptr[count]].copy()


@numba.njit(cache=True, nogil=True)
def _listed_similarities(neighbors, similarities, indptr, members, out):
    """Similarities of members that either list holds; NaN for the others."""
    count, k = neighbors.shape
    position = np.empty(count, dtype=np.int32)
    stamp = np.full(count, -1, dtype=np.int32)
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


# ---- V -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """V after query expansion, as compressed rows of integers that sum to `total` exactly.

    Sums of integers do not depend on their order, so distances built from them are exact: images with m of
    their k2 nearest in common have the same distance wherever they stand.

    Attributes:
        indptr: (N + 1,) int64. indices: (E,) int32 columns, in no order.
        values: (E,) int32; a row sums to `total`, which stands for 1.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    total: int


def encode(
    indptr: np.ndarray, members: np.ndarray, similarities: np.ndarray, neighbors: np.ndarray, k2: int,
    largest_distance: np.ndarray,
) -> Encoding:  # fmt: skip
    """V_ij = exp(-D_ij / largest_distance_i) over R*(i), normalised, averaged over k2 lists.

    Args:
        indptr, members, similarities: R*(i), from `expanded_reciprocal_sets`.
        neighbors: (N, >= k2) int32 lists, self first. k2: lists averaged; 1 leaves V as it is.
        largest_distance: (N,) float64 divisor of D in the exponent (1 for the faiss variant's softmax).
    """
    one = ONE // k2
    values = _weights(indptr, similarities, largest_distance, one)
    if k2 > 1:
        indptr, members, values = _query_expansion(neighbors, k2, indptr, members, values)
    return Encoding(indptr, members, values, one * k2)


@numba.njit(cache=True, nogil=True)
def _weights(indptr, similarities, largest_distance, one):
    """exp(-D_ij / largest_distance_i) in parts of `one`; what rounding down leaves goes to the row itself."""
    out = np.empty(similarities.shape[0], dtype=np.int32)
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
            part = weights[e - start] * one // total
            out[e] = part
            left -= part
        out[start] += left
    return out


@numba.njit(cache=True, nogil=True)
def _query_expansion(neighbors, k2, indptr, members, values):
    """Sum of V over the first k2 entries of each list, as compressed rows."""
    count = neighbors.shape[0]
    place_of = np.empty(count, dtype=np.int64)
    stamp = np.full(count, -1, dtype=np.int32)
    out_indptr = np.zeros(count + 1, dtype=np.int64)
    out_indices = np.empty(2 * members.shape[0], dtype=np.int32)
    out_values = np.empty(2 * members.shape[0], dtype=np.int32)
    for i in range(count):
        place = out_indptr[i]
        for p in range(k2):
            r = neighbors[i, p]
            out_indices = _with_room(out_indices, place + indptr[r + 1] - indptr[r])
            out_values = _with_room(out_values, place + indptr[r + 1] - indptr[r])
            for e in range(indptr[r], indptr[r + 1]):
                j = members[e]
                if stamp[j] != i:
                    stamp[j] = i
                    place_of[j] = place
                    out_indices[place] = j
                    out_values[place] = 0
                    place += 1
                out_values[place_of[j]] += values[e]
        out_indptr[i + 1] = place
    return out_indptr, out_indices[: out_indptr[count]].copy(), out_values[: out_indptr[count]].copy()


# ---- distances -----------------------------------------------------------------------------------


def pair_distances(
    encoding: Encoding,
    *,
    max_distance: float | None = None,
    keep_smallest: int | None = None,
    keep_within: float = 0.0,
) -> PairDistances:
    """J_ij = 1 - m / (2 - m), m = sum_l min(V_il, V_jl), for the pairs i < j with m > 0.

    A distance below `SMALLEST_DISTANCE` is stored as 0, so that exact copies of an image do not count as its
    closest neighbors when eps is estimated.

    Args:
        max_distance: keep only distances <= this (compared in float32), when eps is known.
        keep_smallest: keep only this many of the smallest non-zero distances, ties with the last and zeros
            besides: all that an eps which is their mean can need.
        keep_within: and all those up to this, when eps may be raised to it.

    Time is the sum over columns of (entries)^2; memory is the result and O(N) for each thread.
    """
    count = len(encoding.indptr) - 1
    rows = encoding.indptr, encoding.indices, encoding.values
    columns = scipy.sparse.csr_matrix(
        (encoding.values, encoding.indices, encoding.indptr), (count,) * 2
    ).tocsc()
    entries = np.stack([columns.indices, columns.data], 1)  # side by side: read as one stream
    limit = np.float32(np.inf if max_distance is None else max_distance)

    def task(start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _pairs_of_rows(*rows, columns.indptr, entries, encoding.total, limit, start, stop)

    progress, parts, kept = LogProgress("Jaccard distances"), [], 0
    ranges = [(start, min(start + ROWS_PER_TASK, count)) for start in range(0, count, ROWS_PER_TASK)]
    for (_, stop), part in zip(ranges, in_threads(partial(task, *at) for at in ranges), strict=True):
        parts.append(part)
        enough = keep_smallest and sum(len(p[0]) for p in parts) > kept + keep_smallest + SPARE_PAIRS
        if stop == count or enough:
            pairs = PairDistances(*map(np.concatenate, zip(*parts, strict=True)), count)
            nonzero = pairs.distance[pairs.distance > 0]
            if keep_smallest is not None and len(nonzero) > keep_smallest:
                limit = max(
                    np.partition(nonzero, keep_smallest - 1)[keep_smallest - 1], np.float32(keep_within)
                )
                pairs = pairs.within(limit)
            parts, kept = [(pairs.i, pairs.j, pairs.distance)], len(pairs.i)
        progress(stop, count)
    return pairs


@numba.njit(cache=True, nogil=True)
def _pairs_of_rows(indptr, indices, values, col_indptr, col_entries, total, limit, row_start, row_stop):
    """Pairs (i, j, distance) of rows row_start..row_stop with later rows."""
    # J <= limit means shared >= 2 total (1 - limit) / (2 - limit), which saves most divisions. The next
    # float32 stands for the limit, since a distance is rounded to one before it is compared.
    above = np.float64(np.nextafter(np.float32(limit), np.float32(2.0)))
    least = np.int64(2.0 * total * (1.0 - above) / (2.0 - above)) - 2 if above < 1.0 else np.int64(0)
    count = indptr.shape[0] - 1
    next_row = np.empty(count, dtype=np.int64)  # for each column the place of the first row not yet passed
    for column in range(count):
        next_row[column] = col_indptr[column] + np.searchsorted(
            col_entries[col_indptr[column] : col_indptr[column + 1], 0], row_start
        )
    sums = np.zeros(count, dtype=np.int32)
    touched = np.empty(count + 1, dtype=np.int32)
    out_i, out_j = np.empty(2**16, dtype=np.int32), np.empty(2**16, dtype=np.int32)
    out_distance = np.empty(2**16, dtype=np.float32)
    written = 0
    for i in range(row_start, row_stop):
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
        out_i, out_j = _with_room(out_i, written + found), _with_room(out_j, written + found)
        out_distance = _with_room(out_distance, written + found)
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
                out_i[written], out_j[written], out_distance[written] = i, j, distance
                written += 1
    return out_i[:written].copy(), out_j[:written].copy(), out_distance[:written].copy()
