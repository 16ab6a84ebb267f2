"""The host's two distances in blocks of queries, so that the whole matrix is never in memory."""
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from ..processes import stop_if_asked

__all__ = ["METRICS_IN_BLOCKS", "distance_blocks"]

#: values of ``TEST.METRIC`` that need no more than a query and the gallery
METRICS_IN_BLOCKS = ("cosine", "euclidean")

BLOCK_BYTES = 64 * 2**20  # of distances at a time: enough rows for a fast product


@torch.no_grad()
def distance_blocks(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> Iterator[np.ndarray]:
    """Distances of some queries to the whole gallery, then of the next; a block is overwritten by the next.

    Args:
        query: (Q, d) float32, on the CPU. gallery: (G, d) float32, there too. Neither is modified.
        metric: "cosine", 1 - cos; "euclidean", which is the squared distance, as in the host.

    Yields:
        (rows, G) float32. The host's formulas in its order; a value may differ from that of one product of all queries
        in its last bits, as products do with their sizes.

    Raises:
        ValueError: another metric.

    Memory: one block of 64 MB (at least one row); for "cosine" also a normalised copy of the gallery.
    """
    if metric not in METRICS_IN_BLOCKS:
        raise ValueError(f"metric must be one of {', '.join(METRICS_IN_BLOCKS)}, got {metric!r}: see TEST.METRIC")
    if metric == "cosine":
        gallery = F.normalize(gallery, dim=1)
    else:
        squares = _squares(gallery)
    size = len(gallery)
    rows = min(len(query), max(1, BLOCK_BYTES // (4 * max(size, 1))))
    buffer = torch.empty(rows, size)
    for part in query.split(max(rows, 1)):
        stop_if_asked()
        block = buffer[: len(part)]
        if metric == "cosine":
            torch.mm(F.normalize(part, dim=1), gallery.t(), out=block)
            torch.sub(1, block, out=block)
        else:
            torch.add(_squares(part)[:, None], squares, out=block)
            block.addmm_(part, gallery.t(), alpha=-2)
        yield block.numpy()


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """Squared norms, without a second copy of the rows."""
    return torch.cat([part.pow(2).sum(dim=1) for part in rows.split(4096)])
