"""Features of every teacher for every image of a loader."""
import logging
from collections.abc import Iterable

import torch
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils.logger import log_every_n_seconds
from torch import nn

from ..modeling import SSKD

__all__ = ["TeacherFeatures", "extract_features"]


class TeacherFeatures(nn.Module):
    """All teachers of a model as one network: a batch -> (B, d_1 + ... + d_K), side by side, not normalised."""

    def __init__(self, model: SSKD):
        super().__init__()
        self.model = model
        self.training = model.training  # the host's evaluation restores the mode of what it is given

    def forward(self, batched_inputs: dict) -> torch.Tensor:
        return torch.cat(self.model.teacher_features(batched_inputs), dim=1)


@torch.no_grad()
def extract_features(model: SSKD, loader: Iterable[dict]) -> list[torch.Tensor]:
    """f_k(x_i) of each teacher in eval mode, in the loader's order; the model's mode is restored.

    Args:
        model: the peers.
        loader: batches with "images" (B, 3, H, W), every image once.

    Returns:
        K tensors (N, d_k), float32, on the model's device, not normalised.

    Raises:
        FloatingPointError: if a feature is not finite.
    """
    parts: list[list[torch.Tensor]] = [[] for _ in range(model.num_peers)]
    with inference_context(model):
        for i, batch in enumerate(loader):
            for part, feature in zip(parts, model.teacher_features(batch)):
                part.append(feature.float())
            log_every_n_seconds(logging.INFO, f"features: batch {i + 1}/{len(loader)}", n=30, name="fastreid.sskd")
    features = [
        torch.cat(part) if part else torch.empty(0, size, device=model.device)
        for part, size in zip(parts, model.feature_sizes)
    ]
    for k, feature in enumerate(features):
        if not torch.isfinite(feature).all():
            raise FloatingPointError(f"teacher {k} gives features that are not finite: training has diverged")
    return features
