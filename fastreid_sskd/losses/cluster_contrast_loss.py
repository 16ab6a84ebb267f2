"""L_cc = -log(exp(q phi_y / t) / sum_j exp(q phi_j / t)): InfoNCE against one vector per cluster.

q is an image's normalised feature, y its cluster, phi the normalised memory and t the temperature (Dai et
al., arXiv 2103.11568).
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


@full_precision
def cluster_contrast(
    features: Tensor, memory: Tensor, labels: Tensor, *, temperature: float = 0.05
) -> Tensor:
    """Compute L_cc, the cluster contrast, averaged over the batch.

    Args:
        features: (B, D), of any length.
        memory: (C, D), one row per cluster; no gradient flows into it.
        labels: (B,) integers in 0..C-1.
        temperature: t > 0.

    Returns:
        Scalar >= 0; 0 on the graph for an empty batch.

    Example:
        >>> memory = torch.eye(3)
        >>> cluster_contrast(torch.tensor([[2.0, 0.0, 0.0]]), memory, torch.tensor([0]), temperature=1.0)
        tensor(0.5514)
    """
    _check_temperature(temperature)
    check_rows("features", features)
    check_rows("memory", memory)
    if memory.shape[1] != features.shape[1]:
        raise ValueError(
            f"memory must have the features' {features.shape[1]} columns, got {tuple(memory.shape)}: "
            "fill it with centroids of the same network's features"
        )
    check_labels(labels, features.shape[0], memory.shape[0])
    if features.shape[0] == 0:
        return zero_on_graph(features)
    cosine = F.normalize(features, dim=1) @ F.normalize(memory.detach().to(features.dtype), dim=1).t()
    return F.cross_entropy(cosine / temperature, labels.long())


@torch.no_grad()
def update_memory(memory: Tensor, features: Tensor, labels: Tensor, momentum: float) -> None:
    """Move the memory towards the batch, image after image.

    phi_y <- normalise(momentum phi_y + (1 - momentum) q).

    Args:
        memory: (C, D), changed in place.
        features: (B, D), of any length.
        labels: (B,) integers in 0..C-1.
        momentum: in [0, 1]; 1 leaves the memory as it is.
    """
    q = F.normalize(features.detach().to(memory.dtype), dim=1)
    # The i-th image of every cluster at once: only images of one cluster depend on each other.
    same = labels[:, None] == labels[None, :]
    turn = same.tril(diagonal=-1).sum(dim=1)
    for i in range(int(turn.max()) + 1 if len(turn) else 0):
        rows, chosen = labels[turn == i], q[turn == i]
        memory[rows] = F.normalize(momentum * memory[rows] + (1 - momentum) * chosen, dim=1)


@SSKD_LOSS_REGISTRY.register()
class ClusterContrast(PeerLoss):
    """cluster_contrast of the student's features after the BN-neck; then the memory moves.

    The memory is the student's classifier, which a refresh fills with centroids. The loss gives it no
    gradient, so the optimiser leaves it alone; `build_losses` refuses other losses that read the logits.
    """

    short_name = "cc"
    requires = ("memory",)
    features_after_neck = True
    reads_logits = False

    def __init__(self, *, temperature: float = 0.05, momentum: float = 0.1) -> None:
        _check_temperature(temperature)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}: it is the old memory's weight")
        self.temperature = temperature
        self.momentum = momentum

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        loss = cluster_contrast(batch.features, batch.memory, batch.labels, temperature=self.temperature)
        update_memory(batch.memory.detach(), batch.features, batch.labels, self.momentum)
        return loss


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
