"""Exact similarities: of a pair, of the candidates of a row, of a row with all others.

Every k-NN backend ends here, so that all of them give the same lists. One file, because numba's cache of a compiled
function does not notice changes to functions of other files.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from .candidates import Candidates
from .features import UnitRows
from .parallel import over_rows

#: features gathered at a time on another device: 128 MB in float64 for either side of the pairs
VALUES_PER_DEVICE_CALL = 2**24


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def cosine(x, inverse_norms, i, j):
    """Cosine of rows i and j: summed in float64, rounded to float32, at most 1; the same bits for (j, i).

    Neither the tiling, nor the number of threads, nor the rows around a pair change it, which a matrix product
    does not promise; equal rows therefore tie exactly.
    """
    total = 0.0
    for c in range(x.shape[1]):
        total += np.float64(x[i, c]) * np.float64(x[j, c])
    return np.float32(min(total * (inverse_norms[i] * inverse_norms[j]), 1.0))


@numba.njit(cache=True, nogil=True)
def _cosines(x, inverse_norms, first, second, out, start, stop):
    for p in range(start, stop):
        out[p] = cosine(x, inverse_norms, first[p], second[p])


def pair_cosines(rows: UnitRows, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of the pairs (first[p], second[p]), (P,) float32, computed where the rows live."""
    if rows.tensor.device.type != "cpu":
        return _cosines_on_device(rows, first, second)
    x, out = rows.tensor.numpy(), np.empty(len(first), dtype=np.float32)
    over_rows(
        lambda start, stop: _cosines(x, rows.inverse_norms, first, second, out, start, stop), len(out), 4096
    )
    return out


def _cosines_on_device(rows: UnitRows, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The same in torch; its float64 sum may round differently in the last bit of one pair in millions."""
    out = np.empty(len(first), dtype=np.float32)
    device = rows.tensor.device
    per_call = max(1, VALUES_PER_DEVICE_CALL // rows.dim)
    for start in range(0, len(first), per_call):
        i, j = first[start : start + per_call], second[start : start + per_call]
        left = rows.tensor[torch.from_numpy(i.astype(np.int64)).to(device)].double()
        right = rows.tensor[torch.from_numpy(j.astype(np.int64)).to(device)].double()
        total = (left * right).sum(1).cpu().numpy() * (rows.inverse_norms[i] * rows.inverse_norms[j])
        out[start : start + per_call] = np.minimum(total, 1.0)
    return out


@numba.njit(cache=True, nogil=True)
def _insert(similarities, indices, length, similarity, index):
    """Insert into a list ordered by (similarity descending, index ascending) that holds `length` entries.

    A full list drops its last entry. Returns the new length.
    """
    capacity = similarities.shape[0]
    if length == capacity:
        last = similarities[capacity - 1]
        if similarity < last or (similarity == last and index > indices[capacity - 1]):
            return length
        length -= 1
    place = length
    while place > 0 and (
        similarities[place - 1] < similarity
        or (similarities[place - 1] == similarity and indices[place - 1] > index)
    ):
        similarities[place] = similarities[place - 1]
        indices[place] = indices[place - 1]
        place -= 1
    similarities[place] = similarity
    indices[place] = index
    return length + 1


@numba.njit(cache=True, nogil=True)
def _rescore(
    x, inverse_norms, candidates, approximate, error, all_pairs, out_index, out_similarity, proven, start, stop
):
    wanted = out_index.shape[1] - 1  # without the row itself
    size = candidates.shape[1]
    kept = np.empty(wanted, dtype=np.float32)
    kept_index = np.empty(wanted, dtype=np.int32)
    for row in range(start, stop):
        # the wanted-th best approximate value: nothing more than two errors below it can be among the best
        length = 0
        for c in range(size):
            length = _insert(kept, kept_index, length, approximate[row, c], candidates[row, c])
        floor = kept[wanted - 1] - 2 * error
        lowest = np.float32(np.inf)
        length = 0
        consistent = True
        for c in range(size):
            value = approximate[row, c]
            lowest = min(lowest, value)
            if value >= floor and candidates[row, c] >= 0:
                similarity = cosine(x, inverse_norms, row, candidates[row, c])
                consistent &= abs(similarity - value) <= error
                length = _insert(kept, kept_index, length, similarity, candidates[row, c])
        out_index[row, 0] = row
        out_similarity[row, 0] = 1.0
        for p in range(length):
            out_index[row, p + 1] = kept_index[p]
            out_similarity[row, p + 1] = kept[p]
        # whatever was not listed has at most the lowest listed value, give or take the error
        complete = lowest > -np.inf and (size == x.shape[0] - 1 or lowest + error < kept[wanted - 1])
        proven[row] = consistent and length == wanted and (complete or not all_pairs)


@numba.njit(cache=True, nogil=True)
def _best_of_block(block, row_numbers, col_start, lengths, out_index, out_similarity):
    """Merge a block of exact similarities into the lists of `row_numbers`; columns come in ascending order."""
    for r in range(block.shape[0]):
        row = row_numbers[r]
        length = lengths[r]
        wanted = out_index.shape[1] - 1
        for c in range(block.shape[1]):
            col = col_start + c
            value = min(np.float32(block[r, c]), np.float32(1.0))
            if col != row and (length < wanted or value > out_similarity[row, wanted]):
                length = _insert(out_similarity[row, 1:], out_index[row, 1:], length, value, np.int32(col))
        lengths[r] = length


def search_rows_exactly(
    rows: UnitRows, which: np.ndarray, out_index: np.ndarray, out_similarity: np.ndarray, *, tile: int = 1024
) -> np.ndarray:
    """Write the exact lists of the rows `which`, by float64 products with all rows; the slow and certain way.

    Args:
        out_index, out_similarity: (N, k) arrays whose rows `which` are written, self first.

    Returns:
        (len(which),) float32, the smallest similarity of each of these rows.
    """
    scale = torch.from_numpy(rows.inverse_norms).to(rows.tensor.device)
    smallest = np.ones(len(which), dtype=np.float32)
    for start in range(0, len(which), tile):
        numbers = which[start : start + tile]
        chosen = torch.from_numpy(numbers).to(rows.tensor.device)
        left = rows.tensor[chosen].double() * scale[chosen, None]
        lengths = np.zeros(len(numbers), dtype=np.int64)
        out_index[numbers, 0] = numbers
        out_similarity[numbers, 0] = 1.0
        for first in range(0, len(rows), tile):
            right = rows.tensor[first : first + tile].double() * scale[first : first + tile, None]
            block = (left @ right.T).cpu().numpy()
            _best_of_block(block, numbers, first, lengths, out_index, out_similarity)
            smallest[start : start + tile] = np.minimum(smallest[start : start + tile], block.min(1))
    return smallest


def rescore(rows: UnitRows, candidates: Candidates, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The k most similar rows of each row, exactly, from candidates.

    A row whose candidates do not prove that nothing was missed (more near-ties than the margin holds) is
    searched again in float64. Candidates of an approximate search prove nothing and are taken for all there is; only
    a row with fewer than k - 1 of them is searched again.

    Returns:
        indices: (N, k) int32, the row itself first, then by (similarity descending, index ascending).
        similarities: (N, k) float32.
        redone: number of rows that had to be searched again.
    """
    count = len(rows)
    indices = np.empty((count, k), dtype=np.int32)
    similarities = np.empty((count, k), dtype=np.float32)
    if k == 1:
        indices[:, 0], similarities[:, 0] = np.arange(count), 1.0
        return indices, similarities, 0
    proven = np.empty(count, dtype=np.bool_)
    all_pairs = candidates.error is not None
    error = np.float32(candidates.error if all_pairs else np.inf)  # approximate: all of them are scored
    on_cpu = rows.tensor.device.type == "cpu"
    if on_cpu:
        x, inverse_norms = rows.tensor.numpy(), rows.inverse_norms
        over_rows(
            lambda start, stop: _rescore(
                x, inverse_norms, candidates.indices, candidates.approximate, error, all_pairs,
                indices, similarities, proven, start, stop,
            ),
            count, 512,
        )  # fmt: skip
    else:
        _rescore_on_device(rows, candidates, error, all_pairs, indices, similarities, proven)
    doubtful = np.flatnonzero(~proven)
    if len(doubtful):
        search_rows_exactly(rows, doubtful, indices, similarities)
    return indices, similarities, len(doubtful)


def _rescore_on_device(rows, candidates, error, all_pairs, indices, similarities, proven) -> None:
    """`_rescore` for rows that live on another device: the products there, the small sort here."""
    count, size = candidates.indices.shape
    wanted = indices.shape[1] - 1
    indices[:, 0], similarities[:, 0] = np.arange(count), 1.0
    for start in range(0, count, 65536):
        listed = candidates.indices[start : start + 65536]
        approximate = candidates.approximate[start : start + 65536]
        number = np.repeat(np.arange(start, start + len(listed), dtype=np.int32), size)
        exact = pair_cosines(rows, number, np.maximum(listed, 0).ravel()).reshape(listed.shape)
        consistent = ((np.abs(exact - approximate) <= error) | (listed < 0)).all(1)
        exact[listed < 0] = -np.inf
        order = np.lexsort((listed, -exact), axis=1)[:, :wanted]
        indices[start : start + len(listed), 1:] = np.take_along_axis(listed, order, 1)
        best = np.take_along_axis(exact, order, 1)
        similarities[start : start + len(listed), 1:] = best
        worst = best[:, -1]
        lowest = approximate.min(1)
        complete = (lowest > -np.inf) & ((size == count - 1) | (lowest + error < worst))
        proven[start : start + len(listed)] = consistent & (worst > -np.inf) & (complete | (not all_pairs))
