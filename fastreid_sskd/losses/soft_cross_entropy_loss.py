"""L_soft = CE(logits, softmax(teacher logits)): cross entropy against a teacher's predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .loss_set import SSKD_LOSS_REGISTRY, PeerBatch, PeerLoss, check_rows, full_precision, zero_on_graph


@full_precision
def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute L_soft, averaged over the batch, without a temperature.

    Args:
        logits: (B, C) logits of the student.
        teacher_logits: (B, C); no gradient flows into them.

    Returns:
        Scalar >= the mean entropy of the teacher; 0 on the graph for an empty batch.

    Example:
        >>> soft_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(1.1269)
    """
    check_rows("logits", logits)
    check_rows("teacher_logits", teacher_logits)
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits and teacher_logits must have one shape, got {tuple(logits.shape)} and "
            f"{tuple(teacher_logits.shape)}: pass outputs of the same batch and number of classes"
        )
    if logits.shape[0] == 0:
        return zero_on_graph(logits)
    return F.cross_entropy(logits, teacher_logits.detach().to(logits.dtype).softmax(dim=1))


@SSKD_LOSS_REGISTRY.register()
class SoftCE(PeerLoss):
    """soft_cross_entropy of the student's logits against the next peer's mean teacher."""

    short_name = "soft"
    requires = ("peer_teacher_logits",)

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        return soft_cross_entropy(batch.logits, batch.peer_teacher_logits)
