"""Soft triplet loss against a teacher's triplets."""

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
