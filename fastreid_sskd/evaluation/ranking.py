"""Distances in blocks of queries, and CMC, average precision and inverse negative penalty of them."""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numba
import numpy as np
import torch
import torch.nn.functional as F

from ..clustering.parallel import num_threads, over_rows
from ..processes import stop_if_asked

__all__ = ["METRICS_IN_BLOCKS", "Relations", "distance_blocks", "evaluate_blocks", "evaluate_rank", "match_positions"]

BLOCK_BYTES = 64 * 2**20  # of distances looked at, and where need be converted, at a time


def evaluate_rank(
    distmat: np.ndarray,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, list[float], list[float]]:
    """Compute CMC, AP and INP by the Market-1501 protocol.

    Images of the query's identity and camera are junk: they take no position. Queries whose identity is in
    the gallery only as junk, or not at all, are left out. Among equal distances the gallery image with the
    smaller index comes first (a stable argsort); the host's order there is arbitrary.

    Args:
        distmat: num_query x num_gallery distances, smaller is more similar; not modified.
        q_pids: identities of the queries.
        g_pids: identities of the gallery images.
        q_camids: cameras of the queries.
        g_camids: cameras of the gallery images.
        max_rank: length of the CMC curve, >= 1.
        use_metric_cuhk03: must be False: the cuhk03 protocol draws random galleries (fastreid's eval_cuhk03).
        use_cython: accepted for the host's sake and not used.

    Returns:
        (cmc, all_AP, all_INP): cmc[r - 1] is the share, 0..1, of queries with a match among their first r
        images, padded with its last value where the gallery is smaller than ``max_rank``; AP (Zheng et al.,
        ICCV 2015) and INP (mINP of Ye et al., TPAMI 2021: matches / position of the last match), one value a
        query that counts.

    Raises:
        ValueError: on shapes that do not fit, NaN distances, ``max_rank`` < 1, the cuhk03 protocol, or if no
            query has a match.
    """
    distances = np.asarray(distmat)
    if distances.ndim != 2 or 0 in distances.shape:
        raise ValueError(f"distmat must be num_query x num_gallery, neither 0, got shape {distances.shape}")
    if use_metric_cuhk03:
        raise ValueError(
            "the cuhk03 protocol is not computed here: call fastreid.evaluation.rank.eval_cuhk03"
        )
    labels = _checked(distances.shape, q_pids, g_pids, q_camids, g_camids)
    return evaluate_blocks(_blocks(distances), *labels, max_rank)


def evaluate_blocks(
    blocks: Iterable[np.ndarray],
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
) -> tuple[np.ndarray, list[float], list[float]]:
    """`evaluate_rank` of a matrix that comes in blocks of rows, so that it is never there as a whole.

    Args:
        blocks: distances of the first queries to the whole gallery, then of the next, until all queries have come;
            each (rows, num_gallery) float32 or float64 in C order. A block is done with when the next is asked for.
        The others are those of `evaluate_rank`, whose results and errors these are.
    """
    sizes = (len(q_pids), len(g_pids))
    query_ids, gallery_ids, query_cameras, gallery_cameras = _checked(sizes, q_pids, g_pids, q_camids, g_camids)
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    by_identity = np.argsort(gallery_ids, kind="stable")
    identities = gallery_ids[by_identity]
    first: list[int] = []
    average_precision: list[float] = []
    inverse_penalty: list[float] = []
    start = 0
    for block in blocks:
        own = slice(start, start + len(block))
        ids = query_ids[own]
        if block.shape != (len(ids), sizes[1]):
            raise ValueError(
                f"distances of shape {block.shape} from query {start} on do not fit {sizes[0]} queries and {sizes[1]} "
                "gallery images: give the distances of these"
            )
        span = (np.searchsorted(identities, ids, side=side) for side in ("left", "right"))
        relations = _relations(by_identity, *span, query_cameras[own], gallery_cameras)
        positions = match_positions(block, relations, first_query=start)
        measures = _measures(positions, relations.match_start)
        for values, more in zip((first, average_precision, inverse_penalty), measures):
            values.extend(more.tolist())
        start += len(block)
    if start != sizes[0]:
        raise ValueError(f"the distances of {start} of {sizes[0]} queries were given: give those of all")
    if not first:
        raise ValueError(
            f"none of the {sizes[0]} queries has a match in the gallery of {sizes[1]} images "
            "(same identity, other camera): check identities and cameras of query and gallery"
        )
    found = np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return np.cumsum(found) / len(first), average_precision, inverse_penalty


def _checked(sizes: tuple[int, int], *labels: np.ndarray) -> list[np.ndarray]:
    """The labels of query, gallery, query, gallery as arrays of the right shapes."""
    arrays = []
    for name, values, size in zip(("q_pids", "g_pids", "q_camids", "g_camids"), labels, sizes * 2):
        array = np.asarray(values)
        if array.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},) for distmat {sizes}, got {array.shape}")
        arrays.append(array)
    return arrays


def _blocks(distances: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows, as float32 or float64 in C order; views where they are that already."""
    dtype = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64
    rows = max(1, BLOCK_BYTES // (np.dtype(dtype).itemsize * distances.shape[1]))
    for start in range(0, len(distances), rows):
        yield np.ascontiguousarray(distances[start : start + rows], dtype=dtype)


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


def _relations(
    by_identity: np.ndarray, begin: np.ndarray, end: np.ndarray, query_cameras: np.ndarray, gallery_cameras: np.ndarray
) -> Relations:
    """Matches and junk of a block of queries.

    Args:
        by_identity: gallery indices by identity, then index. begin, end: the range of each query's identity in it.
    """
    counts = end - begin
    query = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    same = by_identity[np.arange(len(query)) + np.repeat(begin - before, counts)]
    is_junk = gallery_cameras[same] == query_cameras[query]

    def start_of(kept: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.bincount(query[kept], minlength=len(counts)))])

    return Relations(same[~is_junk], start_of(~is_junk), same[is_junk], start_of(is_junk))


def _measures(positions: np.ndarray, match_start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First position, AP and INP of each query with a match, from the ascending positions of all matches."""
    counts = np.diff(match_start)
    start, counts = match_start[:-1][counts > 0], counts[counts > 0]
    number = np.arange(len(positions)) - np.repeat(start, counts) + 1  # of the match within its query
    precision = np.add.reduceat(number / positions, start) / counts
    return positions[start], precision, counts / positions[start + counts - 1]


#: matches of a query from which one stable argsort costs less than a pass over the row for each of them
MANY_MATCHES = 512


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


#: values of ``TEST.METRIC`` that need no more than a query and the gallery
METRICS_IN_BLOCKS = ("cosine", "euclidean")

@torch.no_grad()
def distance_blocks(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> Iterator[np.ndarray]:
    """Distances of some queries to the whole gallery, then of the next; a block is overwritten by the next.

    Args:
        query: (Q, d) float32, on the CPU. gallery: (G, d) float32, there too. Neither is modified.
        metric: "cosine", 1 - cos; "euclidean", which is the squared distance, as in the host.

    Yields:
        (rows, G) float32. The host's formulas in its order; a value may differ from that of one product of all queries
        in its last bits, as products do with their sizes.

    Raises:
        ValueError: another metric.

    Memory: one block of 64 MB (at least one row); for "cosine" also a normalised copy of the gallery.
    """
    if metric not in METRICS_IN_BLOCKS:
        raise ValueError(f"metric must be one of {', '.join(METRICS_IN_BLOCKS)}, got {metric!r}: see TEST.METRIC")
    if metric == "cosine":
        gallery = F.normalize(gallery, dim=1)
    else:
        squares = _squares(gallery)
    size = len(gallery)
    rows = min(len(query), max(1, BLOCK_BYTES // (4 * max(size, 1))))
    buffer = torch.empty(rows, size)
    for part in query.split(max(rows, 1)):
        stop_if_asked()
        block = buffer[: len(part)]
        if metric == "cosine":
            torch.mm(F.normalize(part, dim=1), gallery.t(), out=block)
            torch.sub(1, block, out=block)
        else:
            torch.add(_squares(part)[:, None], squares, out=block)
            block.addmm_(part, gallery.t(), alpha=-2)
        yield block.numpy()


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """Squared norms, without a second copy of the rows."""
    return torch.cat([part.pow(2).sum(dim=1) for part in rows.split(4096)])
