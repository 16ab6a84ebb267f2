"""Features of every teacher for every image of a loader."""
import logging
from collections.abc import Iterable

import torch
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils.logger import log_every_n_seconds
from torch import nn

from ..modeling import SSKD

__all__ = ["TeacherFeatures", "extract_features"]


logger = logging.getLogger("fastreid.sskd.evaluation")


class _FittingFeatures:
    """f_k of a batch in inference mode, in as few parts as the device's memory allows.

    A batch that does not fit is halved until it does, and so are those after it, so ``TEST.IMS_PER_BATCH`` may be as
    large as one likes.
    """

    def __init__(self, model: SSKD):
        self.model = model
        self.largest: int | None = None  # images that fit at once, where fewer than a batch do

    def __call__(self, batched_inputs: dict) -> list[torch.Tensor]:
        while True:
            size = min(len(batched_inputs["images"]), self.largest or len(batched_inputs["images"]))
            try:
                return self._in_parts_of(size, batched_inputs)
            except torch.cuda.OutOfMemoryError:
                if size <= 1:
                    raise
            self.largest = size // 2
            torch.cuda.empty_cache()
            logger.warning(
                "features: %d images do not fit into the device's memory, going on with %d at a time: lower "
                "TEST.IMS_PER_BATCH to start with that", size, self.largest,
            )  # fmt: skip

    @torch.inference_mode()
    def _in_parts_of(self, size: int, batched_inputs: dict) -> list[torch.Tensor]:
        parts = [
            self.model.teacher_features({**batched_inputs, "images": images})
            for images in batched_inputs["images"].split(max(size, 1))
        ]
        return [torch.cat(part) for part in zip(*parts)] if len(parts) > 1 else parts[0]


class TeacherFeatures(nn.Module):
    """All teachers of a model as one network: a batch -> (B, d_1 + ... + d_K), side by side, not normalised."""

    def __init__(self, model: SSKD):
        super().__init__()
        self.model = model
        self.features = _FittingFeatures(model)
        self.training = model.training  # the host's evaluation restores the mode of what it is given

    def forward(self, batched_inputs: dict) -> torch.Tensor:
        return torch.cat(self.features(batched_inputs), dim=1)


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
    features_of = _FittingFeatures(model)
    with inference_context(model):
        for i, batch in enumerate(loader):
            for part, feature in zip(parts, features_of(batch)):
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
