"""The mean teachers' moving average (method: after the optimiser step of every iteration)."""
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["ema_decay", "update_teacher"]


def ema_decay(step: int, momentum: float) -> float:
    """alpha = min(1 - 1/(t+1), momentum): at t = 0 the teacher becomes the student, later it hardly moves.

    Args:
        step: t, the global step counted from 0, refreshes do not restart it.
        momentum: the upper bound of alpha, in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.
    """
    if step < 0:
        raise ValueError(f"the step of the teachers' decay must be >= 0, got {step}")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"SSKD.EMA.MOMENTUM must be in [0, 1], got {momentum}")
    return min(1.0 - 1.0 / (step + 1), momentum)


def _tensors(parameters: Iterable[torch.Tensor]) -> list:
    return [p.detach() for p in parameters]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay * teacher + (1 - decay) * student, for the parameters only.

    Buffers are left alone: a teacher's batch-norm statistics come from its own forward passes (torch's
    ``AveragedModel`` would copy the student's).

    Args:
        teacher, student: networks of the same shape; the teacher's parameters are changed in place.
        decay: alpha in [0, 1], see :func:`ema_decay`.
    """
    get_ema_multi_avg_fn(decay)(_tensors(teacher.parameters()), _tensors(student.parameters()), 0)
