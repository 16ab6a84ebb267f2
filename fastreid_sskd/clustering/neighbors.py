"""First pass of the k-NN search: more candidates than asked for, by approximate similarity with a known error."""
from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numba
import numpy as np
import torch

from .features import UnitRows
from .parallel import Progress, in_threads, no_progress, num_threads, over_rows, split

logger = logging.getLogger("fastreid.sskd.clustering")

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


#: rows and columns of one tile on the CPU: 32 MB of float32, which stays in a server's cache
CPU_TILE = (1024, 8192)
DEVICE_TILE = 16384
#: rows that faiss is asked about at a time
FAISS_QUERIES = 8192


@dataclass(frozen=True)
class ApproximateOptions:
    """How the approximate searches "reduced" and "ivf" look.

    Attributes:
        reduced_dim: reduced: length that features are projected to; 0: half of it, at most 256.
        lists: ivf: cells that the features are divided into (nlist); 0: 4 sqrt(N).
        probes: ivf: cells searched for each image (nprobe); 0: as many as a sample needs to reach `min_recall`.
        min_recall: share of the true neighbours that must be found, (0, 1]; below it a warning is logged.

    Raises:
        ValueError: out of range.
    """

    reduced_dim: int = 0
    lists: int = 0
    probes: int = 0
    min_recall: float = 0.98

    def __post_init__(self) -> None:
        if min(self.reduced_dim, self.lists, self.probes) < 0 or not 0 < self.min_recall <= 1:
            raise ValueError(
                "REDUCED_DIM, IVF_LISTS and IVF_PROBES must be >= 0 and MIN_RECALL in (0, 1], got "
                f"{self.reduced_dim}, {self.lists}, {self.probes}, {self.min_recall}: see SSKD.CLUSTER"
            )


@dataclass(frozen=True)
class Search:
    """What a backend is asked for.

    Attributes:
        size: candidates per row, the row itself not counted; at most N - 1.
        wanted: how many of them the lists will keep.
        need_farthest: also the least similar row of each.
        progress: called with (done, total).
        share: which part of the search; rows that it leaves out stay at -1 and -inf.
        approximate: for the approximate searches.
    """

    size: int
    wanted: int
    need_farthest: bool = False
    progress: Progress = no_progress
    share: Share = field(default_factory=Share)
    approximate: ApproximateOptions = field(default_factory=ApproximateOptions)


Backend = Callable[[UnitRows, Search], Candidates]
#: name -> function(rows, search) -> Candidates
KNN_BACKENDS: dict[str, Backend] = {}


def register_knn(name: str) -> Callable[[Backend], Backend]:
    """Register a k-NN backend under `SSKD.CLUSTER.KNN: name`."""

    def register(backend: Backend) -> Backend:
        if name in KNN_BACKENDS:
            raise ValueError(f"k-NN backend {name!r} is registered twice: choose another name")
        KNN_BACKENDS[name] = backend
        return backend

    return register


@register_knn("torch")
def torch_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Matrix products and top-k on the device where the rows are.

    In float32: on processors without matrix units for them, products of bfloat16 are slower (measured on AVX-512: a
    quarter of float32's rate) and those of int8 no faster.
    """
    options = {"need_farthest": search.need_farthest, "progress": search.progress}
    if rows.tensor.device.type == "cpu":
        return symmetric_tiles(rows, search.size, tile=CPU_TILE, deal=search.share.deal, **options)
    return device_topk(rows, search.size, tile=DEVICE_TILE, span=search.share.rows(len(rows)), **options)


@register_knn("faiss")
def faiss_candidates(rows: UnitRows, search: Search) -> Candidates:
    """faiss's flat index, on the first GPU that faiss-gpu sees or on the CPU (it holds a copy of the features)."""
    faiss = import_faiss("faiss")
    with faiss_threads(faiss):
        index = on_gpu(faiss, faiss.IndexFlatIP(rows.dim))
        add_rows(index, rows)
        return faiss_search(index, rows, search, product_error(rows))


def import_faiss(name: str):
    """The module faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f"SSKD.CLUSTER.KNN is {name!r}, which needs faiss, which is not installed: pip install faiss-cpu, or set "
            "it to 'auto'"
        ) from error
    return faiss


@contextlib.contextmanager
def faiss_threads(faiss) -> Iterator[None]:
    """As many threads as torch uses; faiss has an OpenMP runtime of its own."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def on_gpu(faiss, index):
    """The index on one GPU where faiss can use any. One: several are known to return wrong distances silently."""
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return index
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index)


def add_rows(index, rows: UnitRows) -> None:
    """Add all rows, normalised, block by block."""
    for start in range(0, len(rows), FAISS_QUERIES):
        index.add(rows.block(start, start + FAISS_QUERIES).cpu().numpy())


def faiss_search(index, rows: UnitRows, search: Search, error: float | None) -> Candidates:
    """Ask the index about this share of the rows; a row's least similar one is the nearest to its opposite."""
    count, size = len(rows), search.size
    values = np.full((count, size), -np.inf, dtype=np.float32)
    indices = np.full((count, size), -1, dtype=np.int32)
    farthest = np.arange(count, dtype=np.int64)
    lowest = np.full(count, np.inf, dtype=np.float32)
    begin, end = search.share.rows(count)
    for start in range(begin, end, FAISS_QUERIES):
        queries = rows.block(start, min(start + FAISS_QUERIES, end)).cpu().numpy()
        stop = start + len(queries)
        value, found = index.search(queries, size + 1)
        # drop the row itself; with many exact duplicates it may not be listed: then the last one goes
        own = found == np.arange(start, stop)[:, None]
        own[~own.any(1), -1] = True
        indices[start:stop] = found[~own].reshape(-1, size)
        values[start:stop] = np.where(indices[start:stop] < 0, -np.inf, value[~own].reshape(-1, size))
        if search.need_farthest:
            value, found = index.search(-queries, 1)
            seen = found[:, 0] >= 0  # the cells searched may be empty
            farthest[start:stop] = np.where(seen, found[:, 0], farthest[start:stop])
            lowest[start:stop] = np.where(seen, -value[:, 0], lowest[start:stop])
        search.progress(stop - begin, end - begin)
    found = (farthest, lowest) if search.need_farthest else (None, None)
    return Candidates(indices, values, error, *found)


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


#: candidates beyond those of an exact search: neighbours whose order the projection has changed
MORE_CANDIDATES = 24
#: rows that the directions are learned from, evenly spread, and rows projected at a time
LEARN_ROWS, PROJECT_ROWS = 20_000, 8192
#: longest projection unless told
AUTOMATIC_DIM = 256


@register_knn("reduced")
def reduced_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Exact search of the features' projections to the directions of their largest second moments.

    Measured with d = 2048 to 256 at 32,621 rows: half the time, recall 1.000; 256 to 128: three quarters, .999. A row's
    least similar row is approximate too. Holds the projections, N * reduced_dim float32.
    """
    dim = search.approximate.reduced_dim or min(AUTOMATIC_DIM, (rows.dim + 1) // 2)
    if dim >= rows.dim:
        logger.info("k-NN 'reduced': features of length %d are not longer than %d, searching exactly", rows.dim, dim)
        return torch_candidates(rows, search)
    size = min(search.size + MORE_CANDIDATES, len(rows) - 1)
    candidates = torch_candidates(_projected(rows, dim), replace(search, size=size))
    return replace(candidates, error=None)


def _projected(rows: UnitRows, dim: int) -> UnitRows:
    """The rows in `dim` dimensions, not normalised again: their products are near those of the rows as they are."""
    count = len(rows)
    sample = rows.take(np.linspace(0, count - 1, min(count, LEARN_ROWS)).astype(np.int64))
    directions = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -dim:]
    out = torch.empty(count, dim, device=rows.tensor.device)
    for start in range(0, count, PROJECT_ROWS):
        block = rows.block(start, start + PROJECT_ROWS)
        torch.mm(block, directions, out=out[start : start + len(block)])
    return UnitRows(out, np.ones(count), 0.0)


#: rows per cell that the cells are learned from, rounds of k-means, and the seed of the sample
ROWS_PER_CELL = 40
ROUNDS = 10
SEED = 0


@register_knn("ivf")
def ivf_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Approximate, for millions of images; a row's least similar row is approximate too. See `build_ivf`."""
    faiss = import_faiss("ivf")
    with faiss_threads(faiss):
        return faiss_search(build_ivf(faiss, rows, search), rows, search, None)


def build_ivf(faiss, rows: UnitRows, search: Search):
    """A trained and filled index that searches `probes` cells for each row.

    The same for the same features: the cells are learned from evenly spread rows, and faiss draws from a fixed seed.
    It holds a copy of the features.

    Args:
        search: its `approximate` and `wanted`; with probes 0 they are doubled until a sample of rows finds the share
            `min_recall` of its neighbours.
    """
    count = len(rows)
    lists = min(search.approximate.lists or round(4 * math.sqrt(count)), count)
    quantizer = faiss.IndexFlatIP(rows.dim)
    index = faiss.IndexIVFFlat(quantizer, rows.dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.spherical = ROUNDS, True
    index.cp.min_points_per_centroid = 1  # more cells than usual are for the caller to choose
    index = on_gpu(faiss, index)
    chosen = np.linspace(0, count - 1, min(count, ROWS_PER_CELL * lists)).astype(np.int64)
    index.train(rows.take(chosen).cpu().numpy())
    add_rows(index, rows)
    probes = search.approximate.probes or _enough_probes(index, rows, search, lists)
    index.nprobe = min(probes, lists)
    logger.info("k-NN: %d of %d cells are searched for each of %d images", index.nprobe, lists, count)
    return index


def _enough_probes(index, rows: UnitRows, search: Search, lists: int) -> int:
    """The smallest power of two (or all cells) whose recall on a sample reaches the one wanted."""
    sample = sample_of(len(rows), SEED)
    k = search.wanted + 1
    exact_index = np.empty((len(rows), k), dtype=np.int32)
    exact = np.empty((len(rows), k), dtype=np.float32)
    search_rows_exactly(rows, sample, exact_index, exact)
    queries = rows.take(sample).cpu().numpy()
    least = exact[sample, -1:] - np.float32(product_error(rows))
    probes = 1
    while probes < lists:
        index.nprobe = probes
        value, found = index.search(queries, k)
        hits = ((value >= least) & (found >= 0)).sum() - len(sample)  # itself is no neighbour
        if hits >= search.approximate.min_recall * len(sample) * (k - 1):
            return probes
        probes *= 2
    return lists


#: candidates listed beyond k, so that near-ties at the end of a list are settled without a second search
CANDIDATE_MARGIN = 8
#: rows on which any backend but torch on the CPU is compared with an exact search
SELF_CHECK_ROWS = 32
SELF_CHECK_TOLERANCE = 2.0**-22
#: seed of the rows that recall is measured on; other rows than those that a search tunes itself on
RECALL_SEED = 1
#: share of rows searched twice from which the log says so: the features are almost equal, or the backend errs
NOTABLE_SHARE_SEARCHED_TWICE = 0.1


@dataclass(frozen=True)
class Neighbors:
    """The k most similar rows of each row.

    Attributes:
        indices: (N, k) int32, the row itself first, the others by (similarity descending, index ascending).
        similarities: (N, k) float32 cosines, in [-1, 1].
        smallest: (N,) float32, cosine of the row's least similar row, or None if not asked for.
        recall: of an approximate search, the share of the true neighbours listed, measured on a sample; None: exact.
    """

    indices: np.ndarray
    similarities: np.ndarray
    smallest: np.ndarray | None = None
    recall: float | None = None

    @property
    def k(self) -> int:
        """Entries per list, self included."""
        return self.indices.shape[1]


def nearest_neighbors(
    features,
    k: int,
    *,
    backend: str = "auto",
    device: str | torch.device | None = None,
    need_smallest: bool = False,
    progress: Progress = no_progress,
    approximate: ApproximateOptions | None = None,
) -> Neighbors:
    """The k most similar rows of every row by cosine, self first, ties in ascending order of index.

    The lists do not depend on tiles, threads, shares or the backend (approximate ones apart): candidates are found by
    float32 products with a bound on their error, re-scored in float64, and a row for which that proves nothing is
    searched in float64.

    Args:
        features: (N, d), numpy array or torch tensor; normalised inside when not unit norm.
        k: entries per list, self included; cut at N.
        backend: "auto" (torch), "torch", "faiss"; or approximate, with its recall measured and logged: "reduced",
            "ivf".
        device: where torch searches; the tensor's own device (the CPU for numpy) when None.
        need_smallest: also find each row's smallest similarity.
        progress: called with (done, total).
        approximate: options of "reduced" and "ivf".

    Raises:
        ValueError: bad features (see `UnitRows.from_features`), k < 1 or an unknown backend.

    Memory beyond the features: N * (k + 16) * 8 bytes for the candidates, 16 MB for a tile; faiss copies the features.
    """
    rows = UnitRows.from_features(features, device)
    options = {"need_smallest": need_smallest, "progress": progress, "approximate": approximate}
    return lists_from_candidates(rows, k, knn_share(rows, k, backend=backend, **options), **options)


def knn_share(
    features,
    k: int,
    *,
    share: Share | None = None,
    backend: str = "auto",
    device: str | torch.device | None = None,
    need_smallest: bool = False,
    progress: Progress = no_progress,
    approximate: ApproximateOptions | None = None,
) -> Candidates:
    """One share of the search: candidates for `merge_shares`, then `lists_from_candidates`.

    Every process gives the same features and options and a share of its own; how many share does not change the
    lists. On the CPU tiles are dealt, so that the products stay half of N x N in all; other searches take
    a range of rows.

    Args:
        share: the whole search when None. The others are those of `nearest_neighbors`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 (a list holds the row itself), got {k}")
    name = "torch" if backend == "auto" else backend
    if name not in KNN_BACKENDS:
        raise ValueError(
            f"unknown k-NN backend {backend!r}: SSKD.CLUSTER.KNN is one of auto, {', '.join(KNN_BACKENDS)}"
        )
    rows = UnitRows.from_features(features, device)
    others = len(rows) - 1
    size, wanted = min(k - 1 + CANDIDATE_MARGIN, others), min(k - 1, others)
    search = Search(size, wanted, need_smallest, progress, share or Share(), approximate or ApproximateOptions())
    return replace(KNN_BACKENDS[name](rows, search), backend=name)


def lists_from_candidates(
    features,
    k: int,
    candidates: Candidates,
    *,
    need_smallest: bool = False,
    progress: Progress = no_progress,
    approximate: ApproximateOptions | None = None,
) -> Neighbors:
    """Exact lists from the candidates of a whole search, which is checked on a sample of rows.

    A search that errs is warned of and done again by torch, where the features are and then on the CPU.
    """
    rows = UnitRows.from_features(features)
    count = len(rows)
    k = min(k, count)
    indices, similarities, redone = rescore(rows, candidates, k)
    smallest = pair_cosines(rows, np.arange(count), candidates.farthest) if need_smallest else None
    found = Neighbors(indices, similarities, smallest)
    on_cpu = rows.tensor.device.type == "cpu"
    if candidates.error is None:
        recall = _measured_recall(rows, found, candidates.backend, approximate or ApproximateOptions())
        return replace(found, recall=recall)
    if not (candidates.backend == "torch" and on_cpu) and not _agrees_with_exact(rows, found):
        again = rows.cpu() if candidates.backend == "torch" else rows
        logger.warning(
            "k-NN backend %r on %s disagrees with an exact search on a sample: searching with torch on %s",
            candidates.backend,
            rows.tensor.device,
            again.tensor.device,
        )
        return nearest_neighbors(again, k, backend="torch", need_smallest=need_smallest, progress=progress)
    if redone:
        level = logging.INFO if redone > count * NOTABLE_SHARE_SEARCHED_TWICE else logging.DEBUG
        logger.log(
            level, "k-NN: %d of %d rows have too many near-ties and were searched twice", redone, count
        )
    return found


def _agrees_with_exact(rows: UnitRows, found: Neighbors) -> bool:
    """Compare rows spread over the data with an exact search; multi-GPU faiss is known to err silently."""
    sample = np.unique(np.linspace(0, len(rows) - 1, min(SELF_CHECK_ROWS, len(rows))).astype(np.int64))
    index, similarity = found.indices.copy(), found.similarities.copy()
    smallest = search_rows_exactly(rows, sample, index, similarity)
    agrees = np.abs(similarity[sample] - found.similarities[sample]).max() <= SELF_CHECK_TOLERANCE
    if found.smallest is not None:
        # that of float32 products, which may take another row within their error for the least similar
        agrees &= np.abs(smallest - found.smallest[sample]).max() <= product_error(rows)
    return bool(agrees)


def _measured_recall(rows: UnitRows, found: Neighbors, backend: str, approximate: ApproximateOptions) -> float:
    """Recall on a random sample of rows; logged, a low one as a warning."""
    sample = sample_of(len(rows), RECALL_SEED)
    index, exact = np.empty_like(found.indices), np.empty_like(found.similarities)
    search_rows_exactly(rows, sample, index, exact)
    recall = recall_of(found.similarities[sample], exact[sample])
    if recall < approximate.min_recall:
        logger.warning(
            "k-NN %r finds only %.4f of the neighbours (recall at %d, %d images sampled), below "
            "SSKD.CLUSTER.MIN_RECALL %g: labels suffer; raise SSKD.CLUSTER.REDUCED_DIM or IVF_PROBES, or search "
            "exactly",
            backend, recall, found.k, len(sample), approximate.min_recall,
        )  # fmt: skip
    else:
        logger.info("k-NN %r: recall at %d is %.4f on %d images", backend, found.k, recall, len(sample))
    return recall
