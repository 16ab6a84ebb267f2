"""k-nearest-neighbour lists in memory O(N * k): tiles, candidates, exact re-scoring. Never N x N."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from . import ivf, reduced  # noqa: F401  they register their searches
from .backends import KNN_BACKENDS, ApproximateOptions, Search
from .candidates import Candidates, product_error
from .features import UnitRows
from .progress import Progress, no_progress
from .recall import recall_of, sample_of
from .shares import Share
from .similarity import pair_cosines, rescore, search_rows_exactly

logger = logging.getLogger("fastreid.sskd.clustering")

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
