"""The images of a gallery that are nearest to queries, re-ranked by k-reciprocal neighbors if asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..clustering import jaccard_distance


class Match(NamedTuple):
    """One image of a ranked list.

    Attributes:
        image: its path. similarity: its cosine to the query.
        same_person: whether that reaches the threshold; None without one.
    """

    image: str
    similarity: float
    same_person: bool | None


def reranked_distance(
    queries: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> np.ndarray:
    """k-reciprocal re-ranking (https://arxiv.org/abs/1701.08398), in sparse memory.

    The same as fast-reid's ``re_ranking`` of Euclidean distances of features of unit length, whose memory is
    that of all pairs.

    Args:
        queries: (Q, d) of unit length. gallery: (G, d), likewise.
        k1, k2, weight: ``TEST.RERANK``'s ``K1``, ``K2`` and ``LAMBDA``, the weight of the original distance.

    Returns:
        (Q, G) float32 in [0, 1]: the weighted mean of Jaccard distance and squared Euclidean distance, the
        latter divided by the query's largest.
    """
    both = np.concatenate([queries, gallery])
    original = 2 - 2 * (queries @ both.T)
    original /= np.maximum(original.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    stored = jaccard_distance(both, k1, k2, variant="sskd")[: len(queries)].tocoo()
    jaccard = np.ones_like(original)
    jaccard[stored.row, stored.col] = stored.data
    return ((1 - weight) * jaccard + weight * original)[:, len(queries) :]


def search(
    queries: Sequence[str],
    query_features: np.ndarray,
    gallery: Sequence[str],
    features: np.ndarray,
    count: int,
    *,
    threshold: float | None = None,
    distance: np.ndarray | None = None,
) -> list[list[Match]]:
    """Rank the gallery for each query, without the query's own file.

    Args:
        queries: Q paths. query_features: (Q, d) of unit length.
        gallery: G paths. features: (G, d) of unit length.
        count: images a query at most, >= 1.
        threshold: cosine from which two images count as one person.
        distance: (Q, G) to rank by, see :func:`reranked_distance`; by cosine when None. Ties go by index.

    Returns:
        For each query its nearest images.

    Raises:
        ValueError: if a query has no other image to be compared with, or ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"the number of neighbours must be at least 1, got {count}")
    cosines = query_features @ features.T
    order = np.argsort(-cosines if distance is None else distance, axis=1, kind="stable")
    files = [os.path.realpath(path) for path in gallery]
    found = []
    for query, row, cosine in zip(queries, order, cosines, strict=True):
        own = os.path.realpath(query)
        others = [i for i in row[: count + files.count(own)] if files[i] != own][:count]
        if not others:
            raise ValueError(f"there is no image to compare with but the query {query!r} itself")
        found.append([
            Match(gallery[i], float(cosine[i]), None if threshold is None else bool(cosine[i] >= threshold))
            for i in others
        ])  # fmt: skip
    return found
