"""Batch nuclear norm of the predictions."""

from __future__ import annotations

from torch import Tensor

from .checks import check_rows, zero_on_graph
from .orthogonal_factor import orthogonal_factor
from .peer_batch import PeerBatch
from .precision import full_precision
from .registry import SSKD_LOSS_REGISTRY, PeerLoss


@full_precision
def nuclear_norm(logits: Tensor) -> Tensor:
    """-|P|_* / B with P = softmax(logits): low for predictions that are confident and diverse (L_nn).

    Cui et al., CVPR 2020 (batch nuclear-norm maximisation). |P|_* is the sum of P's singular values, and its
    gradient is U V^T over those that are not 0. Where P is rank deficient (identical rows) this is the
    subgradient of least norm: identical rows get identical gradients. An SVD's own U V^T has an arbitrary
    part there.

    Computed in float64 without an SVD of (B, C), see :mod:`.orthogonal_factor`; in float32 the gradients are wrong
    when B > C. Only the first derivative is provided.

    Args:
        logits: (B, C).

    Returns:
        Scalar in [-sqrt(min(1, C / B)), 0]; 0 on the graph for an empty batch, constant for one class.
        NaN logits give NaN.

    Raises:
        ValueError: logits are not (B, C).
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
        return nuclear_norm(batch.logits)
