"""CMC, average precision and inverse negative penalty, without a ranking of the gallery.

The metrics need only the *positions* of a query's few correct matches, not the order of the other thousands
of gallery images; see :mod:`.positions`.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from .positions import Relations, match_positions

__all__ = ["evaluate_blocks", "evaluate_rank"]

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
