"""CMC, average precision and inverse negative penalty of a distance matrix, without a full ranking.

The metrics need only the *positions* of a query's few correct matches, not the order of the other thousands
of gallery images. A position is a count of smaller distances, so one sorted copy of the row and a binary
search for each match give it; sorting values is several times cheaper than sorting indices.
"""

import numpy as np

BLOCK_BYTES = 8 * 2**20  # of distances sorted at a time: small enough for a processor's cache


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
    distances, (query_ids, gallery_ids, query_cameras, gallery_cameras) = _checked(
        distmat, q_pids, g_pids, q_camids, g_camids
    )
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    if use_metric_cuhk03:
        raise ValueError(
            "the cuhk03 protocol is not computed here: call fastreid.evaluation.rank.eval_cuhk03"
        )
    num_query, num_gallery = distances.shape
    members = _members(query_ids, gallery_ids)
    rows = max(1, BLOCK_BYTES // (distances.itemsize * max(1, num_gallery)))
    first, average_precision, inverse_penalty = [], [], []
    for start in range(0, num_query, rows):
        block = distances[start : start + rows]
        if np.isnan(block).any():
            bad = start + int(np.argmax(np.isnan(block).any(axis=1)))
            raise ValueError(f"the distances of query {bad} contain NaN: check the features of the model")
        matches, kept = [], block.copy()
        for row, query in enumerate(range(start, start + len(block))):
            same = members[query]
            junk = gallery_cameras[same] == query_cameras[query]
            kept[row, same[junk]] = np.inf  # never strictly smaller than a match, so it takes no position
            matches.append((same[~junk], same[junk]))
        kept.sort(axis=1)
        for row, (match, junk) in enumerate(matches):
            if not len(match):
                continue
            position = _positions(block[row], kept[row], match, junk)
            count = np.arange(1, len(position) + 1)
            first.append(position[0])
            average_precision.append(float(np.mean(count / position)))
            inverse_penalty.append(float(len(position) / position[-1]))
    if not first:
        raise ValueError(
            f"none of the {num_query} queries has a match in the gallery of {num_gallery} images "
            "(same identity, other camera): check identities and cameras of query and gallery"
        )
    found = np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return np.cumsum(found) / len(first), average_precision, inverse_penalty


def _checked(distmat: np.ndarray, *labels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the arguments as arrays of the right shapes, distances as floats."""
    distances = np.asarray(distmat)
    if distances.ndim != 2 or 0 in distances.shape:
        raise ValueError(f"distmat must be num_query x num_gallery, neither 0, got shape {distances.shape}")
    if not np.issubdtype(distances.dtype, np.floating):
        distances = distances.astype(np.float64)
    arrays = []
    for name, values, size in zip(("q_pids", "g_pids", "q_camids", "g_camids"), labels, distances.shape * 2):
        array = np.asarray(values)
        if array.shape != (size,):
            raise ValueError(
                f"{name} must have shape ({size},) for distmat {distances.shape}, got {array.shape}"
            )
        arrays.append(array)
    return distances, arrays


def _members(query_ids: np.ndarray, gallery_ids: np.ndarray) -> list[np.ndarray]:
    """Return for each query the ascending gallery indices of its identity."""
    order = np.argsort(gallery_ids, kind="stable")
    sorted_ids = gallery_ids[order]
    begin = np.searchsorted(sorted_ids, query_ids, side="left")
    end = np.searchsorted(sorted_ids, query_ids, side="right")
    return [order[a:b] for a, b in zip(begin, end)]


def _positions(row: np.ndarray, kept: np.ndarray, match: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Return the ascending 1-based positions of the matches among the images that are not junk.

    Args:
        row: one query's distances.
        kept: the same, sorted, junk replaced by infinity.
        match: ascending gallery indices of the matches.
        junk: gallery indices of the junk.
    """
    values = row[match]
    smaller = np.searchsorted(kept, values, side="left")
    equal = np.searchsorted(kept, values, side="right") - smaller
    for k in np.flatnonzero(equal > 1):  # ties: count those with a smaller index, junk apart
        same = np.flatnonzero(row[: match[k]] == values[k])
        smaller[k] += len(same) - np.count_nonzero(np.isin(junk, same))
    return np.sort(smaller) + 1
