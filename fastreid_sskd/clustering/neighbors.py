"""k-nearest neighbors by cosine in memory O(N k): candidates by blocked products, scored again in float64.

All kernels that call each other are in one file: numba's cache does not notice changes in other files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numba
import numpy as np
import torch

from .features import UnitRows
from .options import ClusterOptions
from .parallel import LogProgress, in_threads

logger = logging.getLogger("fastreid.sskd.clustering")

#: candidates listed beyond k, so that near-ties at the end of a list are settled without a second search
CANDIDATE_MARGIN = 8
#: rows and columns of a tile of the product: 16 MB of float32, which stays in a server's cache
CPU_TILE = (1024, 4096)
DEVICE_TILE = (4096, 16384)
#: rows scored, or merged, at a time
ROWS_AT_ONCE = 4096
#: features gathered at a time on another device: 128 MB in float64 for either side of the pairs
VALUES_PER_DEVICE_CALL = 2**24
#: rows on which any search but torch on the CPU is compared with an exact one
SELF_CHECK_ROWS = 32
SELF_CHECK_TOLERANCE = 2.0**-22
#: rows sampled for the recall of an approximate search, and their seed
SAMPLE_ROWS = 256
RECALL_SEED = 1
#: ratio of rows searched twice from which the log says so: features are almost equal, or the search errs
NOTABLE_RATIO_SEARCHED_TWICE = 0.1

#: relative error of one product from cutting both factors to 10 (TF32) or 7 (bfloat16) bits of fraction,
#: under each torch.get_float32_matmul_precision(); cutting, since not all hardware rounds
_MATMUL_INPUT_ROUNDING = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}


@dataclass(frozen=True)
class Neighbors:
    """The k most similar rows of each row.

    Attributes:
        indices: (N, k) int32, the row itself first, the others by (similarity descending, index ascending).
        similarities: (N, k) float32 cosines, in [-1, 1].
        smallest: (N,) float32, cosine of the row's least similar row, or None if not asked for.
        recall: of an approximate search, the ratio of true neighbors listed, measured on a sample; None:
            exact.
    """

    indices: np.ndarray
    similarities: np.ndarray
    smallest: np.ndarray | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 0) of the `of` parts of a search."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"shard must be 0..{self.of - 1} of {self.of}, got {self.number}")

    def rows(self, count: int) -> tuple[int, int]:
        """Range (start, stop) of `count` rows, for searches that finish a row at a time."""
        return count * self.number // self.of, count * (self.number + 1) // self.of

    def strips(self, count: int) -> list[int]:
        """This shard's of `count` strips of a triangle, dealt to and fro: each is shorter than the last."""
        return [i for i in range(count) if i % (2 * self.of) in (self.number, 2 * self.of - 1 - self.number)]


@dataclass
class Candidates:
    """The most similar rows of each row, itself left out, in no order.

    Attributes:
        indices: (N, M) int32; -1 where a search found fewer.
        approximate: (N, M) float32 similarities, each within `error` of the true one; -inf beside a -1.
        error: bound on |approximate - true| of *every* pair, also of those not listed; None for an
            approximate search, which says nothing about those.
        farthest: (N,) int64, the least similar row of each row, or None if not asked for.
        lowest: (N,) float32, its approximate similarity; inf where this shard of a search saw no other row.
        backend: name of the search.
    """

    indices: np.ndarray
    approximate: np.ndarray
    error: float | None
    farthest: np.ndarray | None = None
    lowest: np.ndarray | None = None
    backend: str = ""


@dataclass(frozen=True)
class Search:
    """What a search is asked for.

    Attributes:
        size: candidates per row, the row itself not counted; at most N - 1.
        need_farthest: also the least similar row of each.
        shard: which part of the search; rows that it leaves out stay at -1 and -inf.
        options: settings of the approximate searches.
    """

    size: int
    need_farthest: bool = False
    shard: Shard = field(default_factory=Shard)
    options: ClusterOptions = field(default_factory=ClusterOptions)


Backend = Callable[[UnitRows, Search], Candidates]
#: name -> function(rows, search) -> Candidates
KNN_BACKENDS: dict[str, Backend] = {}


def register_knn(name: str) -> Callable[[Backend], Backend]:
    """Register a search under `SSKD.CLUSTER.KNN: name`; its candidates are scored again exactly."""

    def register(backend: Backend) -> Backend:
        if name in KNN_BACKENDS:
            raise ValueError(f"k-NN backend {name!r} is registered twice: choose another name")
        KNN_BACKENDS[name] = backend
        return backend

    return register


def nearest_neighbors(
    features, k: int, options: ClusterOptions | None = None, *, device: str | torch.device | None = None,
    need_smallest: bool = False, **settings,
) -> Neighbors:  # fmt: skip
    """Find the k most similar rows of every row by cosine, self first, ties in ascending order of index.

    The lists do not depend on tiles, threads, shards or the search (approximate ones apart): candidates are
    found by float32 products with a bound on their error, scored again in float64, and a row for which that
    proves nothing is searched in float64.

    Args:
        features: (N, d), numpy array or torch tensor; normalised inside when not unit norm.
        k: entries per list, self included; cut at N.
        options: of which the search is used; `settings` change single ones, e.g. knn="faiss".
        device: where torch searches; the tensor's own device (the CPU for numpy) when None.
        need_smallest: also find each row's smallest similarity.

    Raises:
        ValueError: bad features (see `UnitRows.from_features`), k < 1 or an unknown search.

    Memory beyond the features: N * (k + 16) * 8 bytes for the candidates, 64 MB for a tile; faiss copies the
    features.
    """
    options = (options or ClusterOptions()).replace(**settings)
    rows = UnitRows.from_features(features, device)
    candidates = find_candidates(rows, k, options, need_smallest=need_smallest)
    return lists_from_candidates(rows, k, candidates, options)


def find_candidates(
    features, k: int, options: ClusterOptions | None = None, *, shard: Shard | None = None,
    need_smallest: bool = False, **settings,
) -> Candidates:  # fmt: skip
    """Search one shard (all when None): candidates for `merge_shards`, `lists_from_candidates`.

    Every process gives the same features and options and a shard of its own; their number does not change the
    lists.
    """
    options = (options or ClusterOptions()).replace(**settings)
    if k < 1:
        raise ValueError(f"k must be at least 1 (a list holds the row itself), got {k}")
    name = "torch" if options.knn == "auto" else options.knn
    if name not in KNN_BACKENDS:
        raise ValueError(
            f"unknown k-NN backend {name!r}: SSKD.CLUSTER.KNN is one of auto, {', '.join(KNN_BACKENDS)}"
        )
    rows = UnitRows.from_features(features)
    size = min(k - 1 + CANDIDATE_MARGIN, len(rows) - 1)
    search = Search(size, need_smallest, shard or Shard(), options)
    return replace(KNN_BACKENDS[name](rows, search), backend=name)


def merge_shards(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of the whole search from `find_candidates` of all its shards, in any order.

    A row's best are among the best of its parts, so these prove what those of one search would.
    """
    if not parts:
        raise ValueError("merge_shards needs the candidates of at least one shard")
    first = parts[0]
    if any(part.indices.shape != first.indices.shape or part.backend != first.backend for part in parts):
        found = ", ".join(f"{part.backend} {part.indices.shape}" for part in parts)
        raise ValueError(
            f"the shards are of different searches ({found}): give all the same features and options"
        )
    if len(parts) == 1:
        return first
    count, size = first.indices.shape
    indices, approximate = np.empty_like(first.indices), np.empty_like(first.approximate)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
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


def lists_from_candidates(
    features, k: int, candidates: Candidates, options: ClusterOptions | None = None
) -> Neighbors:
    """Exact lists from the candidates of a whole search, which is checked on a sample of rows.

    With the smallest similarities where the candidates have the least similar rows. A search that errs is
    warned of and done again by torch, where the features are and then on the CPU.
    """
    options = options or ClusterOptions()
    rows = UnitRows.from_features(features)
    count = len(rows)
    k = min(k, count)
    indices, similarities, redone = rescore(rows, candidates, k)
    found, need_smallest = Neighbors(indices, similarities), candidates.farthest is not None
    if need_smallest:
        found = replace(found, smallest=pair_cosines(rows, np.arange(count), candidates.farthest))
    if candidates.error is None:
        return replace(found, recall=_measured_recall(rows, found, candidates.backend, options.min_recall))
    on_cpu = rows.tensor.device.type == "cpu"
    if not (candidates.backend == "torch" and on_cpu) and not _agrees_with_exact(rows, found):
        again = rows.cpu() if candidates.backend == "torch" else rows
        logger.warning(
            "k-NN backend %r on %s disagrees with an exact search on a sample: searching with torch on %s",
            candidates.backend, rows.tensor.device, again.tensor.device,
        )  # fmt: skip
        return nearest_neighbors(again, k, options, need_smallest=need_smallest, knn="torch")
    if redone:
        level = logging.INFO if redone > count * NOTABLE_RATIO_SEARCHED_TWICE else logging.DEBUG
        text = "k-NN: %d of %d rows have too many near-ties and were searched twice"
        logger.log(level, text, redone, count)
    return found


def _agrees_with_exact(rows: UnitRows, found: Neighbors) -> bool:
    """Compare rows spread over the data with an exact search; multi-GPU faiss is known to err silently."""
    sample = np.unique(np.linspace(0, len(rows) - 1, min(SELF_CHECK_ROWS, len(rows))).astype(np.int64))
    _, similarities, smallest = search_rows_exactly(rows, sample, found.indices.shape[1])
    agrees = np.abs(similarities - found.similarities[sample]).max() <= SELF_CHECK_TOLERANCE
    if found.smallest is not None:
        # that of float32 products, which may take another row within their error for the least similar
        agrees &= np.abs(smallest - found.smallest[sample]).max() <= product_error(rows)
    return bool(agrees)


def _measured_recall(rows: UnitRows, found: Neighbors, backend: str, min_recall: float) -> float:
    """Recall on a random sample of rows; logged, a low one as a warning."""
    count, k = found.indices.shape
    sample = np.random.default_rng(RECALL_SEED).choice(count, min(SAMPLE_ROWS, count), replace=False)
    sample.sort()
    recall = recall_of(found.similarities[sample], search_rows_exactly(rows, sample, k)[1])
    if recall < min_recall:
        logger.warning(
            "k-NN %r finds only %.4f of the neighbors (recall at %d, %d images sampled), below "
            "SSKD.CLUSTER.MIN_RECALL %g: labels suffer; raise SSKD.CLUSTER.REDUCED_DIM, or search exactly",
            backend, recall, k, len(sample), min_recall,
        )  # fmt: skip
    else:
        logger.info("k-NN %r: recall at %d is %.4f on %d images", backend, k, recall, len(sample))
    return recall


def recall_of(similarities: np.ndarray, exact: np.ndarray) -> float:
    """Ratio of the true neighbors that were found, any of tied ones: of (S, k) similarities, self first."""
    if exact.shape[1] == 1:
        return 1.0
    # one unit in the last place: a pair may have been rounded on another device
    return float((similarities[:, 1:] >= exact[:, -1:] - 2.0**-23).mean())


# ---- candidates ----------------------------------------------------------------------------------


def product_error(rows: UnitRows) -> float:
    """Bound on the error of a float32 matrix product of unit rows: d roundings of at most 2^-24 each.

    Covers rows that are unit only to rounding, and the lower precision that torch may have been told to use.
    """
    try:
        told = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch >= 2.9 refuses to say where its newer switches were used
        told = "medium"
    rounding = (rows.dim + 4) * 2.0**-24 + _MATMUL_INPUT_ROUNDING[told]
    return rounding + 2 * min(rows.norm_error, 2.0**-16) + 2.0**-22


@register_knn("torch")
def torch_candidates(rows: UnitRows, search: Search) -> Candidates:
    """Matrix products and top-k, where the rows are: tiles on and above the diagonal only.

    A tile is merged into the lists of its rows and, transposed, into those of its columns. In float32: on
    processors without matrix units for them, products of bfloat16 are slower (measured on AVX-512) and those
    of int8 no faster.
    """
    count, device = len(rows), rows.tensor.device
    best = _Best(count, search.size, search.need_farthest, device)
    height, width = CPU_TILE if device.type == "cpu" else DEVICE_TILE
    tops = [height * strip for strip in search.shard.strips(-(-count // height))]
    progress, done = LogProgress("k-NN search"), 0
    for top in tops:
        left = rows.block(top, top + height)
        bottom = top + len(left)
        for start in range(top, count, width):
            product = left @ rows.block(start, start + width).T
            best.merge(product, top, start)
            below = max(bottom - start, 0)  # columns of the square on the diagonal: its rows are enough
            if below < product.shape[1]:
                best.merge(product[:, below:].T.contiguous(), start + below, top)
        done += count - top
        progress(done, sum(count - top for top in tops))
    return best.candidates(product_error(rows))


class _Best:
    """The largest similarities of each row so far, and the smallest."""

    def __init__(self, count: int, size: int, need_farthest: bool, device: torch.device) -> None:
        self.size, self.need_farthest = size, need_farthest
        self.values = torch.full((count, size), -torch.inf, device=device)
        self.indices = torch.full((count, size), -1, dtype=torch.int32, device=device)
        self.lowest = torch.full((count,), torch.inf, device=device)
        self.farthest = torch.arange(count, device=device)

    def merge(self, product: torch.Tensor, first_row: int, first_col: int) -> None:
        """Merge similarities of consecutive rows and columns, of which a row's own is left out."""
        rows = slice(first_row, first_row + len(product))
        if self.need_farthest:
            value, column = product.min(1)
            lower = value < self.lowest[rows]
            self.lowest[rows] = torch.where(lower, value, self.lowest[rows])
            self.farthest[rows] = torch.where(lower, column + first_col, self.farthest[rows])
        product.diagonal(first_row - first_col).fill_(-torch.inf)
        value, column = product.topk(min(self.size, product.shape[1]), sorted=False)
        value = torch.cat([self.values[rows], value], 1)
        column = torch.cat([self.indices[rows], (column + first_col).int()], 1)
        self.values[rows], kept = value.topk(self.size, sorted=False)
        self.indices[rows] = column.gather(1, kept)

    def candidates(self, error: float) -> Candidates:
        """What was found, on the CPU."""
        indices = torch.where(self.values == -torch.inf, -1, self.indices)
        extremes = (self.farthest, self.lowest) if self.need_farthest else ()
        found = [tensor.cpu().numpy() for tensor in (indices, self.values, *extremes)]
        return Candidates(*found[:2], error, *found[2:])


# ---- exact similarities --------------------------------------------------------------------------


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def cosine(x, inverse_norms, i, j):
    """Cosine of rows i and j: summed in float64, rounded to float32, at most 1; the same bits for (j, i).

    Neither the tiling, nor the number of threads, nor the rows around a pair change it, which a matrix
    product does not promise; equal rows therefore tie exactly.
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
    ranges = ((start, min(start + ROWS_AT_ONCE, len(out))) for start in range(0, len(out), ROWS_AT_ONCE))
    for _ in in_threads(partial(_cosines, x, rows.inverse_norms, first, second, out, *at) for at in ranges):
        pass
    return out


def _cosines_on_device(rows: UnitRows, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`pair_cosines` in torch; one pair in millions may differ in the last bit."""
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


def rescore(rows: UnitRows, candidates: Candidates, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The k most similar rows of each row, exactly, from candidates.

    A row whose candidates do not prove that nothing was missed (more near-ties than the margin holds) is
    searched again in float64. Candidates of an approximate search prove nothing and are taken for all there
    is; only a row with fewer than k - 1 of them is searched again.

    Returns:
        indices: (N, k) int32, the row itself first, then by (similarity descending, index ascending).
        similarities: (N, k) float32.
        redone: number of rows that had to be searched again.
    """
    count, size = candidates.indices.shape
    indices = np.empty((count, k), dtype=np.int32)
    similarities = np.empty((count, k), dtype=np.float32)
    indices[:, 0], similarities[:, 0] = np.arange(count), 1.0
    if k == 1:
        return indices, similarities, 0
    proven = np.empty(count, dtype=np.bool_)
    for start in range(0, count, ROWS_AT_ONCE):
        part = slice(start, min(start + ROWS_AT_ONCE, count))
        listed, approximate = candidates.indices[part], candidates.approximate[part]
        number = np.repeat(np.arange(part.start, part.stop), size)
        exact = pair_cosines(rows, number, np.maximum(listed, 0).ravel()).reshape(listed.shape)
        missing = listed < 0
        ordered = np.where(missing, -np.inf, exact)
        order = np.lexsort((listed, -ordered), axis=1)[:, : k - 1]
        indices[part, 1:] = np.take_along_axis(listed, order, 1)
        similarities[part, 1:] = np.take_along_axis(ordered, order, 1)
        worst = similarities[part, -1]
        proven[part] = worst > -np.inf
        if candidates.error is not None:
            error, lowest = np.float32(candidates.error), approximate.min(1)
            proven[part] &= ((np.abs(exact - approximate) <= error) | missing).all(1)
            # what was not listed has at most the lowest listed value, give or take the error
            proven[part] &= (lowest > -np.inf) & ((size == count - 1) | (lowest + error < worst))
    doubtful = np.flatnonzero(~proven)
    if len(doubtful):
        indices[doubtful], similarities[doubtful], _ = search_rows_exactly(rows, doubtful, k)
    return indices, similarities, len(doubtful)


def search_rows_exactly(
    rows: UnitRows, which: np.ndarray, k: int, *, tile: int = 1024
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The exact lists of the rows `which`, by float64 products with all rows; the slow and certain way.

    Returns:
        (W, k) int32 and (W, k) float32, self first, and (W,) float32, the smallest similarity of each row.
    """
    scale = torch.from_numpy(rows.inverse_norms).to(rows.tensor.device)
    found = []
    for start in range(0, len(which), tile):
        chosen = torch.from_numpy(which[start : start + tile]).to(rows.tensor.device)
        left = rows.tensor[chosen].double() * scale[chosen, None]
        column = chosen.new_empty((len(chosen), 0))
        value = torch.empty((len(chosen), 0), device=chosen.device)
        smallest = torch.ones(len(chosen), device=chosen.device)
        for first in range(0, len(rows), tile):
            right = rows.tensor[first : first + tile].double() * scale[first : first + tile, None]
            block = (left @ right.T).clamp_(max=1).float()
            smallest = torch.minimum(smallest, block.amin(1))
            own = (chosen >= first) & (chosen < first + len(right))
            block[own, chosen[own] - first] = 2.0  # itself comes first
            columns = torch.arange(first, first + len(right), device=chosen.device).expand(len(chosen), -1)
            # stable, so that of equal ones the first column stays first
            value, order = torch.cat([value, block], 1).sort(dim=1, descending=True, stable=True)
            value, column = value[:, :k], torch.cat([column, columns], 1).gather(1, order[:, :k])
        value[:, 0] = 1.0
        found.append((column.int(), value, smallest))
    return tuple(torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
