"""Pixel normalisation that leaves the caller's batch alone."""
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["PixelNormalisation"]


class PixelNormalisation(nn.Module):
    """(x - mean) / std per channel, out of place and on the module's device.

    Args:
        mean, std: 3 values each, in units of 0..255 (``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W), float or uint8 in 0..255 -> float32 of the same shape."""
        return (images.to(self.mean.device, non_blocking=True) - self.mean) / self.std
