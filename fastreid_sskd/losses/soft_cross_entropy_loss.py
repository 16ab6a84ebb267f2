"""Cross entropy against a teacher's predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .loss_set import (
    SSKD_LOSS_REGISTRY,
    PeerBatch,
    PeerLoss,
    check_rows,
    check_same_shape,
    full_precision,
    zero_on_graph,
)


@full_precision
def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy of the student against softmax(teacher), mean over the batch, no temperature (L_soft).

    Args:
        logits: (B, C) the student's.
        teacher_logits: (B, C); no gradient flows into them.

    Returns:
        Scalar >= 0, at least the mean entropy of the teacher; 0 on the graph for an empty batch.

    Raises:
        ValueError: the shapes differ or are not (B, C).
    """
    check_rows("logits", logits)
    check_rows("teacher_logits", teacher_logits)
    check_same_shape("logits", logits, "teacher_logits", teacher_logits)
    if logits.shape[0] == 0:
        return zero_on_graph(logits)
    return F.cross_entropy(logits, teacher_logits.detach().to(logits.dtype).softmax(dim=1))


@SSKD_LOSS_REGISTRY.register()
class SoftCE(PeerLoss):
    """soft_cross_entropy of the student's logits against the next peer's mean teacher."""

    short_name = "soft"
    requires = ("peer_teacher_logits",)

    def __call__(self, batch: PeerBatch) -> Tensor:
        return soft_cross_entropy(batch.logits, batch.peer_teacher_logits)
