"""Sharing the k-NN search among processes: which part is whose, and the parts put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .candidates import Candidates

#: rows merged at once
_ROWS = 16384


@dataclass(frozen=True)
class Share:
    """Which part of a search is done here: number `number` (from 0) of `of` parts.

    Raises:
        ValueError: number outside 0..of-1.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"share must be 0..{self.of - 1} of {self.of}, got {self.number}")

    def rows(self, count: int) -> tuple[int, int]:
        """Range (start, stop) of `count` rows, for searches that finish a row at a time."""
        return count * self.number // self.of, count * (self.number + 1) // self.of

    def deal(self, work: Sequence[int]) -> list[int]:
        """Numbers of this share's pieces, ascending: the largest left goes to whoever has least so far."""
        loads = [0] * self.of
        mine = []
        for piece in sorted(range(len(work)), key=lambda i: (-work[i], i)):
            least = loads.index(min(loads))
            loads[least] += work[piece]
            if least == self.number:
                mine.append(piece)
        return sorted(mine)


def merge_shares(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of the whole search from those of all shares of it, in any order.

    A row's best are among the best of its parts, so the merged candidates prove what those of one search would.

    Args:
        parts: `knn_share` of the same features, each share once.

    Raises:
        ValueError: no part, or parts of different searches.
    """
    if not parts:
        raise ValueError("merge_shares needs the candidates of at least one share")
    first = parts[0]
    if any(part.indices.shape != first.indices.shape or part.backend != first.backend for part in parts):
        found = ", ".join(f"{part.backend} {part.indices.shape}" for part in parts)
        raise ValueError(f"the shares are of different searches ({found}): give all the same features and options")
    if len(parts) == 1:
        return first
    count, size = first.indices.shape
    indices = np.empty((count, size), dtype=np.int32)
    approximate = np.empty((count, size), dtype=np.float32)
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        values = np.concatenate([part.approximate[rows] for part in parts], axis=1)
        best = np.argpartition(-values, size - 1, axis=1)[:, :size]
        approximate[rows] = np.take_along_axis(values, best, 1)
        indices[rows] = np.take_along_axis(np.concatenate([p.indices[rows] for p in parts], axis=1), best, 1)
    farthest = lowest = None
    if first.farthest is not None:
        farthest, lowest = first.farthest.copy(), first.lowest.copy()
        for part in parts[1:]:  # ties to the smaller index, as a search in ascending order has it
            closer = (part.lowest < lowest) | ((part.lowest == lowest) & (part.farthest < farthest))
            farthest[closer], lowest[closer] = part.farthest[closer], part.lowest[closer]
    error = None if first.error is None else max(part.error for part in parts)
    return Candidates(indices, approximate, error, farthest, lowest, first.backend)
