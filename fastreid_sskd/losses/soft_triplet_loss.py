"""Soft triplet losses of the hardest pairs of the batch: against a fixed target, and against a teacher's triplets."""

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


@full_precision
def peer_soft_triplet(features: Tensor, teacher_features: Tensor, labels: Tensor) -> Tensor:
    """Softmax triplet loss against the teacher's softmax (Ge et al., MMT, ICLR 2020), mean over the batch.

    With p and n the *student's* hardest pairs (see soft_triplet), (a, b) = log_softmax(D_ip, D_in) on the
    student's features and q = softmax(E_ip, E_in) on the teacher's, the anchor gives -q_1 a - q_2 b. The
    released code computes it at every step and never adds it to the loss; here its weight decides.

    Args:
        features: (B, D) the student's raw features.
        teacher_features: (B, D') the teacher's; no gradient flows into them. D' may differ from D.
        labels: (B,) integers >= 0.

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch or a single identity, which has no negatives.

    Raises:
        ValueError: shapes or labels are wrong.
    """
    check_rows("features", features)
    check_rows("teacher_features", teacher_features)
    if len(features) != len(teacher_features):
        raise ValueError(
            "features and teacher_features must be of one batch, "
            f"got {len(features)} and {len(teacher_features)} rows"
        )
    check_labels(labels, features.shape[0])
    if features.shape[0] == 0:
        return zero_on_graph(features)
    positive, negative, has_negative = hardest_pairs(features, labels)
    pair = torch.stack([distance_to(features, positive), distance_to(features, negative)], dim=1)
    teacher = teacher_features.detach().to(features.dtype)
    teacher_pair = torch.stack([distance_to(teacher, positive), distance_to(teacher, negative)], dim=1)
    losses = -(teacher_pair.softmax(dim=1) * F.log_softmax(pair, dim=1)).sum(dim=1)
    return torch.where(has_negative, losses, losses * 0).mean()


@SSKD_LOSS_REGISTRY.register()
class PeerSoftTriplet(PeerLoss):
    """peer_soft_triplet of the student's features against the next peer's mean teacher."""

    short_name = "ptri"
    requires = ("peer_teacher_features",)
    reads_logits = False

    def __call__(self, batch: PeerBatch) -> Tensor:
        return peer_soft_triplet(batch.features, batch.peer_teacher_features, batch.labels)


@torch.no_grad()
def hardest_pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each anchor, the farthest image of its identity and the nearest of another.

    Args:
        features: (B, D), B >= 1.
        labels: (B,).

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


def distance_to(features: Tensor, index: Tensor) -> Tensor:
    """Euclidean distance of each row to the row `index` names: (B, D), (B,) -> (B,), at least 1e-6."""
    squared = (features - features[index]).square().sum(dim=1)
    return squared.clamp_min(_SMALLEST_SQUARED_DISTANCE).sqrt()
