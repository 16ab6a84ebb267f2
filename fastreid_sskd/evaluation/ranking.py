"""Rank a gallery for every query: distances in blocks of queries, and CMC, average precision and INP of them.

The metrics need only the *positions* of a query's few matches, so the gallery is never sorted.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
import torch.nn.functional as F

from ..processes import stop_if_asked

#: values of ``TEST.METRIC`` that need no more than a query and the gallery
METRICS_IN_BLOCKS = ("cosine", "euclidean")

BLOCK_BYTES = 64 * 2**20  # of distances at a time: enough rows for a fast product


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

    Images of the query's identity and camera are junk: they take no position. Queries without another image
    of their identity are left out. Among equal distances the smaller gallery index comes first (a stable
    argsort); the host's order is arbitrary.

    Args:
        distmat: (Q, G) distances, smaller is more similar; not modified.
        q_pids, q_camids: (Q,) identities and cameras of the queries.
        g_pids, g_camids: (G,) those of the gallery images.
        max_rank: length of the CMC curve, >= 1.
        use_metric_cuhk03: must be False: the cuhk03 protocol draws random galleries (fastreid's eval_cuhk03).
        use_cython: accepted for the host's sake and not used.

    Returns:
        (cmc, all_AP, all_INP): cmc[r - 1] is the ratio, 0..1, of queries with a match among their first r
        images; AP (Zheng et al., ICCV 2015) and INP (mINP of Ye et al., TPAMI 2021: matches / position of the
        last match), one value for each query that counts.

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
    """`evaluate_rank` of a matrix that comes in blocks of rows, so that the whole is never in memory.

    All threads that torch may use take part; the GIL is released.

    Args:
        blocks: distances of the first queries to the whole gallery, then of the next, until all queries have
            come; each (rows, G) float32 or float64 in C order. A block is done with when the next is asked
            for.
        The others are those of `evaluate_rank`, whose results and errors these are.
    """
    sizes = (len(q_pids), len(g_pids))
    labels = _checked(sizes, q_pids, g_pids, q_camids, g_camids)
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    (query_ids, ids), (query_cameras, cameras) = _numbered(*labels[:2]), _numbered(*labels[2:])
    found: list[np.ndarray] = []  # positions of the matches, for every query
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for block in blocks:
            first = len(found)
            if block.shape != (min(len(block), sizes[0] - first), sizes[1]):
                raise ValueError(
                    f"distances of shape {block.shape} from query {first} on do not fit {sizes[0]} queries "
                    f"and {sizes[1]} gallery images: give the distances of these"
                )
            nan = np.isnan(block.min(axis=1, initial=np.inf))
            if nan.any():
                raise ValueError(
                    f"the distances of query {first + nan.argmax()} contain NaN: check the features of the "
                    "model"
                )
            own = slice(first, first + len(block))
            found += pool.map(
                lambda row, identity, camera: _match_positions(row, ids == identity, cameras == camera),
                block, query_ids[own], query_cameras[own],
            )  # fmt: skip
    if len(found) != sizes[0]:
        raise ValueError(f"the distances of {len(found)} of {sizes[0]} queries were given: give those of all")
    found = [positions for positions in found if len(positions)]
    if not found:
        raise ValueError(
            f"none of the {sizes[0]} queries has a match in the gallery of {sizes[1]} images (same identity, "
            "other camera): check identities and cameras of query and gallery"
        )
    positions, counts = np.concatenate(found), np.array([len(own) for own in found])
    start = np.cumsum(counts) - counts
    number = np.arange(len(positions)) - np.repeat(start, counts) + 1  # of the match within its query
    average_precision = np.add.reduceat(number / positions, start) / counts
    inverse_penalty = counts / positions[start + counts - 1]
    first = np.bincount(np.minimum(positions[start], max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return np.cumsum(first) / len(found), average_precision.tolist(), inverse_penalty.tolist()


@torch.no_grad()
def distance_blocks(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> Iterator[np.ndarray]:
    """Distances of some queries to the whole gallery, then of the next; a block is overwritten by the next.

    Args:
        query: (Q, d) float32, on the CPU. gallery: (G, d) float32, there too. Neither is modified.
        metric: "cosine", 1 - cos; "euclidean", which is the squared distance, as in the host.

    Yields:
        (rows, G) float32. The host's formulas in its order; the last bits may differ from those of one
        product of all queries.

    Memory: one block of 64 MB (at least one row); for "cosine" also a normalised copy of the gallery.
    """
    if metric not in METRICS_IN_BLOCKS:
        raise ValueError(
            f"metric must be one of {', '.join(METRICS_IN_BLOCKS)}, got {metric!r}: see TEST.METRIC"
        )
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


def _checked(sizes: tuple[int, int], *labels: np.ndarray) -> list[np.ndarray]:
    """The labels of query, gallery, query, gallery as arrays of the right shapes."""
    arrays = [np.asarray(values) for values in labels]
    for name, array, size in zip(("q_pids", "g_pids", "q_camids", "g_camids"), arrays, sizes * 2):
        if array.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},) for distmat {sizes}, got {array.shape}")
    return arrays


def _blocks(distances: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows, as float32 or float64 in C order; views where they are that already."""
    dtype = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64
    rows = max(1, BLOCK_BYTES // (np.dtype(dtype).itemsize * distances.shape[1]))
    for start in range(0, len(distances), rows):
        yield np.ascontiguousarray(distances[start : start + rows], dtype=dtype)


def _numbered(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of any type as int32 numbers."""
    numbers = np.unique(np.concatenate([query, gallery]), return_inverse=True)[1].astype(np.int32)
    return numbers[: len(query)], numbers[len(query) :]


@numba.njit(cache=True, nogil=True)
def _match_positions(distances, same_identity, same_camera):
    """1-based positions, ascending, of a query's matches among the gallery images that are not junk.

    A binary search among the few matches gives those that each image stands before.
    """
    matches = np.flatnonzero(same_identity & ~same_camera)
    matches = matches[np.argsort(distances[matches], kind="mergesort")]
    # images before the first match, between it and the second, ...
    between = np.zeros(len(matches) + 1, np.int64)
    for j in range(len(distances)):
        if same_identity[j] and same_camera[j]:
            continue
        low, high = 0, len(matches)
        while low < high:
            middle = (low + high) // 2
            at = matches[middle]
            if distances[at] < distances[j] or (distances[at] == distances[j] and at <= j):
                low = middle + 1
            else:
                high = middle
        between[low] += 1
    return np.cumsum(between)[:-1] + 1
