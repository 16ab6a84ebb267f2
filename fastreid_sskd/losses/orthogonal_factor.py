"""U V^T of a matrix's SVD, restricted to its rank: the gradient of the nuclear norm, two ways."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

__all__ = ["factor_by_eigenvectors", "factor_by_iteration", "orthogonal_factor"]

# Singular values below this share of the largest are rounding of the float32 logits that a matrix of probabilities comes
# from, as between images that are all but copies. The float64 Gram matrix tells values down to 1e-7 of the largest from 0.
_LEAST = 1e-6


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """U V^T of U diag(s) V^T, without the directions whose s is 0 up to the rounding of float32.

    On the CPU by eigenvectors, a tenth of the iteration's time. Elsewhere by iteration: matrix products alone, nothing that
    the host waits for, where torch waits for an eigensolver to say whether it has converged.

    Args:
        matrix: (B, C) float64, not all 0; where it is not finite nothing raises, and <U V^T, A> is not finite.
    """
    return factor_by_eigenvectors(matrix) if matrix.is_cpu else factor_by_iteration(matrix)


def factor_by_eigenvectors(matrix: Tensor) -> Tensor:
    """G^(-1/2) A of the smaller Gram matrix G, A A^T or A^T A; one small symmetric eigenproblem instead of an SVD."""
    tall = matrix.shape[0] > matrix.shape[1]
    gram = matrix.t() @ matrix if tall else matrix @ matrix.t()
    # eigh raises on NaN. Masked here, it comes back through the caller's product, so that a diverged step reads
    # as a NaN loss, which a gradient scaler or the trainer's own check can handle.
    eigenvalues, vectors = torch.linalg.eigh(gram.nan_to_num())
    nonzero = eigenvalues > _LEAST**2 * eigenvalues[-1]
    inverse_roots = torch.where(nonzero, eigenvalues, 1.0).rsqrt() * nonzero
    inverse_root = (vectors * inverse_roots) @ vectors.t()
    return matrix @ inverse_root if tall else inverse_root @ matrix


def factor_by_iteration(matrix: Tensor) -> Tensor:
    """X <- 3/2 X - 1/2 X X^T X (Newton-Schulz), scaled after Chen and Chow (2014) while some s are small, so often that every
    s that counts is 1.

    The end of those that do not is soft: the s of a tenth of the least that counts becomes about 1/3, of a hundredth 1/30,
    and what rounding in float64 makes of a 0 stays below 1e-9.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    sizes = x.abs()
    x = x / (sizes.sum(0).amax() * sizes.sum(1).amax()).sqrt()  # s_1^2 <= |A|_1 |A|_inf
    for scale in _scales(_LEAST):
        x = torch.addmm(x, x @ x.t(), x, beta=1.5 * scale, alpha=-0.5 * scale**3)
    return x.t() if tall else x


@functools.cache
def _scales(least: float) -> tuple[float, ...]:
    """Scales of X before each iteration: those that raise the smallest s fastest, then 1 while all s converge together.

    With all s in [l, 1], scaling by sqrt(3 / (1 + l + l^2)) sends both ends of the interval to the same value, the next l.
    """
    found = []
    while least < 0.9:
        scale = math.sqrt(3 / (1 + least + least**2))
        found.append(scale)
        least = scale * least * (1.5 - 0.5 * (scale * least) ** 2)
    while 1 - least > torch.finfo(torch.float64).eps:  # quadratically
        found.append(1.0)
        least = least * (1.5 - 0.5 * least**2)
    return tuple(found)
