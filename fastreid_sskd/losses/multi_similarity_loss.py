"""L_ms = sum_i (p_i + n_i) / B, the multi-similarity loss with pair mining.

p_i = log(1 + sum_P exp(-alpha (S_ij - base))) / alpha, n_i = log(1 + sum_N exp(beta (S_ij - base))) / beta
with S the cosine similarity (Wang et al., CVPR 2019, arXiv 1904.06627, eq. 15-17). Anchor i keeps the
negatives N with S_ij + margin > min over its positives, and the positives P with S_ij - margin < max over its
negatives, both taken before mining; it gives 0 where P or N is empty. Exact copies, S_ij >= 1 - 1e-5,
are no positives.
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

# A positive this close to the anchor (in cosine) is taken for the anchor itself or its exact copy.
_SELF_SIMILARITY_TOLERANCE = 1e-5


@full_precision
def multi_similarity(
    features: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    margin: float = 0.1,
) -> Tensor:
    """Compute L_ms, summed over the anchors and divided by B.

    Own code rather than pytorch-metric-learning's, whose miner waits for the device several times a step. The
    two differ only where a batch mines a single pair (theirs gives 0) and for exact copies (in theirs they
    count).

    Args:
        features: (B, D) raw features, normalised here; gradients pass through the normalisation.
        labels: (B,) integers >= 0.
        alpha: sharpness of the positives' term, > 0.
        beta: sharpness of the negatives' term, > 0.
        base: the cosine at which a pair has exponent 0.
        margin: width of the mining band in cosine, >= 0; 0 keeps only the pairs that are in the wrong order.

    Returns:
        Scalar >= 0; 0 on the graph where nothing is mined (empty batch, one class, well separated).
        Memory: a few B x B matrices.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # two copies of two identities
        >>> multi_similarity(features, torch.tensor([0, 0, 1]))
        tensor(0.6044)
    """
    _check_parameters(alpha, beta, margin)
    check_rows("features", features)
    check_labels(labels, features.shape[0])
    zero = zero_on_graph(features)
    if features.shape[0] == 0:
        return zero

    normalised = F.normalize(features, dim=1)
    similarity = normalised @ normalised.t()
    positives, negatives = _mine(similarity.detach(), labels, margin)

    positive_term = _log_one_plus_sum_exp(-alpha * (similarity - base), positives) / alpha
    negative_term = _log_one_plus_sum_exp(beta * (similarity - base), negatives) / beta
    # The zero keeps a NaN feature visible: NaN pairs fail every comparison, so they are never mined.
    return (positive_term + negative_term).sum() / features.shape[0] + zero


def _mine(similarity: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the (B, B) masks of the kept positives and negatives; both rows are empty where one is."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positives = same & ~itself & (similarity < 1 - _SELF_SIMILARITY_TOLERANCE)
    negatives = ~same
    hardest_positive = similarity.masked_fill(~positives, float("inf")).amin(dim=1, keepdim=True)
    hardest_negative = similarity.masked_fill(~negatives, float("-inf")).amax(dim=1, keepdim=True)
    kept_positives = positives & (similarity - margin < hardest_negative)
    kept_negatives = negatives & (similarity + margin > hardest_positive)
    # In exact arithmetic one set is empty where the other is; rounding at the edge of the margin may differ.
    has_both = kept_positives.any(dim=1, keepdim=True) & kept_negatives.any(dim=1, keepdim=True)
    return kept_positives & has_both, kept_negatives & has_both


def _log_one_plus_sum_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum of exp over the mask) of each row, (B, B) -> (B,): no overflow; 0 for an empty mask."""
    exponents = exponents.masked_fill(~mask, float("-inf"))
    return F.pad(exponents, (1, 0), value=0.0).logsumexp(dim=1)


def _check_parameters(alpha: float, beta: float, margin: float) -> None:
    if not alpha > 0 or not beta > 0:
        raise ValueError(f"alpha and beta must be > 0, got {alpha} and {beta}")
    if not margin >= 0:
        raise ValueError(f"margin must be >= 0, got {margin}")


@SSKD_LOSS_REGISTRY.register()
class MultiSimilarity(PeerLoss):
    """multi_similarity of the student's features and the labels."""

    short_name = "ms"
    reads_logits = False

    def __init__(
        self, *, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5, margin: float = 0.1
    ) -> None:
        _check_parameters(alpha, beta, margin)
        self.alpha, self.beta, self.base, self.margin = alpha, beta, base, margin

    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student."""
        return multi_similarity(
            batch.features, batch.labels, alpha=self.alpha, beta=self.beta, base=self.base, margin=self.margin
        )
