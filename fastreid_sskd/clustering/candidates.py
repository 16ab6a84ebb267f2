"""First pass of the k-NN search: more candidates than asked for, by approximate similarity with a known error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
import torch

from .features import UnitRows
from .parallel import in_threads, num_threads, split

#: relative error of one product from cutting both factors to 10 (TF32) or 7 (bfloat16) bits of fraction, under each
#: torch.get_float32_matmul_precision(); cutting, since not all hardware rounds
_MATMUL_INPUT_ROUNDING = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}

#: values compared at once before any of them is looked at, and again of those that hold something; measured best
CHUNK = 64
PART = 16
#: values of a row between two looks at its threshold; a multiple of CHUNK
SEGMENT = 512


@dataclass
class Candidates:
    """The most similar rows of each row, itself left out, in no order.

    Attributes:
        indices: (N, M) int32; -1 where a backend found fewer.
        approximate: (N, M) float32 similarities, each within `error` of the true one; -inf beside a -1.
        error: bound on |approximate - true| of *every* pair, also of those not listed; None for an approximate search,
            which says nothing about those.
        farthest: (N,) int64, the least similar row of each row, or None if not asked for.
        lowest: (N,) float32, its approximate similarity; inf where this share of a search saw no other row.
        backend: name of the search.
    """

    indices: np.ndarray
    approximate: np.ndarray
    error: float | None
    farthest: np.ndarray | None = None
    lowest: np.ndarray | None = None
    backend: str = ""


def product_error(rows: UnitRows) -> float:
    """Bound on the error of a float32 matrix product of unit rows: d roundings of at most 2^-24 each.

    Also covers rows that are unit only to rounding and the lower precision that torch may have been told to use.
    """
    try:
        told = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch >= 2.9 refuses to say where its newer switches were used
        told = "medium"
    rounding = (rows.dim + 4) * 2.0**-24 + _MATMUL_INPUT_ROUNDING[told]
    return rounding + 2 * min(rows.norm_error, 2.0**-16) + 2.0**-22


@numba.njit(cache=True, nogil=True)
def _replace_smallest(values, indices, value, index):
    """Replace the root of a min-heap."""
    size = values.shape[0]
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[hole] = values[child]
        indices[hole] = indices[child]
        hole = child
    values[hole] = value
    indices[hole] = index


@numba.njit(cache=True, nogil=True)
def _merge_rows(tile, first_row, first_col, values, indices, lowest, farthest, start, stop):
    """Merge rows start..stop of a tile into the lists of these rows."""
    width = tile.shape[1]
    whole = width - width % CHUNK
    hits = np.empty(width, dtype=np.int32)
    for i in range(start, stop):
        row = first_row + i
        line = tile[i]
        own_values, own_indices = values[row], indices[row]
        low = lowest[row]
        for first in range(0, width, SEGMENT):  # the threshold rises on the way: use what it has become
            threshold = own_values[0]
            found = 0
            for chunk in range(first, min(first + SEGMENT, whole), CHUNK):
                hit = np.int32(0)
                values_here = line[chunk : chunk + CHUNK]
                for j in range(CHUNK):  # no branch, a fixed length, whole numbers: compiles to vector comparisons
                    hit |= np.int32((values_here[j] > threshold) | (values_here[j] < low))
                if not hit:
                    continue
                for part in range(chunk, chunk + CHUNK, PART):
                    hit = np.int32(0)
                    values_here = line[part : part + PART]
                    for j in range(PART):
                        hit |= np.int32((values_here[j] > threshold) | (values_here[j] < low))
                    if hit:
                        for j in range(part, part + PART):
                            hits[found] = j
                            found += (line[j] > threshold) | (line[j] < low)
            if first + SEGMENT > whole:
                for j in range(whole, width):
                    hits[found] = j
                    found += (line[j] > threshold) | (line[j] < low)
            for h in range(found):
                col = first_col + hits[h]
                value = line[hits[h]]
                if value > own_values[0] and col != row:
                    _replace_smallest(own_values, own_indices, value, col)
                if value < low:
                    low = value
                    farthest[row] = col
        lowest[row] = low


@numba.njit(cache=True, nogil=True)
def _merge_columns(tile, first_row, first_col, values, indices, threshold, lowest, farthest, start, stop):
    """Merge columns start..stop of a tile into the lists of the rows that these columns stand for."""
    bound = threshold[first_col : first_col + tile.shape[1]]
    low = lowest[first_col : first_col + tile.shape[1]]
    whole = stop - (stop - start) % CHUNK
    hits = np.empty(stop - start, dtype=np.int32)
    for i in range(tile.shape[0]):
        row = first_row + i
        line = tile[i]
        found = 0
        for chunk in range(start, whole, CHUNK):
            hit = np.int32(0)
            values_here, bound_here, low_here = (
                line[chunk : chunk + CHUNK], bound[chunk : chunk + CHUNK], low[chunk : chunk + CHUNK]
            )  # fmt: skip
            for j in range(CHUNK):
                hit |= np.int32((values_here[j] > bound_here[j]) | (values_here[j] < low_here[j]))
            if not hit:
                continue
            for part in range(chunk, chunk + CHUNK, PART):
                hit = np.int32(0)
                values_here, bound_here, low_here = (
                    line[part : part + PART], bound[part : part + PART], low[part : part + PART]
                )  # fmt: skip
                for j in range(PART):
                    hit |= np.int32((values_here[j] > bound_here[j]) | (values_here[j] < low_here[j]))
                if hit:
                    for j in range(part, part + PART):
                        hits[found] = j
                        found += (line[j] > bound[j]) | (line[j] < low[j])
        for j in range(whole, stop):
            hits[found] = j
            found += (line[j] > bound[j]) | (line[j] < low[j])
        for h in range(found):
            j = hits[h]
            value = line[j]
            if value > bound[j]:
                _replace_smallest(values[first_col + j], indices[first_col + j], value, row)
                bound[j] = values[first_col + j, 0]
            if value < low[j]:
                low[j] = value
                farthest[first_col + j] = row


def symmetric_tiles(
    rows: UnitRows,
    size: int,
    *,
    need_farthest: bool,
    tile: tuple[int, int],
    progress: Callable[[int, int], None],
    deal: Callable[[list[int]], list[int]] = lambda work: list(range(len(work))),
) -> Candidates:
    """Candidates on the CPU: tiles on and above the diagonal only, each merged into its rows and its columns.

    Args:
        size: M, candidates per row, at most N - 1.
        deal: which of the strips of tiles are done here, from the work in each; all of them unless given.
        tile: rows and columns of a tile; the one N-independent buffer holds their product. Few rows waste little
            below the diagonal, many columns keep the product fast.
    """
    count = len(rows)
    tile_rows, tile_cols = (min(side, count) for side in tile)
    values = np.full((count, size), -np.inf, dtype=np.float32)
    indices = np.full((count, size), -1, dtype=np.int32)
    threshold = np.full(count, -np.inf, dtype=np.float32)
    lowest = np.full(count, np.inf, dtype=np.float32)
    farthest = np.arange(count, dtype=np.int64)
    buffer = torch.empty(tile_rows * tile_cols, dtype=torch.float32)
    row_parts = (num_threads() + 1) // 2
    tops = range(0, count, tile_rows)
    work = [(count - top) * min(tile_rows, count - top) for top in tops]
    mine = deal(work)
    done, total = 0, sum(work[strip] for strip in mine)
    for strip in mine:
        top = tops[strip]
        left = rows.block(top, top + tile_rows)
        bottom = top + len(left)
        width = count - top
        for start, stop in split(width, -(-width // tile_cols)):
            right = rows.block(top + start, top + stop)
            product = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.T, out=product)
            part, first_col = product.numpy(), top + start
            merges = [
                partial(_merge_rows, part, top, first_col, values, indices, lowest, farthest, *span)
                for span in split(len(left), row_parts)
            ]
            below = max(bottom - first_col, 0)  # columns of the square on the diagonal: its rows are enough
            if below < len(right):
                merges += [
                    partial(
                        _merge_columns, part, top, first_col, values, indices, threshold, lowest, farthest,
                        below + span[0], below + span[1],
                    )
                    for span in split(len(right) - below, max(num_threads() // 2, 1))
                ]  # fmt: skip
            for _ in in_threads(merges):
                pass
        done += work[strip]
        progress(done, total)
    if not need_farthest:
        farthest = lowest = None
    return Candidates(indices, values, product_error(rows), farthest, lowest)


def device_topk(
    rows: UnitRows,
    size: int,
    *,
    need_farthest: bool,
    tile: int,
    progress: Callable[[int, int], None],
    span: tuple[int, int] | None = None,
) -> Candidates:
    """Candidates on any device that torch has: every tile, with torch's own top-k and a running merge.

    Twice the products of `symmetric_tiles`, but nothing leaves the device until a row is finished.

    Args:
        span: rows (start, stop) that are searched; all of them unless given. The others stay without candidates.
    """
    count = len(rows)
    begin, end = span or (0, count)
    values = np.full((count, size), -np.inf, dtype=np.float32)
    indices = np.full((count, size), -1, dtype=np.int32)
    farthest = np.arange(count, dtype=np.int64)
    smallest = np.full(count, np.inf, dtype=np.float32)
    for start in range(begin, end, tile):
        left = rows.block(start, min(start + tile, end))
        own = torch.arange(start, start + len(left), device=left.device)
        best = left.new_full((len(left), 0), 0.0)
        best_index = own.new_full((len(left), 0), 0)
        lowest = left.new_full((len(left),), float("inf"))
        lowest_index = own.clone()
        for col_start in range(0, count, tile):
            right = rows.block(col_start, col_start + tile)
            product = left @ right.T
            if need_farthest:
                value, index = product.min(1)
                closer = value < lowest
                lowest = torch.where(closer, value, lowest)
                lowest_index = torch.where(closer, index + col_start, lowest_index)
            own_columns = (own >= col_start) & (own < col_start + len(right))
            product[own_columns, own[own_columns] - col_start] = float("-inf")
            value, index = product.topk(min(size, len(right)), dim=1, sorted=False)
            best = torch.cat([best, value], 1)
            best_index = torch.cat([best_index, index + col_start], 1)
            if best.shape[1] > size:
                best, keep = best.topk(size, dim=1, sorted=False)
                best_index = best_index.gather(1, keep)
        searched = slice(start, start + len(left))
        values[searched], indices[searched] = best.cpu().numpy(), best_index.cpu().numpy()
        farthest[searched], smallest[searched] = lowest_index.cpu().numpy(), lowest.cpu().numpy()
        progress(start + len(left) - begin, end - begin)
    found = (farthest, smallest) if need_farthest else (None, None)
    return Candidates(indices, values, product_error(rows), *found)
