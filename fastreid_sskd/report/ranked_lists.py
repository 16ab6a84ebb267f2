"""Ranked lists of a sample of queries, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data import Item
from ..evaluation.ranking import evaluate_rank

__all__ = ["Comparison", "average_precisions", "ranked_list", "sample_queries"]


@dataclass(frozen=True)
class Comparison:
    """A query of the sample.

    Attributes:
        query: its number. why: why it is in the sample.
        before, after: its average precision, 0 to 1; before is None where only one model is known.
    """

    query: int
    why: str
    before: float | None
    after: float


def ranked_list(
    distances: np.ndarray, query: Item, gallery: Sequence[Item], length: int
) -> list[tuple[int, bool]]:
    """The first gallery images of one query, [(gallery index, right?)], nearest first.

    Images of the query's identity under its own camera are junk and left out, as in the evaluation; among equal
    distances the smaller index comes first.

    Args:
        distances: (G,) of the query to the gallery.
    """
    order = np.argsort(distances, kind="stable")
    kept = [int(i) for i in order if not (gallery[i][1] == query[1] and gallery[i][2] == query[2])]
    return [(i, gallery[i][1] == query[1]) for i in kept[:length]]


def average_precisions(distances: np.ndarray, queries: Sequence[Item], gallery: Sequence[Item]) -> np.ndarray:
    """(Q,) average precision of each query, NaN for one without a match under another camera."""
    columns = [np.array([item[at] for item in items]) for at in (1, 2) for items in (queries, gallery)]
    matched = np.array(
        [
            ((columns[1] == identity) & (columns[3] != camera)).any()
            for identity, camera in zip(columns[0], columns[2])
        ]
    )
    result = np.full(len(queries), np.nan)
    if matched.any():
        result[matched] = evaluate_rank(distances, *columns)[1]
    return result


def sample_queries(
    before: np.ndarray | None, after: np.ndarray, count: int, seed: int = 0
) -> list[Comparison]:
    """Half of the sample at random; the rest are the largest gains and the largest losses, which say that they are.

    Args:
        before: (Q,) average precision, or None: then the whole sample is random.
        after: (Q,) average precision; NaN where a query does not count.
        count: queries to show.
        seed: of the random half.
    """
    valid = np.flatnonzero(~np.isnan(after))
    drawn = np.random.default_rng(seed).permutation(valid)
    chosen: dict[int, str] = dict.fromkeys(
        drawn[: count if before is None else (count + 1) // 2].tolist(), "at random"
    )
    if before is not None:
        gain = after - before
        order = valid[np.argsort(-gain[valid], kind="stable")]
        best = [int(q) for q in order if gain[q] > 0 and q not in chosen]
        worst = [int(q) for q in order[::-1] if gain[q] < 0 and q not in chosen]
        extremes = count - len(chosen)
        chosen |= dict.fromkeys(best[: (extremes + 1) // 2], "among the largest gains")
        chosen |= dict.fromkeys(worst[: extremes // 2], "among the largest losses")
    return [
        Comparison(q, why, None if before is None else float(before[q]), float(after[q]))
        for q, why in chosen.items()
    ]
