"""The similarity of a pair, defined once: every backend ends here, so that all of them give the same bits."""

from __future__ import annotations

import numba
import numpy as np
import torch

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
