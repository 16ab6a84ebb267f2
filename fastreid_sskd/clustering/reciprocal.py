"""k-reciprocal sets R(i, k) and their expansion R*(i) (Zhong et al., CVPR 2017, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from .features import UnitRows
from .knn import Neighbors
from .similarity import pair_cosines


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
