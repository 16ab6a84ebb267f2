"""L_tri = mean(-q_1 a - q_2 b), (a, b) = log_softmax(D_ip, D_in): soft triplet losses (MMT).

D is the Euclidean distance of the features, p the farthest image of anchor i's identity (i itself included)
and n the nearest of another (Ge et al., ICLR 2020, arXiv 2001.01526). The target (q_1, q_2) is (margin, 1 -
margin) in `soft_triplet`, and softmax(E_ip, E_in) of a teacher's distances E in `peer_soft_triplet`.
"""

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

# Below this squared distance two features are one point: keeps the square root's gradient finite.
_SMALLEST_SQUARED_DISTANCE = 1e-12


@full_precision
def soft_triplet(features: Tensor, labels: Tensor, *, margin: float = 0.0) -> Tensor:
    """Compute the soft triplet loss against a fixed target, averaged over the batch.

    Margin 0 is log(1 + exp(D_ip - D_in)). Weight 0 in SSKD as released.

    Args:
        features: (B, D) raw features.
        labels: (B,) integers >= 0.
        margin: q_1, the target of the positive, in [0, 1].

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch or a single identity, which has no negatives.

    Raises:
        ValueError: shapes, labels or margin are wrong.

    Example:
        >>> soft_triplet(torch.tensor([[0.0], [3.0], [4.0], [10.0]]), torch.tensor([0, 0, 1, 1]))
        tensor(1.9400)
    """
    _check_margin(margin)
    check_rows("features", features)
    check_labels(labels, features.shape[0])
    if features.shape[0] == 0:
        return zero_on_graph(features)
    positive, negative, has_negative = hardest_pairs(features, labels)
    to_positive, to_negative = F.log_softmax(_distances(features, positive, negative), dim=1).unbind(dim=1)
    losses = -margin * to_positive - (1 - margin) * to_negative
    return torch.where(has_negative, losses, losses * 0).mean()


@full_precision
def peer_soft_triplet(features: Tensor, teacher_features: Tensor, labels: Tensor) -> Tensor:
    """Compute the soft triplet loss against a teacher's distances, averaged over the batch.

    The hardest pairs are the *student's*. The released code computes this loss at every step and never adds
    it to the total; here its weight decides.

    Args:
        features: (B, D) raw features of the student.
        teacher_features: (B, D') of the teacher; no gradient flows into them. D' may differ from D.
        labels: (B,) integers >= 0.

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch or a single identity, which has no negatives.

    Raises:
        ValueError: shapes or labels are wrong.

    Example:
        >>> features, labels = torch.tensor([[0.0], [3.0], [4.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> peer_soft_triplet(features, torch.ones(4, 2), labels)  # a teacher that sees no difference
        tensor(1.3150)
    """
    check_rows("features", features)
    check_rows("teacher_features", teacher_features)
    if len(features) != len(teacher_features):
        raise ValueError(
            f"features and teacher_features must be of one batch, got {len(features)} and "
            f"{len(teacher_features)} rows"
        )
    check_labels(labels, features.shape[0])
    if features.shape[0] == 0:
        return zero_on_graph(features)
    positive, negative, has_negative = hardest_pairs(features, labels)
    teacher = teacher_features.detach().to(features.dtype)
    target = _distances(teacher, positive, negative).softmax(dim=1)
    losses = -(target * F.log_softmax(_distances(features, positive, negative), dim=1)).sum(dim=1)
    return torch.where(has_negative, losses, losses * 0).mean()


@torch.no_grad()
def hardest_pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each anchor, the farthest image of its identity and the nearest of another.

    Returns:
        positive: (B,) indices; the anchor itself where it is the only image of its identity.
        negative: (B,) indices; meaningless where there is no other identity.
        has_negative: (B,) bool.
    """
    # Not from |a|^2 + |b|^2 - 2 ab, whose cancellation would reorder near copies.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, float("-inf")).argmax(dim=1)
    negative = distances.masked_fill(same, float("inf")).argmin(dim=1)
    return positive, negative, ~same.all(dim=1)


def _distances(features: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """(B, 2) Euclidean distances of each row to its positive and its negative, each at least 1e-6."""
    squared = [(features - features[index]).square().sum(dim=1) for index in (positive, negative)]
    return torch.stack([s.clamp_min(_SMALLEST_SQUARED_DISTANCE).sqrt() for s in squared], dim=1)


def _check_margin(margin: float) -> None:
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must be in [0, 1], got {margin}: a part of the target, not a distance")


@SSKD_LOSS_REGISTRY.register()
class SoftTriplet(PeerLoss):
    """soft_triplet of the student's features and the labels."""

    short_name = "tri"
    reads_logits = False

    def __init__(self, *, margin: float = 0.0) -> None:
        _check_margin(margin)
        self.margin = margin

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        return soft_triplet(batch.features, batch.labels, margin=self.margin)


@SSKD_LOSS_REGISTRY.register()
class PeerSoftTriplet(PeerLoss):
    """peer_soft_triplet of the student's features against the next peer's mean teacher."""

    short_name = "ptri"
    requires = ("peer_teacher_features",)
    reads_logits = False

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        return peer_soft_triplet(batch.features, batch.peer_teacher_features, batch.labels)
