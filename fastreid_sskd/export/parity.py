"""Whether an exported model gives the features of the one it was made from."""
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["check_parity", "random_images"]


def random_images(size: Sequence[int], batch: int = 4, seed: int = 0) -> torch.Tensor:
    """(batch, 3, H, W) float32 in 0..255: smooth shapes with noise, so that deep layers are not all zero or all equal.

    Args:
        size: (height, width) in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 8, 4, generator=generator)
    smooth = F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)
    noise = torch.rand(batch, 3, *size, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).round()


@torch.no_grad()
def check_parity(
    expected: Callable, exported: Callable, batches: Iterable[torch.Tensor], tolerance: float, what: str
) -> float:
    """Compare features on batches of images.

    Args:
        expected: maps a batch on the CPU to features (B, d), a tensor: the model's own.
        exported: the same of what was exported, or an array. Gets a copy.
        batches: of images.
        tolerance: the largest difference of a feature allowed, as a share of the largest feature.
        what: names the export in the error.

    Returns:
        The largest difference found, as that share.

    Raises:
        RuntimeError: if it is above the tolerance, or the features have another shape or are not finite.
    """
    worst = 0.0
    for images in batches:
        mine = expected(images).float().cpu().numpy()
        theirs = exported(images.clone())
        theirs = theirs.float().cpu().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
        if mine.shape != theirs.shape:
            raise RuntimeError(f"{what} gives features of shape {theirs.shape}, the model of {mine.shape}: it is not usable")
        error = float(np.abs(mine - theirs).max() / max(np.abs(mine).max(), np.finfo(np.float32).tiny))
        if not error <= tolerance:
            raise RuntimeError(
                f"{what} gives other features than the model: off by {error:.2g} of the largest, {tolerance:.0e} is "
                "allowed; it is not usable"
            )
        worst = max(worst, error)
    return worst
