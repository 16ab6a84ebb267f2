"""What one student sees of a training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class PeerBatch:
    """One student's view of a step: its outputs, the labels, and the teachers' outputs to learn from.

    B images, D feature channels, C classes. The teachers' fields are None in source pre-training, which has
    no teachers; a loss that needs one of them then says so.

    Attributes:
        features: (B, D) the student's pooled features before the BN-neck.
        logits: (B, C) the student's logits.
        labels: (B,) integer identities or pseudo-labels in 0..C-1.
        teacher_features: (B, D) features of the student's own mean teacher on the same view.
        teacher_logits: (B, C) logits of the student's own mean teacher on the same view.
        peer_teacher_features: (B, D) features of the next peer's mean teacher on the next peer's view
            (k + 1, cyclic).
        peer_teacher_logits: (B, C) logits of the next peer's mean teacher on the next peer's view.
        memory: (C, D) the student's classifier, for losses that keep a vector a cluster in it.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    teacher_features: Tensor | None = None
    teacher_logits: Tensor | None = None
    peer_teacher_features: Tensor | None = None
    peer_teacher_logits: Tensor | None = None
    memory: Tensor | None = None
