"""Cross entropy with smoothed labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_set import (
    SSKD_LOSS_REGISTRY,
    PeerBatch,
    PeerLoss,
    check_labels,
    check_rows,
    full_precision,
    zero_on_graph,
)

# torch's default, -100, would drop such a row silently instead of refusing it.
_IGNORE_NOTHING = torch.iinfo(torch.int64).min


@full_precision
def label_smooth_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """Cross entropy against (1 - epsilon) one-hot + epsilon / C, averaged over the batch (SSKD's L_id).

    Differs from fast-reid's CrossEntropyLoss, which spreads epsilon over the C - 1 other classes and divides
    by zero for one class.

    Args:
        logits: (B, C).
        labels: (B,) integers in 0..C-1.
        epsilon: share of the target spread evenly over all C classes, in [0, 1].

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch or one class.

    Raises:
        ValueError: shapes, label range or epsilon are wrong.
    """
    _check_epsilon(epsilon)
    check_rows("logits", logits)
    check_labels(labels, logits.shape[0], logits.shape[1])
    if logits.shape[0] == 0:
        return zero_on_graph(logits)
    return F.cross_entropy(logits, labels.long(), label_smoothing=epsilon, ignore_index=_IGNORE_NOTHING)


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")


@SSKD_LOSS_REGISTRY.register()
class LabelSmoothCE(PeerLoss):
    """label_smooth_cross_entropy of the student's logits and the labels."""

    short_name = "id"

    def __init__(self, *, epsilon: float = 0.1) -> None:
        _check_epsilon(epsilon)
        self.epsilon = epsilon

    def __call__(self, batch: PeerBatch) -> Tensor:
        return label_smooth_cross_entropy(batch.logits, batch.labels, self.epsilon)
