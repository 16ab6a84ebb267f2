"""L_id = CE(logits, y'), y' = (1 - epsilon) one-hot(y) + epsilon / C: cross entropy with smoothed labels."""

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
    """Compute L_id, averaged over the batch.

    Differs from fast-reid's CrossEntropyLoss, which spreads epsilon over the C - 1 other classes and divides
    by zero for one class.

    Args:
        logits: (B, C).
        labels: (B,) integers in 0..C-1.
        epsilon: part of the target spread evenly over all C classes, in [0, 1].

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch or one class.

    Example:
        >>> label_smooth_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), epsilon=0.1)
        tensor(0.2269)
    """
    _check_epsilon(epsilon)
    check_rows("logits", logits)
    check_labels(labels, logits.shape[0], logits.shape[1])
    if logits.shape[0] == 0:
        return zero_on_graph(logits)
    return F.cross_entropy(logits, labels.long(), label_smoothing=epsilon, ignore_index=_IGNORE_NOTHING)


@SSKD_LOSS_REGISTRY.register()
class LabelSmoothCE(PeerLoss):
    """label_smooth_cross_entropy of the student's logits and the labels."""

    short_name = "id"

    def __init__(self, *, epsilon: float = 0.1) -> None:
        _check_epsilon(epsilon)
        self.epsilon = epsilon

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        return label_smooth_cross_entropy(batch.logits, batch.labels, self.epsilon)


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")
