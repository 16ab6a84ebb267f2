"""Views cut out of padded crops, mirrored and erased: one crop after the other by slices, or a batch at once by indices."""
from collections.abc import Sequence

import torch

__all__ = ["cut", "cut_batch", "erase", "erase_batch"]


def cut(padded: torch.Tensor, numbers: Sequence[Sequence[int]], shape: Sequence[int]) -> torch.Tensor:
    """Views of one crop.

    Args:
        padded: (3, H, W), any type.
        numbers: K times (top, left, mirrored, ...), further ones are not read.
        shape: (3, h, w) of a view.

    Returns:
        (K, 3, h, w), memory of its own.
    """
    height, width = shape[-2:]
    views = padded.new_empty((len(numbers), *shape))
    for view, (top, left, mirrored, *_) in zip(views, numbers):
        part = padded[:, top : top + height, left : left + width]
        view.copy_(part.flip(-1) if mirrored else part)
    return views


def cut_batch(padded: torch.Tensor, numbers: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Views of a batch of crops, without a loop over it.

    Args:
        padded: (B, 3, H, W), any type.
        numbers: (B, K, 3 or more) of (top, left, mirrored, ...), on the same device.
        shape: (3, h, w) of a view.

    Returns:
        (B, K, 3, h, w), contiguous.
    """
    channels, height, width = shape
    device = padded.device
    top, left, mirrored = numbers[..., :3].long().unsqueeze(-2).unbind(-1)  # (B, K, 1) each
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = left + torch.where(mirrored > 0, width - 1 - columns, columns)
    image = torch.arange(len(padded), device=device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(-1, 1, 1)
    return padded[image, channel, rows[:, :, None, :, None], columns[:, :, None, None, :]]


def erase(views: torch.Tensor, boxes: Sequence[Sequence[Sequence[int]]], value: Sequence[float]) -> torch.Tensor:
    """Fill a rectangle of every view.

    Args:
        views: (B, K, 3, h, w), uint8 or float; is not changed.
        boxes: B times K times (top, left, height, width) [pixels]; a height of 0: nothing.
        value: 1 or 3 numbers in units of the views, with fractions (the method's fill has them).

    Returns:
        float32 of the same shape, on the views' device.
    """
    filled = views.to(torch.float32, copy=True)
    fill = _fill(value, filled)
    for view, (top, left, height, width) in zip(filled.flatten(0, 1), (box for row in boxes for box in row)):
        if height:
            view[:, top : top + height, left : left + width] = fill
    return filled


def erase_batch(views: torch.Tensor, boxes: torch.Tensor, value: Sequence[float]) -> torch.Tensor:
    """As :func:`erase`, without a loop over the batch; ``boxes`` (B, K, 4) are on the views' device."""
    top, left, high, wide = boxes.unsqueeze(-2).unbind(-1)  # (B, K, 1) each
    row = torch.arange(views.shape[-2], device=views.device)
    column = torch.arange(views.shape[-1], device=views.device)
    rows, columns = (row >= top) & (row < top + high), (column >= left) & (column < left + wide)
    inside = rows[:, :, None, :, None] & columns[:, :, None, None, :]
    return torch.where(inside, _fill(value, views), views.float())


def _fill(value: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32).to(like.device, non_blocking=True).view(-1, 1, 1)
