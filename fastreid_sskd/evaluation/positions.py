"""At which positions a query finds its matches, by counting what is closer: nothing is sorted but those positions."""

from dataclasses import dataclass

import numba
import numpy as np

from ..clustering.parallel import num_threads, over_rows

__all__ = ["Relations", "match_positions"]

#: matches of a query from which one stable argsort costs less than a pass over the row for each of them
MANY_MATCHES = 512


@dataclass(frozen=True)
class Relations:
    """Gallery indices that matter to each of Q queries, one query's after the other's, ascending within a query.

    Attributes:
        matches: (M,) int64; those of query q are matches[match_start[q]:match_start[q + 1]].
        match_start: (Q + 1,) int64.
        junk: (J,) int64, images that take no position; junk_start as above.
        junk_start: (Q + 1,) int64.
    """

    matches: np.ndarray
    match_start: np.ndarray
    junk: np.ndarray
    junk_start: np.ndarray


@numba.njit(cache=True, nogil=True)
def _count_closer(line, at):
    """Images before `at` in a stable ranking of the row by distance."""
    value = line[at]
    before, after = line[:at], line[at + 1 :]
    count = np.int32(0)  # 32 bits, no branch: compiles to vector comparisons
    for j in range(before.shape[0]):
        count = np.int32(count + np.int32(before[j] <= value))
    for j in range(after.shape[0]):
        count = np.int32(count + np.int32(after[j] < value))
    return count


@numba.njit(cache=True, nogil=True)
def _by_counting(distances, matches, match_start, junk, junk_start, positions, has_nan, rows):
    """Positions of the matches of these rows, parallel to the matches."""
    for row in rows:
        line = distances[row]
        nan = np.int32(0)
        for j in range(line.shape[0]):
            nan |= np.int32(line[j] != line[j])
        has_nan[row] = nan
        for p in range(match_start[row], match_start[row + 1]):
            at = matches[p]
            place = _count_closer(line, at) + 1
            for j in junk[junk_start[row] : junk_start[row + 1]]:
                if line[j] < line[at] or (line[j] == line[at] and j < at):
                    place -= 1
            positions[p] = place


def _by_sorting(line: np.ndarray, matches: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Positions of the matches of one row, ascending."""
    kind = np.zeros(len(line), dtype=np.int8)
    kind[matches], kind[junk] = 1, -1
    ranked = kind[np.argsort(line, kind="stable")]
    return np.flatnonzero(ranked[ranked >= 0]) + 1


def match_positions(
    distances: np.ndarray, relations: Relations, *, first_query: int = 0, many: int = MANY_MATCHES
) -> np.ndarray:
    """1-based positions of the matches among what is not junk, ascending within a query.

    Among equal distances the image with the smaller index comes first, as in a stable argsort. All threads that torch
    may use take part; the GIL is released.

    Args:
        distances: (Q, G) float32 or float64, C order; not modified.
        relations: of these Q queries.
        first_query: number of the first one, for the error.
        many: matches of a query from which its row is sorted.

    Returns:
        (M,) int64, parallel to ``relations.matches`` query by query.

    Raises:
        ValueError: a NaN among the distances; names the first such row.
    """
    count, size = distances.shape
    positions = np.empty(len(relations.matches), dtype=np.int64)
    has_nan = np.zeros(count, dtype=np.bool_)
    starts, junk_starts = relations.match_start, relations.junk_start
    given = (relations.matches, starts, relations.junk, junk_starts, positions, has_nan)
    matches_of = np.diff(starts)
    few = np.flatnonzero(matches_of < many)
    over_rows(
        lambda start, stop: _by_counting(distances, *given, few[start:stop]),
        len(few), max(1, len(few) // (4 * num_threads())),
    )  # fmt: skip
    for row in np.flatnonzero(matches_of >= many):
        own = slice(starts[row], starts[row + 1])
        junk = relations.junk[junk_starts[row] : junk_starts[row + 1]]
        positions[own] = _by_sorting(distances[row], relations.matches[own], junk)
        has_nan[row] = np.isnan(distances[row]).any()
    if has_nan.any():
        bad = first_query + int(has_nan.argmax())
        raise ValueError(f"the distances of query {bad} contain NaN: check the features of the model")
    query = np.repeat(np.arange(count), matches_of) * (size + 1)
    return np.sort(query + positions) - query  # ascending within each query
