"""How many of the true neighbours an approximate search finds, on a sample."""

from __future__ import annotations

import numpy as np

#: rows sampled
SAMPLE_ROWS = 256


def sample_of(count: int, seed: int) -> np.ndarray:
    """Up to `SAMPLE_ROWS` of `count` rows at random, ascending; the same for the same seed."""
    return np.sort(np.random.default_rng(seed).choice(count, min(SAMPLE_ROWS, count), replace=False))


def recall_of(similarities: np.ndarray, exact: np.ndarray) -> float:
    """Share of the true neighbours that were found, the row itself not counted; any of tied ones will do.

    Args:
        similarities: (S, k) of what was found, self first. exact: (S, k) of an exact search.
    """
    if exact.shape[1] == 1:
        return 1.0
    # one unit in the last place: a pair may have been rounded on another device
    return float((similarities[:, 1:] >= exact[:, -1:] - 2.0**-23).mean())
