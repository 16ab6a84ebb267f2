"""L_nn = -|P|_* / B, P = softmax(logits): the batch nuclear norm (Cui et al., CVPR 2020)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .loss_set import SSKD_LOSS_REGISTRY, PeerBatch, PeerLoss, check_rows, full_precision, zero_on_graph

# Singular values below this ratio of the largest are rounding of the float32 logits, as between images that
# are all but copies. The float64 Gram matrix tells values down to 1e-7 of the largest from 0.
_LEAST = 1e-6


@full_precision
def nuclear_norm(logits: Tensor) -> Tensor:
    """Compute L_nn, low for predictions that are confident and diverse.

    |P|_* is the sum of P's singular values; its gradient is U V^T over those that are not 0. Where P is rank
    deficient this is the subgradient of least norm, so that identical rows get identical gradients; in an
    SVD's own U V^T that part is arbitrary. Computed in float64: in float32 the gradients are wrong where B >
    C. Only the first derivative is provided.

    Returns:
        Scalar in [-sqrt(min(1, C / B)), 0]; 0 on the graph for an empty batch, constant for one class.
        NaN logits give NaN.

    Example:
        >>> nuclear_norm(100 * torch.eye(3))  # confident and diverse
        tensor(-1.)
        >>> nuclear_norm(torch.zeros(3, 3))
        tensor(-0.3333)
    """
    check_rows("logits", logits)
    if logits.shape[0] == 0:
        return zero_on_graph(logits)
    probabilities = logits.double().softmax(dim=1)
    # |P|_* = <U V^T, P>, so with U V^T held constant both the value and the gradient come from one product.
    norm = (orthogonal_factor(probabilities.detach()) * probabilities).sum()
    return (-norm / logits.shape[0]).to(logits.dtype)


@SSKD_LOSS_REGISTRY.register()
class NuclearNorm(PeerLoss):
    """nuclear_norm of the student's logits."""

    short_name = "nn"

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        return nuclear_norm(batch.logits)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """Compute U V^T of U diag(s) V^T, without the directions whose s is 0 up to the rounding of float32.

    On the CPU by eigenvectors, in a tenth of the iteration's time. Elsewhere by iteration, which is matrix
    products alone: torch waits for an eigensolver on a device to say whether it has converged.

    Args:
        matrix: (B, C) float64, not all 0; where it is not finite nothing raises, and <U V^T, A> is not
            finite.
    """
    return factor_by_eigenvectors(matrix) if matrix.is_cpu else factor_by_iteration(matrix)


def factor_by_eigenvectors(matrix: Tensor) -> Tensor:
    """Compute G^(-1/2) A of the smaller Gram matrix G, A A^T or A^T A, by its eigenvectors."""
    tall = matrix.shape[0] > matrix.shape[1]
    gram = matrix.t() @ matrix if tall else matrix @ matrix.t()
    # eigh raises on NaN. Masked here, it comes back through the caller's product as a NaN loss, which a
    # gradient scaler or the trainer's own check can handle.
    eigenvalues, vectors = torch.linalg.eigh(gram.nan_to_num())
    nonzero = eigenvalues > _LEAST**2 * eigenvalues[-1]
    inverse_roots = torch.where(nonzero, eigenvalues, 1.0).rsqrt() * nonzero
    inverse_root = (vectors * inverse_roots) @ vectors.t()
    return matrix @ inverse_root if tall else inverse_root @ matrix


def factor_by_iteration(matrix: Tensor) -> Tensor:
    """Iterate X <- 3/2 X - 1/2 X X^T X (Newton-Schulz).

    Scaled after Chen and Chow (2014) while some s are small. Every s that counts becomes 1. Below, the cut is
    soft: a tenth of the least that counts becomes about 1/3, a hundredth 1/30, and what rounding in float64
    makes of a 0 stays below 1e-9.
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
    """Return the scales of X before each iteration.

    While s are small, the scale raises the smallest fastest: with all s in [l, 1], sqrt(3 / (1 + l + l^2))
    sends both ends of the interval to the same value, the next l. Then it is 1.
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
