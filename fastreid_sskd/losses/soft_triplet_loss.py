"""Soft triplet loss with the hardest pairs of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_labels, check_rows, zero_on_graph
from .hardest_pairs import distance_to, hardest_pairs
from .peer_batch import PeerBatch
from .precision import full_precision
from .registry import SSKD_LOSS_REGISTRY, PeerLoss


@full_precision
def soft_triplet(features: Tensor, labels: Tensor, *, margin: float = 0.0) -> Tensor:
    """Softmax triplet loss against a fixed target (Ge et al., MMT, ICLR 2020), averaged over the batch.

    With p the farthest image of the anchor's identity (the anchor itself included) and n the nearest of
    another, (a, b) = log_softmax(D_ip, D_in) and the anchor gives -margin a - (1 - margin) b. Margin 0 is
    log(1 + exp(D_ip - D_in)). Weight 0 in SSKD as released.

    Args:
        features: (B, D) raw features; D is the Euclidean distance of these.
        labels: (B,) integers >= 0.
        margin: the target's share for the positive, in [0, 1].

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch or a single identity, which has no negatives.

    Raises:
        ValueError: shapes, labels or margin are wrong.
    """
    _check_margin(margin)
    check_rows("features", features)
    check_labels(labels, features.shape[0])
    if features.shape[0] == 0:
        return zero_on_graph(features)
    positive, negative, has_negative = hardest_pairs(features, labels)
    pair = torch.stack([distance_to(features, positive), distance_to(features, negative)], dim=1)
    to_positive, to_negative = F.log_softmax(pair, dim=1).unbind(dim=1)
    losses = -margin * to_positive - (1 - margin) * to_negative
    return torch.where(has_negative, losses, losses * 0).mean()


def _check_margin(margin: float) -> None:
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must be in [0, 1], got {margin}: a share of the target, not a distance")


@SSKD_LOSS_REGISTRY.register()
class SoftTriplet(PeerLoss):
    """soft_triplet of the student's features and the labels."""

    short_name = "tri"
    reads_logits = False

    def __init__(self, *, margin: float = 0.0) -> None:
        _check_margin(margin)
        self.margin = margin

    def __call__(self, batch: PeerBatch) -> Tensor:
        return soft_triplet(batch.features, batch.labels, margin=self.margin)
