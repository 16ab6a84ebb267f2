"""Pixel normalisation that leaves the caller's batch alone."""
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["PixelNormalisation", "renormalisation"]


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


class _Affine(nn.Module):
    def __init__(self, scale: torch.Tensor, shift: torch.Tensor):
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift


def renormalisation(
    given: tuple[Sequence[float], Sequence[float]], wanted: tuple[Sequence[float], Sequence[float]]
) -> nn.Module | None:
    """From images that are normalised with one (mean, std) to images that are with another; None if they agree."""
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in pair] for pair in (given, wanted)
    )
    if torch.equal(mean, own_mean) and torch.equal(std, own_std):
        return None
    return _Affine((std / own_std).float(), ((mean - own_mean) / own_std).float())
