"""One feature of the K teachers' features, in the two ways that features can be combined."""
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["COMBINATIONS", "concatenated_feature", "ensemble_feature"]


def ensemble_feature(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """F = normalise(mean_k normalise(f_k)), the feature that is clustered (method, refresh step 1).

    Args:
        features: K tensors (N, d) of one d.

    Returns:
        (N, d) of unit length.
    """
    return F.normalize(torch.stack([F.normalize(f.float(), dim=1) for f in features]).mean(0), dim=1)


def concatenated_feature(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """[normalise(f_1), ..., normalise(f_K)] / sqrt(K): its cosine is the mean of the K cosines, so distances are combined.

    The squared distance of two such features is the mean of the squared distances in the K spaces, which need neither the
    same size nor anything else in common.

    Args:
        features: K tensors (N, d_k).

    Returns:
        (N, d_1 + ... + d_K) of unit length.
    """
    return torch.cat([F.normalize(f.float(), dim=1) for f in features], dim=1) / math.sqrt(len(features))


#: ``SSKD.COMBINE``: what of the teachers is combined
COMBINATIONS = {"features": ensemble_feature, "distances": concatenated_feature}
