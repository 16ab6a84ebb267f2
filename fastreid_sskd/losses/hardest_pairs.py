"""The farthest positive and the nearest negative of every anchor, and the distances to them."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this squared distance two features are one point: keeps the square root's gradient finite.
_SMALLEST_SQUARED_DISTANCE = 1e-12


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
