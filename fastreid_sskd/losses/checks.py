"""Checks of a loss's inputs, and the zero of an empty batch."""

from __future__ import annotations

import torch


def check_rows(name: str, rows: torch.Tensor) -> None:
    """Check that features or logits are a floating-point (B, D) matrix, D >= 1.

    Raises:
        ValueError: naming the tensor and what it is instead.
    """
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"{name} must be (batch, columns) with at least one column, got shape {tuple(rows.shape)}"
        )
    if not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {rows.dtype}: cast it with .float()")


def check_same_shape(name: str, rows: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Check that two (B, D) matrices agree in shape.

    Raises:
        ValueError: naming both shapes.
    """
    if rows.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must have one shape, got {tuple(rows.shape)} and {tuple(other.shape)}: "
            "pass outputs of the same batch and number of classes"
        )


def check_labels(labels: torch.Tensor, batch_size: int, num_classes: int | None = None) -> None:
    """Check that labels are (B,) integers, not negative and, if `num_classes` is given, below it.

    The range is looked at only where the labels are in host memory: on an accelerator the comparison would
    stall the stream at every step. There the cross entropy's own kernel asserts the range.

    Raises:
        ValueError: naming the rule and the value that breaks it.
    """
    if labels.dim() != 1 or labels.shape[0] != batch_size:
        raise ValueError(f"labels must have shape ({batch_size},), one a row, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}: cast them with .long()")
    if not labels.is_cpu or batch_size == 0:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise ValueError(f"labels must be >= 0, got {lowest}: leave unlabelled images (-1) out of the batch")
    if num_classes is not None and highest >= num_classes:
        raise ValueError(
            f"labels must be below the number of classes {num_classes}, got {highest}: "
            "give the classifier as many active rows as there are identities"
        )


def zero_on_graph(rows: torch.Tensor) -> torch.Tensor:
    """Return a scalar 0 that is connected to `rows`, so that backward() works and gives zero gradients.

    A NaN or an infinity in `rows` gives NaN, so that masking cannot hide a diverged network.
    """
    return (rows * 0).sum()
